"""Judge a file as its target computes it: by the kernels of this machine where their arithmetic is the target's, else
emulated, on a part of the images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress import artifact_steps, emulate, environment, evaluate, onnx_torch, randomness, targets
from compress.environment import versions
from compress.plan import Job
from compress.progress import say
from compress.store import Store
from compress.types import Artifact, Dataset

VERSIONS = {"emulated": 2}
EMULATED_IMAGES = 1000


def counts(job: Job, store: Store, artifact: Artifact, baseline: Artifact | None, dataset: Dataset) -> dict[str, Any]:
    """`evaluate.counts` of the artifact on the split, against the baseline, as the job's target computes it; `emulated`
    says which way.
    """
    clips = targets.find(job.recipe.target).clips(environment.capture())
    return _counts(job, store, artifact, baseline, dataset, clips)


def _counts(
    job: Job, store: Store, artifact: Artifact, baseline: Artifact | None, dataset: Dataset, clips: bool
) -> dict[str, Any]:
    """The same on CPUs that clip sums of two products, or do not."""
    index, emulated = np.arange(len(dataset.labels)), _is_other(artifact, clips)
    if emulated:
        index = _part(dataset)
        logits = _emulated(store, artifact, dataset, index, clips=clips)
    else:
        logits = artifact_steps.answers_step(job, store, artifact, "ort_cpu", dataset)
    base = artifact_steps.answers_step(job, store, baseline, "ort_cpu", dataset)[index] if baseline else None
    return {**evaluate.counts(logits, dataset.labels[index], base), "emulated": emulated}


def clips_here(artifact: Artifact) -> bool:
    """Whether kernels of this CPU may clip sums of the file's int8 products."""
    return _is_other(artifact, clips=False)


def exact(job: Job, store: Store, artifact: Artifact, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N,K]` of an ONNX artifact as CPUs give them that clip no sums, and for which images of the split: for
    all, or a part where this CPU clips and they are emulated.
    """
    if _is_other(artifact, clips=False):
        index = _part(dataset)
        return _emulated(store, artifact, dataset, index, clips=False), index
    return artifact_steps.answers_step(job, store, artifact, "ort_cpu", dataset), np.arange(len(dataset.labels))


def elsewhere(job: Job, store: Store, files: list[tuple[Artifact, Artifact]]) -> list[dict[str, Any]]:
    """What is known of int8 files (each with its float parent) on the target's CPUs, or without a target on all kinds:
    rows of what was measured on the `report` split, what is emulated on a part of it, and what is assumed.
    """
    target, here = targets.find(job.recipe.target), environment.capture()
    rows = []
    for artifact, parent in files:
        if artifact.precision == "int8":
            unknown = _unknown(artifact)
            rows += [_on(job, store, artifact, parent, clips) for clips in _kinds(target, artifact) if not unknown]
            rows += [_said(artifact.stage, "other CPUs", "assumed", f"not emulated: {unknown}")] if unknown else []
    if rows and not target.is_here(here):
        words = f"latencies and speed-ups are those of {here.cpu_model}; on {target.name} nothing was timed"
        rows.append(_said("latency", target.name, "assumed", words))
    if rows and target.assumed:
        rows.append(_said("int8", target.name, "assumed", target.assumed))
    return rows


def _kinds(target: targets.Target, artifact: Artifact) -> tuple[bool | None, ...]:
    """The kinds of CPUs to speak of, by whether they clip; None: all, since to this file they are the same."""
    if not _can_saturate(artifact):
        return (None,)
    return (False, True) if target.saturates is None else (target.saturates,)


def _on(job: Job, store: Store, artifact: Artifact, parent: Artifact, clips: bool | None) -> dict[str, Any]:
    where = {None: "every CPU", False: "CPUs that add exactly (x86 with VNNI, ARM)", True: "x86 without VNNI"}[clips]
    here = environment.int8_saturates(environment.capture())
    found = _counts(job, store, artifact, parent, job.splits.report, here if clips is None else clips)
    words = "no sum of two products can leave 16 bits" if clips is None else ""
    if found["emulated"]:
        words = "clipping computed on integer levels" if clips else "its pairs computed exactly"
        if clips and _signed(artifact):
            words += ", all activations made unsigned (onnxruntime leaves some layers in float)"
        if found["n"] < len(job.splits.report.labels):
            words += ", on a part of the images"
    return {
        **_said(artifact.stage, where, "emulated" if found["emulated"] else "measured", words), "n": found["n"],
        "correct": found["correct"], "parent_only": found["baseline_only"], "this_only": found["this_only"],
    }  # fmt: skip


def _said(stage: str, where: str, how: str, words: str) -> dict[str, Any]:
    return {
        "stage": stage, "where": where, "how": how, "words": words, "n": 0, "correct": 0, "parent_only": 0,
        "this_only": 0,
    }  # fmt: skip


def _is_other(artifact: Artifact, clips: bool) -> bool:
    """Whether CPUs that clip, or do not, compute this file otherwise than the one at hand, and it can be emulated."""
    if artifact.precision != "int8" or clips == environment.int8_saturates(environment.capture()):
        return False
    return not _unknown(artifact) and _can_saturate(artifact)


def _unknown(artifact: Artifact) -> str:
    """Why the file cannot be emulated, or ""."""
    import onnx

    return onnx_torch.unreadable(onnx.load(artifact.path))


def _signed(artifact: Artifact) -> bool:
    import onnx

    return emulate.has_signed_activations(onnx.load(artifact.path))


def _can_saturate(artifact: Artifact) -> bool:
    import onnx

    return emulate.can_saturate(onnx.load(artifact.path))


def _part(dataset: Dataset) -> np.ndarray:
    order = randomness.permutation(randomness.derive("emulated"), len(dataset.labels))
    return np.sort(order[:EMULATED_IMAGES])


def _emulated(store: Store, artifact: Artifact, dataset: Dataset, index: np.ndarray, *, clips: bool) -> np.ndarray:
    parts = {
        "version": VERSIONS["emulated"],
        "artifact": artifact.digest,
        "data": dataset.digest,
        "images": len(index),
        "saturates": clips,
        "versions": versions("torch", "onnx"),
    }

    def make(folder: Path) -> dict[str, Any]:
        import onnx

        kind = "without" if clips else "with"
        say(f"  emulating a CPU {kind} VNNI on {len(index)} images of {dataset.split}")
        logits, clipped = emulate.answers(onnx.load(artifact.path), dataset.images[index], saturates=clips)
        np.save(folder / "logits.npy", logits)
        return {"clipped_pairs": clipped}

    return np.load(store.step("emulated", parts, make, say).folder / "logits.npy")
