"""What each runtime is given of a run: every stage's artifact, converted where the runtime has a format of its own, and
let through only where it answers as the ONNX file does.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import artifact_steps, catalog, conversion, judge
from compress.environment import versions
from compress.errors import CompressError
from compress.plan import Job
from compress.progress import say
from compress.store import Store, file_digest
from compress.types import Artifact

VERSIONS = {"float_twin": 1}
REFERENCE = "ort_cpu"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A stage's artifact as `runtime` reads it; `failure` says why it is none that may be used. `conversion` and `gate`
    hold the facts of `conversion.converted` and `conversion.gate`, empty where there was nothing to convert or compare.
    """

    runtime: str
    artifact: Artifact
    conversion: dict[str, Any]
    gate: dict[str, Any]
    failure: str = ""


def offer(job: Job, store: Store, artifact: Artifact, runtime: str) -> Offer:
    """The ONNX artifact for a runtime that does not read networks. Failures are part of what is said."""
    module = catalog.load("runtimes", runtime, job.plugins).module
    nothing: dict[str, Any] = {}
    if runtime == REFERENCE or not module.TOLERANCE:
        return Offer(runtime=runtime, artifact=artifact, conversion=nothing, gate=nothing)
    facts = nothing
    try:
        made, facts = conversion.converted(store, artifact, runtime, job.plugins)
        own = artifact.precision in conversion.INTEGER_PRECISIONS and getattr(module, "QUANTIZES_ITSELF", False)
        gate = _gate(job, store, artifact, made, runtime, module.TOLERANCE[artifact.precision], own)
    except CompressError as error:
        return Offer(runtime=runtime, artifact=artifact, conversion=facts, gate=nothing, failure=error.message)
    if gate["why"] and judge.clips_here(artifact):
        gate["why"] += "; sums of int8 products may be clipped on this CPU, which int8_auto's weights prevent"
    if gate["why"]:
        say(f"  {artifact.stage} in {runtime} is not offered: {gate['why']}")
    return Offer(runtime=runtime, artifact=made, conversion=facts, gate=gate, failure=gate["why"])


def _gate(
    job: Job, store: Store, artifact: Artifact, made: Artifact, runtime: str, tolerance: float, own: bool
) -> dict[str, Any]:  # fmt: skip
    """How `made` answers in the runtime, compared with the ONNX file that it was made from, or, where the runtime
    quantizes by rules of its `own`, with that file in float: it is another rounding of the same network.
    """
    images = artifact_steps.parity_set(job)
    reference = _in_float(store, artifact) if own else artifact
    expected, index = judge.exact(job, store, reference, images)
    got = artifact_steps.answers_step(job, store, made, runtime, images)[index]
    return conversion.gate(expected, got, images.labels[index], artifact.precision, tolerance, in_float=own)


def _in_float(store: Store, artifact: Artifact) -> Artifact:
    """The int8 file's own network without its integers: the same weights, as float32, and activations unrounded."""

    def make(folder: Path) -> dict[str, Any]:
        import onnx

        from compress.float_twin import float_twin

        onnx.save(float_twin(onnx.load(artifact.path)), folder / "model.onnx")
        return {"digest": file_digest(folder / "model.onnx")}

    parts = {"version": VERSIONS["float_twin"], "file": artifact.digest, "versions": versions("onnx")}
    step = store.step("float_twin", parts, make, say)
    return dataclasses.replace(
        artifact, path=step.folder / "model.onnx", digest=step.facts["digest"], precision="float32"
    )


def facts(offer: Offer) -> dict[str, Any]:
    """An offer as the report's document holds it."""
    artifact = offer.artifact
    return {
        "stage": artifact.stage,
        "runtime": offer.runtime,
        "format": artifact.format,
        "precision": artifact.precision,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "files": offer.conversion.get("files", []),
        "seconds": offer.conversion.get("seconds"),
        "tools": offer.conversion.get("tools", {}),
        "notes": offer.conversion.get("notes", []),
        "locks": offer.conversion.get("locks", {}),
        "gate": offer.gate or None,
        "failure": offer.failure,
    }
