"""What a run measures of its files: latency in every runtime, accuracy on the `report` split."""

from typing import Any

import numpy as np

from compress import (
    artifact_steps,
    conversion,
    evaluate,
    facts,
    judge,
    measuring,
    robustness,
    runtime_files,
    training_steps,
    tree_facts,
)
from compress.catalog import load as load_entry
from compress.chain import Link
from compress.errors import CompressError, Unmeasurable
from compress.plan import Job
from compress.progress import say
from compress.runtime_files import REFERENCE, Offer
from compress.store import Store
from compress.types import Artifact


def measure(job: Job, store: Store, links: list[Link]) -> dict[str, Any]:
    """Latency of every artifact in every runtime, and accuracy of the same bytes on the `report` split."""
    offered = [offer for runtime in job.recipe.runtimes for offer in _offers(job, store, links, runtime)]
    say(f"benchmark: tier {job.recipe.tier}")
    measurements = measuring.latency(
        [(offer.artifact, offer.runtime) for offer in offered], job.recipe.threads, job.splits.report.images,
        job.recipe.tier, job.recipe.seed, store, job.plugins,
        refused=runtime_files.refused(offered),
        memory=True,
    )  # fmt: skip
    failures = {(m.artifact, m.runtime): m.failure for m in measurements if m.failure}
    say(f"accuracy on the report split ({len(job.splits.report.labels)} images)")
    report_split = job.splits.report
    golden = {
        link.artifact.stage: artifact_steps.answers_step(job, store, link.artifact, "ort_cpu", report_split)
        for link in links
    }
    return {
        "run": {"seed": job.recipe.seed, "tier": job.recipe.tier, "max_drop_points": job.recipe.max_drop},
        "accuracy": [
            _accuracy(job, store, offer, _teacher_of(offered, offer.runtime, links), failures) for offer in offered
        ],
        "measurements": [facts.measurement_facts(m, measuring.twin_of(m)) for m in measurements],
        "raw": measurements,
        "golden": golden,
        "against_parents": _against_parents(links, golden, report_split.labels),
        "corruptions": _corruptions(job, store, links, golden),
        "tree": _tree(job, links),
        "elsewhere": judge.elsewhere(job, store, _with_parents(links)),
        "converted": [
            runtime_files.facts(o)
            for o in offered
            if o.gate or o.conversion or conversion.converts(o.runtime, job.plugins)
        ],
        "offers": offered,
    }


def _against_parents(
    links: list[Link], golden: dict[str, np.ndarray], labels: np.ndarray
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each stage, how many images of `report` its parent's file alone gets right, and how many its own alone."""
    rows = []
    for link in links:
        if link.parent:
            mine, parent = (golden[name].argmax(1) == labels for name in (link.artifact.stage, link.parent))
            counts = {"parent_only": int((parent & ~mine).sum()), "this_only": int((mine & ~parent).sum())}
            rows.append({"stage": link.artifact.stage, "parent": link.parent, "n": len(labels), **counts})
    return rows


def _offers(job: Job, store: Store, links: list[Link], runtime: str) -> list[Offer]:
    """What the runtime is given: every stage has an ONNX file; the teacher is measured as a network too, for what
    deployment alone gains.
    """
    if load_entry("runtimes", runtime, job.plugins).module.FORMAT != "torch":
        return [runtime_files.offer(job, store, link.artifact, runtime) for link in links]
    if not (network := links[0].network):
        return []
    teacher = artifact_steps.torch_artifact(job, "teacher", network, vars(links[0].artifact))
    return [Offer(runtime=runtime, artifact=teacher, conversion={}, gate={})]


def _accuracy(
    job: Job, store: Store, offer: Offer, teacher: tuple[Artifact, str], failures: dict[tuple[str, str], str]
) -> dict[str, Any]:  # fmt: skip
    """The counts of one artifact's bytes in one runtime, against the teacher's there, or why there are none."""
    stage, runtime = offer.artifact.stage, offer.runtime
    row: dict[str, Any] = {"stage": stage, "runtime": runtime, "failure": ""}
    row |= {"n": 0, **dict.fromkeys(("correct", "top5_correct", "teacher_only", "this_only", "agree"))}
    try:
        if (stage, runtime) in failures:
            raise Unmeasurable(failures[stage, runtime], code="E-RUNTIME-FAILED")
        if not load_entry("runtimes", runtime, job.plugins).module.TOLERANCE:
            raise Unmeasurable(f"{runtime} answers nothing", code="E-RUNTIME-FORMAT")
        logits = artifact_steps.answers_step(job, store, offer.artifact, runtime, job.splits.report)
        evaluate.refuse_nan(logits, f"{stage} in {runtime}")
        base = artifact_steps.answers_step(job, store, *teacher, job.splits.report)
        evaluate.refuse_nan(base, f"{teacher[0].stage} in {teacher[1]}")
        row |= evaluate.counts(logits, job.splits.report.labels, base)
        row["teacher_only"] = row.pop("baseline_only")
        row["divergence_nats"] = evaluate.divergence_nats(logits, base)
        row["classes"] = evaluate.class_counts(logits, job.splits.report.labels, base)
        row["confidence"] = evaluate.confidence(logits, job.splits.report.labels)
        if runtime == "ort_cpu":  # by then its answers on select are known
            select = artifact_steps.answers_step(job, store, offer.artifact, runtime, job.splits.select)
            temperature = evaluate.best_temperature(select, job.splits.select.labels)
            scaled = evaluate.confidence(logits / temperature, job.splits.report.labels)
            row["confidence"] |= {"temperature": temperature, "scaled_bins": scaled["bins"]}
    except CompressError as error:
        row["failure"] = error.message
    return row


def _corruptions(
    job: Job, store: Store, links: list[Link], golden: dict[str, np.ndarray]
) -> list[dict[str, Any]]:  # fmt: skip
    """How each ONNX file stands corrupted images beside the teacher's, where that is asked for."""
    if not job.recipe.corruptions:
        return []
    report_split = job.splits.report
    stood = {}
    for link in links:
        stage = link.artifact.stage
        right = artifact_steps.corrupted_step(job, store, link.artifact, REFERENCE, report_split)
        stood[stage] = (golden[stage].argmax(1) == report_split.labels, right)
    teacher = stood[links[0].artifact.stage]
    rows = [{"stage": stage, **robustness.facts(*mine, *teacher)} for stage, mine in stood.items()]
    return [row | {"kinds": [{"kind": k, "correct": right} for k, right in row["kinds"].items()]} for row in rows]


def _with_parents(links: list[Link]) -> list[tuple[Artifact, Artifact]]:
    of_stage = {link.artifact.stage: link.artifact for link in links}
    return [(link.artifact, of_stage[link.parent]) for link in links if link.parent]


def _tree(job: Job, links: list[Link]) -> dict[str, Any] | None:
    """What the report draws where the student has a picture, as a tree has."""
    picture = getattr(job.student.module, "picture", None)
    if picture is None:
        return None
    link = [link for link in links if link.kept and link.network][-1]
    assert link.network
    network = training_steps.trained(job, link.network)
    return tree_facts.of_tree(network, picture, link.artifact.stage, job.splits.report)


def _teacher_of(offered: list[Offer], runtime: str, links: list[Link]) -> tuple[Artifact, str]:
    """The teacher as this runtime reads it, and the runtime; where it does not, the teacher's ONNX file."""
    teachers = {o.runtime: o.artifact for o in offered if o.artifact.stage == "teacher" and not o.failure}
    return (teachers[runtime], runtime) if runtime in teachers else (links[0].artifact, REFERENCE)
