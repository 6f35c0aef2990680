"""The chain: recipe → data → teacher → student → pruned → ONNX → int8 → measurements → report. `run` is all of it.

Each stage is judged on the `select` split against its parent; one that costs more top-1 than `max_drop` is measured and
reported like the others, and the chain goes on from its parent.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from compress import (
    artifact_steps,
    bias,
    distill,
    estimate,
    evaluate,
    facts,
    measuring,
    mutual,
    plan,
    pruning_steps,
    publish,
    schedules,
    screen,
    taps,
    training_steps,
    tree_facts,
)
from compress.catalog import load as load_entry
from compress.errors import CompressError, Unmeasurable
from compress.plan import Job
from compress.progress import duration, say
from compress.recipe import Recipe
from compress.store import NotThere, Peek, Step, Store, exclusive
from compress.types import Artifact


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run made: its two folders, the report document, and whether everything was there already."""

    models: Path
    reports: Path
    document: dict[str, Any]
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stage of the chain: its ONNX artifact, the network behind it, its parent, and the verdict on `select`."""

    artifact: Artifact
    parent: str
    what: str
    step: Step
    network: Step | None = None
    select: dict[str, Any] | None = None
    kept: bool = True
    reason: str = ""
    parity: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def run(recipe: Recipe, *, plugins: tuple[Path, ...] = (), store: Store | None = None, command: str = "") -> Result:
    """Do what the recipe says, reusing every finished step. Raises CompressError and its kinds."""
    started, started_at = time.monotonic(), datetime.now(UTC)
    store = store or Store.default()
    places = publish.places(recipe)
    publish.prepare(places)
    with exclusive(places.lock, publish.refuse_second(places)):
        splits = plan.load_data(recipe, store, plugins)
        inputs = publish.inputs_digest(recipe, splits, plugins)
        document = publish.finished(places, inputs)
        if document is not None:
            return Result(models=places.models, reports=places.reports, document=document, reused=True)
        recipe, choice = screen.resolve(recipe, splits, store, plugins, partial(_try_networks, store=store))
        job = plan.make(recipe, splits, plugins)
        for line in plan.describe(job):
            say(line)
        links = list(make_chain(job, store))
        measured = measure(job, store, links) | {"choice": choice}
        measured["run"] |= {
            "command": command or f"compress run --recipe {places.models / 'recipe.toml'}",
            "started": started_at.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
        }
        document = publish.publish(places, job, links, measured, inputs)
    return Result(models=places.models, reports=places.reports, document=document, reused=False)


def make_chain(job: Job, store: Store) -> Iterator[Link]:
    """Teacher, student, pruned and quantized artifacts, in order; what costs too much is marked as not kept."""
    _try_networks(job, store)
    say("teacher")
    teachers = [_teacher(job, store, number) for number in range(len(job.teachers))]
    yield from teachers
    made = tuple(link.step for link in teachers)
    link = None
    for trained in _students(job, store, teachers[0], made):
        yield trained
        link = trained if trained.kept else link
    assert link
    if job.pruner:
        pruned = _pruned(job, store, link, made)
        yield pruned
        link = pruned if pruned.kept else link
    if job.recipe.transfer_lacks:
        assert link.network
        step, parent = training_steps.corrected_step(job, store, link.network), link.artifact.stage
        what = f"the bias of {', '.join(job.recipe.transfer_lacks)} raised by {step.facts['shift']:.2f}"
        link = _exported(job, store, "corrected", step, parent=parent, what=what, baseline=link)
        yield link
    if job.quantizer:
        yield _quantized(job, store, link)


def _students(job: Job, store: Store, teacher: Link, made: tuple[Step, ...]) -> Iterator[Link]:
    """What the schedule trains. Of the generations the best on `select` is kept, the earlier one of equals; the mean of
    them all is measured beside.
    """
    links = {teacher.artifact.stage: teacher}
    candidates: list[tuple[int, Link]] = []
    for one in schedules.students(job, store, made):
        above = links[one.parent]
        link = _exported(job, store, one.stage, one.step, parent=one.parent, what=one.what, baseline=above)
        links[one.stage] = link
        assert link.select
        if not one.candidate:
            yield link
            continue
        best_yet = max((correct for correct, _ in candidates), default=-1)
        candidates.append((link.select["correct"], link))
        if job.recipe.refine and link.select["correct"] <= best_yet:
            say(f"  {one.stage} is no better on select: the refinery ends")
            break
    _, best = max(candidates, key=lambda pair: pair[0])
    for _, link in candidates:
        reason = "" if link is best else f"{best.artifact.stage} is at least as good on select"
        yield replace(link, kept=link is best, reason=reason)
    # Furlanello et al. 2018 average the generations after the first student
    generations = [link for _, link in candidates[1:]]
    if len(generations) > 1:
        yield _ensemble(job, store, generations, best)


def _ensemble(job: Job, store: Store, members: list[Link], best: Link) -> Link:
    """The mean of the generations' probabilities, to be compared with the best of them; it never ships."""
    step = artifact_steps.ensemble_step(job, store, [link.artifact for link in members])
    artifact = artifact_steps.onnx_artifact(job, "ensemble", step.folder / "model.onnx", "float32", step.facts)
    link = Link(
        artifact=artifact, parent=best.artifact.stage, what=f"the mean of {len(members)} generations", step=step,
        kept=False, reason=f"{len(members)} networks in one file, for comparison: one of them ships",
        parity=step.facts["parity"], facts=step.facts,
    )  # fmt: skip
    return _judged(job, store, link, best, gate=False)


