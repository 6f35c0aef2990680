"""What each runtime is given of a run: every stage's artifact, converted where the runtime has a format of its own, and
let through only where it answers as the ONNX file does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress import artifact_steps, catalog, conversion, judge
from compress.errors import CompressError
from compress.plan import Job
from compress.progress import say
from compress.store import Store
from compress.types import Artifact, Failure

REFERENCE = "ort_cpu"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A stage's artifact as `runtime` reads it; `failed` says why it is none that may be used. `conversion` and `gate`
    hold the facts of `conversion.converted` and `conversion.gate`, empty where there was nothing to convert or compare.
    """

    runtime: str
    artifact: Artifact
    conversion: dict[str, Any]
    gate: dict[str, Any]
    failed: Failure = Failure()

    @property
    def failure(self) -> str:
        """The reason in `failed`, or ""."""
        return self.failed.reason


def refused(offers: Sequence[Offer]) -> dict[tuple[str, str], Failure]:
    """(stage, runtime) → why it is not to be measured, of those offers that may not be used."""
    return {(each.artifact.stage, each.runtime): each.failed for each in offers if each.failed}


def offer(job: Job, store: Store, artifact: Artifact, runtime: str) -> Offer:
    """The ONNX artifact for a runtime that does not read networks. Failures are part of what is said."""
    module = catalog.load("runtimes", runtime, job.plugins).module
    nothing: dict[str, Any] = {}
    if runtime == REFERENCE or not module.TOLERANCE:
        return Offer(runtime=runtime, artifact=artifact, conversion=nothing, gate=nothing)
    facts = nothing
    own = artifact.precision in conversion.INTEGER_PRECISIONS and getattr(module, "QUANTIZES_ITSELF", False)
    try:
        made, facts = conversion.converted(store, artifact, runtime, job.plugins)
        gate = _gate(job, store, artifact, made, runtime, module.TOLERANCE[artifact.precision], own)
    except CompressError as error:
        return Offer(
            runtime=runtime, artifact=artifact, conversion=facts, gate=nothing, failed=conversion.failure_of(error)
        )
    if gate["why"] and not own and judge.clips_here(artifact):
        gate["why"] += "; sums of int8 products may be clipped on this CPU, which int8_auto's weights prevent"
    if gate["why"]:
        say(f"  {artifact.stage} in {runtime} is not offered: {gate['why']}")
    failed = Failure(gate["why"], "refused") if gate["why"] else Failure()
    return Offer(runtime=runtime, artifact=made, conversion=facts, gate=gate, failed=failed)


def _gate(
    job: Job, store: Store, artifact: Artifact, made: Artifact, runtime: str, tolerance: float, own: bool
) -> dict[str, Any]:  # fmt: skip
    """How `made` answers in the runtime, compared with the ONNX file that it was made from, or, where the runtime
    quantizes by rules of its `own`, with that file in float: it is another rounding of the same network.
    """
    images = artifact_steps.parity_set(job)
    reference = conversion.in_float(store, artifact) if own else artifact
    expected, index = judge.exact(job, store, reference, images)
    got = artifact_steps.answers_step(job, store, made, runtime, images)[index]
    return conversion.gate(expected, got, images.labels[index], artifact.precision, tolerance, in_float=own)


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
