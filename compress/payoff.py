"""Whether a stage pays: its file against its parent's in the runtime that was asked for, paired by round."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from compress import environment, measuring, screen, stats, targets
from compress.errors import Unmeasurable
from compress.plan import Job, plugins_digest
from compress.progress import say
from compress.store import Store
from compress.types import Artifact

VERSIONS = {"speed": 1}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a parent's file and of its child's, as `words` says: `bytes`, or what is left after compression."""

    parent: int
    child: int
    words: str = "bytes"


def asked_runtime(job: Job) -> str:
    """The first of the recipe's runtimes that reads ONNX files and works here. Raises what `measuring` raises."""
    return measuring.onnx_runtime(job.recipe.runtimes, job.plugins)


def round_medians(job: Job, store: Store, artifacts: list[Artifact], runtime: str) -> dict[str, list[float]]:
    """Median latency in ns of each artifact (by stage), round by round, and of the first once more (the control)."""
    recipe = job.recipe
    measurements = measuring.latency(
        [(artifact, runtime) for artifact in artifacts], recipe.threads[:1], job.splits.select.images, recipe.tier,
        recipe.seed, store, job.plugins,
    )  # fmt: skip
    failed = next((m for m in measurements if m.failure), None)
    if failed:
        raise Unmeasurable(
            f"{failed.artifact} could not be measured in {runtime}: {failed.failure}", code="E-RUNTIME-FAILED"
        )
    return {
        m.artifact + (measuring.TWIN if measuring.twin_of(m) else ""): [
            float(np.median(visit["samples_ns"])) for visit in sorted(m.visits, key=lambda visit: visit["round"])
        ]
        for m in measurements
    }


def speedup(job: Job, store: Store, parent: Artifact, child: Artifact) -> dict[str, Any]:
    """How many times faster `child` is than `parent` where it is asked for: `ratio`, `low`, `high`, `runtime`, and the
    verdict on the machine by the A/A control, `control`.
    """
    runtime = asked_runtime(job)
    parts = {
        "version": VERSIONS["speed"],
        "files": [parent.digest, child.digest],
        "how": [runtime, job.recipe.threads[0], job.recipe.tier, job.splits.select.digest],
        "plugins": plugins_digest(job),
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Any) -> dict[str, Any]:
        medians = round_medians(job, store, [parent, child], runtime)
        ratio, low, high = stats.paired_ratio(medians[parent.stage], medians[child.stage])
        _, *control = stats.paired_ratio(medians[parent.stage], medians[parent.stage + measuring.TWIN])
        return {
            "ratio": ratio, "low": low, "high": high, "runtime": runtime, "control": stats.aa_verdict(*control),
        }  # fmt: skip

    return store.step("speed", parts, make, say).facts


def by_size(job: Job, parent: str, sizes: Sizes) -> str:
    """The figures, where the child meets the size that was asked for and its parent does not; else ""."""
    limit = screen.limits_of(job.recipe).size_bytes
    if not limit or not sizes.child <= limit < sizes.parent:
        return ""
    return f"has {sizes.child:,} {sizes.words}, of {limit:,} allowed; {parent} has {sizes.parent:,}"


def worth(
    job: Job, store: Store, parent: Artifact, child: Artifact, *, sizes: Sizes, least: float, hint: str = ""
) -> tuple[bool, str]:
    """Whether the smaller file is kept, and the figures: for being at least `least` times as fast, or since it meets
    the size that was asked for and its parent does not. `hint` ends the sentence of a refusal.
    """
    if asked := by_size(job, parent.stage, sizes):
        return True, asked
    if not least:
        return True, ""
    try:
        found = speedup(job, store, parent, child)
    except Unmeasurable as error:
        return False, f"could not be measured: {error.message}"
    figures = f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f}) in {found['runtime']}"
    if found["control"] == "invalid":
        return False, f"is {figures} of {parent.stage} on a machine that finds a difference between equal files"
    if found["ratio"] >= least and found["low"] > 1:
        return True, f"is {figures} faster than {parent.stage}"
    slower = "is slower than" if found["high"] < 1 else "makes no difference in time to"
    wanted = f"is not {least:g} times as fast as" if least > 1 else slower
    return False, f"{wanted} {parent.stage}: {figures}{hint}"


def of_quantized(
    job: Job, store: Store, parent: Artifact, child: Artifact, notes: list[str], advice: str = ""
) -> tuple[bool, str]:  # fmt: skip
    """Whether a quantized file pays on the job's target, and the figures. One that is taken for its bytes alone has to
    be smaller. `notes` of its kernels explain a refusal in time, which ends with `advice`.
    """
    assert job.quantizer
    target, here = targets.find(job.recipe.target), environment.capture()
    sizes = Sizes(parent=parent.size_bytes, child=child.size_bytes)
    if getattr(job.quantizer.module, "FOR_BYTES", False):
        return sizes.child < sizes.parent, f"has {sizes.child:,} bytes, {parent.stage} has {sizes.parent:,}"
    if target.no_gain:
        limit = by_size(job, parent.stage, sizes)
        return bool(limit), limit or f"is not faster on {target.name}: {target.no_gain}"
    if not target.is_here(here):
        return True, f"has a speed on {target.name} that cannot be measured on this machine"
    kernels = "".join(f"; {note}" for note in notes[:1])
    kernels += "; this CPU has no VNNI" if environment.int8_saturates(here) else ""
    return worth(job, store, parent, child, sizes=sizes, least=1.0, hint=kernels + advice)
