"""Steps that make int8 files, and judge them on `select`. Each has a key made of all that its result depends on.

Raise a step's number in VERSIONS when the same inputs would give another result.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import (
    artifact_steps,
    batchnorm,
    calibrate,
    catalog,
    environment,
    evaluate,
    judge,
    qat_steps,
    qdq,
    training_steps,
)
from compress import network as net
from compress.config import format_spec
from compress.environment import versions
from compress.plan import Job, plugins_digest
from compress.progress import counter, say
from compress.store import Step, Store
from compress.types import Artifact

VERSIONS = {"reestimated": 1, "layers": 3}
SENSITIVITY_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class How:
    """What an int8 file is made of: the float file, the network behind it (if there is one), the knobs of the quantizer
    `int8`, and whether it is trained through its rounding.
    """

    parent: Artifact
    network: Step | None
    knobs: dict[str, Any] = field(default_factory=dict)
    trained: bool = False

    def but(self, **knobs: Any) -> "How":
        return dataclasses.replace(self, knobs={**self.knobs, **knobs})


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An int8 file, how it was made, and its counts on `select` against the float file."""

    how: How
    step: Step
    artifact: Artifact
    counts: dict[str, Any]
    seconds: float = 0.0  # of making the file from its float one

    def better_than(self, other: "Tried") -> bool:
        """By right answers; where these differ by no more than chance, by the answers that are the float file's."""
        gained = self.counts["correct"] - other.counts["correct"]
        if abs(gained) > evaluate.noise_images(self.counts):
            return gained > 0
        return self.counts["agree"] > other.counts["agree"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where int8 is made: the job, its store, the float file that is compared with, and the steps of the teachers."""

    job: Job
    store: Store
    parent: Artifact
    teachers: tuple[Step, ...] = ()

    @property
    def knobs(self) -> Any:
        assert self.job.quantizer
        return self.job.quantizer.config


def made(place: Place, how: How) -> Tried:
    """The int8 file, from the store if it is there, judged on `select` as the target computes it."""
    job, store = place.job, place.store
    entry = quantizer(job, how)
    step = artifact_steps.quantized(store, entry, how.parent, job.splits.calibrate, plugins_digest(job))
    precision, seconds = entry.module.PRECISION, step.facts["seconds"]
    if how.trained:

        def prepare(path: Path) -> None:
            entry.module.prepare(entry.config, how.parent.path, path, job.splits.calibrate.images)

        step = qat_steps.trained(job, store, step, how.parent, place.parent, place.teachers, prepare)
        seconds += step.facts["seconds"]
    artifact = artifact_steps.onnx_artifact(job, precision, step.folder / "model.onnx", precision, step.facts)
    counts = judge.counts(job, store, artifact, place.parent, job.splits.select)
    return Tried(how=how, step=step, artifact=artifact, counts=counts, seconds=seconds)


def quantizer(job: Job, how: How) -> catalog.Entry:
    """The quantizer that the ladder begins with, its knobs turned."""
    assert job.quantizer
    name = job.quantizer.module.FIRST
    config = catalog.load("quantizers", name).module.Config(**how.knobs)
    return catalog.load("quantizers", format_spec(name, config))


def reestimated(place: Place, how: How) -> How:
    """Weights on the grid of int8, then BatchNorm's statistics anew: what rounding moves, the folding takes back."""
    job, images, source = place.job, place.job.splits.calibrate, how.network
    assert source
    most = 64 if how.knobs.get("reduce_range") else 127
    parts = {
        "version": VERSIONS["reestimated"],
        "network": source.key,
        "grid": most,
        "images": images.digest,
        "plugins": plugins_digest(job),
        "versions": versions("torch"),
    }

    def make(folder: Path) -> dict[str, Any]:
        network = training_steps.trained(job, source)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(on_grid(module.weight, most))
        batchnorm.reestimate(network, images.images)
        net.save(network, folder)
        return {}

    step = place.store.step("reestimated", parts, make, say)
    exported = artifact_steps.export_step(job, place.store, "re-estimated", step)
    path = exported.folder / "model.onnx"
    artifact = artifact_steps.onnx_artifact(job, "re-estimated", path, "float32", exported.facts)
    return dataclasses.replace(how, parent=artifact, network=step)


def on_grid(weight: torch.Tensor, most: int) -> torch.Tensor:
    """The weight `[O,...]` as int8 holds it: rounded to 1/`most` of the largest of each output channel."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / most
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round() * scale


def sensitivity(place: Place, how: How) -> dict[str, Any]:
    """What leaving one layer in float makes of the file's error: `layers`, the most sensitive first, and `noise_share`
    with every layer in int8.

    The noise share is the mean squared difference of the logits from the float file's over their variance, on train
    images.
    """
    job, entry = place.job, quantizer(place.job, how)
    parts = {
        "version": VERSIONS["layers"],
        "parent": how.parent.digest,
        "quantizer": entry.spec,
        "images": job.splits.calibrate.digest,
        "versions": versions("torch", "onnxruntime", "onnxruntime-gpu", "onnx"),
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        images = artifact_steps.sample(job.splits.calibrate, SENSITIVITY_IMAGES).images
        prepared, path = folder / "prepared.onnx", folder / "one.onnx"
        expected = calibrate.answers(how.parent.path, images)
        ranges, scheme, _ = entry.module.ready(entry.config, how.parent.path, prepared, job.splits.calibrate.images)
        names, shares = list(qdq.layers(prepared)), []
        show = counter("sensitivity", "layers")
        for number, kept in enumerate([(), *((name,) for name in names)]):
            qdq.write(prepared, path, ranges, scheme, keep_float=kept)
            difference = calibrate.answers(path, images) - expected
            shares.append(float((difference**2).mean() / expected.var()))
            show(number + 1, len(names) + 1)
        rows = [{"layer": name, "noise_share": share} for name, share in zip(names, shares[1:], strict=True)]
        for leftover in (prepared, path):
            leftover.unlink()
        return {"noise_share": shares[0], "layers": sorted(rows, key=lambda row: row["noise_share"])}

    return place.store.step("layers", parts, make, say).facts