def _try_networks(job: Job, store: Store) -> None:
    """Build, pair and prune untrained twins first: what cannot work must say so before the training, not after."""
    train_split, seed, probes, together = job.splits.train, job.recipe.seed, [], []
    for plan_ in job.teachers:
        if plan_.entry:
            twin = training_steps.build(job, plan_.entry.spec, plan_.mean, plan_.std, seed, size=plan_.size)
            probes.append(taps.probe(twin, train_split.input_shape))
    above = probes[0] if len(probes) == len(job.teachers) == 1 else None
    for entry in (*job.assistants, *job.peers, job.student):
        student = training_steps.build(job, entry.spec, train_split.mean, train_split.std, seed)
        probed = taps.probe(student, train_split.input_shape)
        setting = distill.setting_of(
            probed, above, job.transfer, job.recipe.batch_size, pairing=job.recipe.pairing, mixup=job.recipe.mixup,
            together=job.recipe.ensemble if len(job.teachers) > 1 else "",
        )  # fmt: skip
        bound = distill.bind(job.methods, setting, seed)
        distill.refuse_untaught(bound, setting)
        if job.peers and entry not in job.assistants:
            mutual.refuse_stages(bound)
            together.append(student)
        above = probed if entry in job.assistants else above
    if together and job.recipe.optimizer == "sgd":
        mutual.common_rate_factor(tuple(together))
    if job.recipe.transfer_lacks:
        bias.layer_of(student)
    if job.pruner:
        pruning_steps.refuse(job, store, student)


def _teacher(job: Job, store: Store, number: int) -> Link:
    """A teacher's link; an ONNX file is its own artifact."""
    stage, label = estimate.stage_name(number), job.teachers[number].label
    step = training_steps.teacher_step(job, store, number)
    if job.teachers[number].entry:
        return _exported(job, store, stage, step, parent="", what=label)
    artifact = artifact_steps.onnx_artifact(job, stage, step.folder / "model.onnx", "float32", step.facts)
    link = Link(artifact=artifact, parent="", what=f"ONNX file {Path(label).name}", step=step, facts=step.facts)
    return _judged(job, store, link, None, gate=False)


def _exported(
    job: Job, store: Store, stage: str, network: Step, *, parent: str, what: str, baseline: Link | None = None,
    gate: bool = False,
) -> Link:  # fmt: skip
    step = artifact_steps.export_step(job, store, stage, network)
    artifact = artifact_steps.onnx_artifact(job, stage, step.folder / "model.onnx", "float32", step.facts)
    say(
        f"  {stage}: {artifact.parameters:,} parameters, {artifact.macs / 1e6:.1f} MMAC, "
        f"{artifact.size_bytes / 1e6:.2f} MB"
    )
    link = Link(
        artifact=artifact, parent=parent, what=what, step=network, network=network,
        parity=step.facts["parity"], facts=network.facts,
    )  # fmt: skip
    return _judged(job, store, link, baseline, gate=gate)


