"""What a run measures of its files: latency in every runtime, accuracy on the `report` split."""

from typing import Any

from compress import artifact_steps, evaluate, facts, judge, measuring, training_steps, tree_facts
from compress.catalog import load as load_entry
from compress.chain import Link
from compress.errors import CompressError, Unmeasurable
from compress.plan import Job
from compress.progress import say
from compress.store import Store
from compress.types import Artifact


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
            base = artifact_steps.answers_step(job, store, _teacher_of(pairs, runtime), runtime, job.splits.report)
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
        "elsewhere": judge.elsewhere(job, store, _with_parents(links)),
    }


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


def _teacher_of(pairs: list[tuple[Artifact, str]], runtime: str) -> Artifact:
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
