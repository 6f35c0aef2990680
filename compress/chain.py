"""The chain: what each stage makes, and whether the chain goes on from it.

Each stage is judged on the `select` split against its parent; one that costs more top-1 than `max_drop`, or does not
pay, is measured and reported like the others, and the chain goes on from its parent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress import (
    artifact_steps,
    estimate,
    evaluate,
    judge,
    ladder,
    payoff,
    pruning_steps,
    rehearsal,
    schedules,
    training_steps,
)
from compress.plan import Job, warn_of_few_images
from compress.progress import say
from compress.store import Step, Store
from compress.types import Artifact


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


def make_chain(job: Job, store: Store) -> Iterator[Link]:
    """Teacher, student, pruned and quantized artifacts, in order; what costs too much is marked as not kept."""
    rehearsal.try_networks(job, store)
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
        yield _paying(job, store, _quantized(job, store, link, made), link)


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
    counts = judge.counts(job, store, link.artifact, baseline.artifact if baseline else None, job.splits.select)
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
    sizes = pruning_steps.sizes(job, parent.artifact, link.artifact)
    link = replace(link, what=link.what + pruning_steps.compressed(parent.artifact, sizes))
    pays, why = pruning_steps.worth(job, store, parent.artifact, link.artifact, sizes)
    if not pays:
        say(f"  pruned is not kept: it {why}; the chain goes on from {link.parent}")
    reason = f"{link.reason}; {why}" if why and link.kept else link.reason if pays else f"{why}; {link.reason}"
    return replace(link, kept=link.kept and pays, reason=reason)


def _quantized(job: Job, store: Store, parent: Link, teachers: tuple[Step, ...]) -> Link:
    assert job.quantizer
    say("quantize")
    warn_of_few_images(job)
    if hasattr(job.quantizer.module, "FIRST"):
        return _climbed(job, store, parent, teachers)
    step = artifact_steps.quantize_step(job, store, parent.artifact)
    precision = job.quantizer.module.PRECISION
    artifact = artifact_steps.onnx_artifact(job, job.quantizer.name, step.folder / "model.onnx", precision, step.facts)
    say(f"  {artifact.stage}: {artifact.size_bytes / 1e6:.2f} MB from {parent.artifact.size_bytes / 1e6:.2f} MB")
    images = step.facts["calibration_images"]
    what = job.quantizer.label + (f", calibrated on {images} train images" if images else "")
    link = Link(artifact=artifact, parent=parent.artifact.stage, what=what, step=step, facts=step.facts)
    return _judged(job, store, link, parent, gate=True)


def _paying(job: Job, store: Store, link: Link, parent: Link) -> Link:
    """The quantized link, not kept where it pays neither in time nor in the bytes that are asked for."""
    if not link.kept or not job.recipe.least_speedup:
        return link
    advice, notes = " (--set least_speedup=0 keeps it all the same)", link.facts.get("notes", [])
    pays, why = payoff.of_quantized(job, store, parent.artifact, link.artifact, notes, advice)
    if not pays:
        say(f"  {link.artifact.stage} is not kept: it {why}; what ships is {link.parent}")
    return replace(link, kept=pays, reason=f"{link.reason}; {why}" if pays else f"{why}; {link.reason}")


def _climbed(job: Job, store: Store, parent: Link, teachers: tuple[Step, ...]) -> Link:
    """The best of the int8 files that the ladder made."""
    best, rungs = ladder.climb(job, store, parent.artifact, parent.network, teachers)
    say(f"  int8: {best.artifact.size_bytes / 1e6:.2f} MB from {parent.artifact.size_bytes / 1e6:.2f} MB")
    what = f"{ladder.describe(rungs)}, calibrated on {best.step.facts['calibration_images']} train images"
    seconds = sum(row["seconds"] for rung in rungs for row in rung["tried"])
    step = replace(best.step, facts={**best.step.facts, "seconds": round(seconds, 3)})
    notes = [*best.step.facts.get("notes", []), *ladder.doubts(best, job)]
    link = Link(
        artifact=best.artifact, parent=parent.artifact.stage, what=what, step=step,
        facts={**best.step.facts, "ladder": rungs, "notes": notes},
    )  # fmt: skip
    return _judged(job, store, link, parent, gate=True)