def _judged(job: Job, store: Store, link: Link, baseline: Link | None, *, gate: bool) -> Link:
    """The link with its counts on `select` and, behind a gate, the decision whether the chain goes on from it."""
    select = job.splits.select
    logits = artifact_steps.answers_step(job, store, link.artifact, "ort_cpu", select)
    base = artifact_steps.answers_step(job, store, baseline.artifact, "ort_cpu", select) if baseline else None
    counts = evaluate.counts(logits, select.labels, base)
    say(f"  {link.artifact.stage}: top-1 on select {counts['correct'] / counts['n']:.2%} ({counts['n']} images)")
    if not gate or baseline is None:
        return replace(link, select=counts)
    drop = evaluate.drop_points(counts)
    kept = drop <= job.recipe.max_drop
    reason = f"costs {drop:.2f} points of top-1 on select against {link.parent}; allowed: {job.recipe.max_drop:g}"
    if not kept:
        say(f"  {link.artifact.stage} is not kept: it {reason}; the chain goes on from {link.parent}")
    return replace(link, select=counts, kept=kept, reason=reason)


def _pruned(job: Job, store: Store, parent: Link, teachers: tuple[Step, ...]) -> Link:
    """The pruned student; it must be accurate and, by measurement, faster."""
    assert job.pruner and parent.network
    say("prune")
    step = pruning_steps.pruned(job, store, parent.network, teachers)
    link = _exported(
        job, store, "pruned", step, parent=parent.artifact.stage, what=pruning_steps.describe(job, step),
        baseline=parent, gate=True,
    )  # fmt: skip
    link = replace(link, what=link.what + pruning_steps.compressed(job, parent.artifact, link.artifact))
    pays, why = pruning_steps.worth(job, store, parent.artifact, link.artifact)
    if not pays:
        say(f"  pruned is not kept: it {why}; the chain goes on from {link.parent}")
    reason = f"{link.reason}; {why}" if why and link.kept else link.reason if pays else f"{why}; {link.reason}"
    return replace(link, kept=link.kept and pays, reason=reason)


def _quantized(job: Job, store: Store, parent: Link) -> Link:
    assert job.quantizer
    say("quantize")
    step = artifact_steps.quantize_step(job, store, parent.artifact)
    precision = job.quantizer.module.PRECISION
    artifact = artifact_steps.onnx_artifact(job, job.quantizer.name, step.folder / "model.onnx", precision, step.facts)
    say(f"  {artifact.stage}: {artifact.size_bytes / 1e6:.2f} MB from {parent.artifact.size_bytes / 1e6:.2f} MB")
    what = f"{job.quantizer.label}, calibrated on {step.facts['calibration_images']} train images"
    link = Link(artifact=artifact, parent=parent.artifact.stage, what=what, step=step, facts=step.facts)
    return _judged(job, store, link, parent, gate=True)


def measure(job: Job, store: Store, links: list[Link]) -> dict[str, Any]:
    """Latency of every artifact in every runtime, and accuracy of the same bytes on the `report` split."""
    artifacts = _by_format(job, links)
    pairs = [
        (a, r) for r in job.recipe.runtimes for a in artifacts[load_entry("runtimes", r, job.plugins).module.FORMAT]
    ]
    say(f"benchmark: tier {job.recipe.tier}")
    measurements = measuring.latency(
        pairs, job.recipe.threads, job.splits.report.images, job.recipe.tier, job.recipe.seed, store, job.plugins
    )
    failures = {(m.artifact, m.runtime): m.failure for m in measurements if m.failure}
    say(f"accuracy on the report split ({len(job.splits.report.labels)} images)")
    accuracy: list[dict[str, Any]] = []
    for artifact, runtime in pairs:
        row: dict[str, Any] = {"stage": artifact.stage, "runtime": runtime, "failure": ""}
        row |= {"n": 0, **dict.fromkeys(("correct", "top5_correct", "teacher_only", "this_only", "agree"))}
        try:
            if (artifact.stage, runtime) in failures:
                raise Unmeasurable(failures[artifact.stage, runtime])
            logits = artifact_steps.answers_step(job, store, artifact, runtime, job.splits.report)
            base = artifact_steps.answers_step(job, store, pairs_teacher(pairs, runtime), runtime, job.splits.report)
            row |= evaluate.counts(logits, job.splits.report.labels, base)
            row["teacher_only"] = row.pop("baseline_only")
        except CompressError as error:
            row["failure"] = error.message
        accuracy.append(row)
    report_split = job.splits.report
    golden = {
        link.artifact.stage: artifact_steps.answers_step(job, store, link.artifact, "ort_cpu", report_split)
        for link in links
    }
    return {
        "run": {"seed": job.recipe.seed, "tier": job.recipe.tier, "max_drop_points": job.recipe.max_drop},
        "accuracy": accuracy,
        "measurements": [facts.measurement_facts(m, measuring.twin_of(m)) for m in measurements],
        "raw": {m.cell: m for m in measurements},
        "golden": golden,
        "tree": _tree(job, links),
    }


def _tree(job: Job, links: list[Link]) -> dict[str, Any] | None:
    """What the report draws where the student has a picture, as a tree has."""
    picture = getattr(job.student.module, "picture", None)
    if picture is None:
        return None
    link = [link for link in links if link.kept and link.network][-1]
    assert link.network
    network = training_steps.trained(job, link.network)
    return tree_facts.of_tree(network, picture, link.artifact.stage, job.splits.report)


def pairs_teacher(pairs: list[tuple[Artifact, str]], runtime: str) -> Artifact:
    """The teacher as this runtime reads it."""
    return next(a for a, r in pairs if r == runtime and a.stage == "teacher")


def _by_format(job: Job, links: list[Link]) -> dict[str, list[Artifact]]:
    """Artifacts for each format that a runtime may read: every stage has an ONNX file; the teacher is measured as a
    network too, for what deployment alone gains.
    """
    teacher = links[0]
    networks = []
    if teacher.network:
        networks = [artifact_steps.torch_artifact(job, "teacher", teacher.network, vars(teacher.artifact))]
    return {"onnx": [link.artifact for link in links], "torch": networks}


def dry_run(recipe: Recipe, *, plugins: tuple[Path, ...] = (), store: Store | None = None) -> str:
    """The plan, what is in the store already, and an estimate of time; trains nothing."""
    store = store or Store.default()
    places = publish.places(recipe)
    splits = plan.load_data(recipe, store, plugins)
    inputs = publish.inputs_digest(recipe, splits, plugins)
    able = partial(_try_networks, store=store)
    recipe, _ = screen.resolve(recipe, splits, store, plugins, able, trials=Peek(store.root))
    job = plan.make(recipe, splits, plugins)
    lines = [
        *plan.describe(job),
        "",
        f"models   {places.models}",
        f"reports  {places.reports}",
        f"store    {store.root}",
        "",
    ]
    if publish.finished(places, inputs) is not None:
        return "\n".join([*lines, "everything is there already: nothing would be computed"])
    there = _already_there(job, store)
    total = 0.0
    for stage, seconds in estimate.seconds_of(job, store).items():
        total += 0.0 if stage in there else seconds
        lines.append(f"{stage:10} {'in the store' if stage in there else 'about ' + duration(seconds)}")
    return "\n".join([*lines, f"in all about {duration(total)} on this machine"])


def _already_there(job: Job, store: Store) -> list[str]:
    """The stages that a run would find finished. What follows a missing stage is missing too."""
    there: list[str] = []
    try:
        for link in make_chain(job, Peek(store.root)):
            there.append(link.artifact.stage)
    except NotThere:
        pass
    return there


def export_teacher(recipe: Recipe, path: Path, *, plugins: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe's teacher as an ONNX file at `path`, with golden samples beside it. Returns the parity facts."""
    store = Store.default()
    job = plan.make(recipe, plan.load_data(recipe, store, plugins), plugins)
    step = training_steps.teacher_step(job, store, 0)
    exported = artifact_steps.export_step(job, store, "teacher", step)
    artifact = artifact_steps.onnx_artifact(job, "teacher", exported.folder / "model.onnx", "float32", exported.facts)
    logits = artifact_steps.answers_step(job, store, artifact, "ort_cpu", job.splits.report)
    publish.write_artifact(path, artifact, job.splits.report, logits)
    return exported.facts["parity"]
