"""The ladder of int8: repairs in order of their price, until the file costs no more than `max_drop` on `select`.

Each rung is tried on top of those that helped. One that is no better on `select` than the best file so far (by right
answers, of equals by those that are the float file's) is taken back; all are recorded with what they cost and gained.
Every file is a step of its own in the store, so a ladder that was stopped goes on, and one that is climbed again costs
nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import artifact_steps, batchnorm, calibrate, catalog, environment, evaluate, qdq, training_steps
from compress import network as net
from compress.config import format_spec
from compress.environment import versions
from compress.plan import Job, plugins_digest
from compress.progress import counter, say
from compress.store import Step, Store
from compress.types import Artifact

VERSIONS = {"reestimated": 1, "layers": 1}
SENSITIVITY_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class How:
    """What an int8 file is made of: the float file, the network behind it (if there is one), the quantizer's knobs."""

    parent: Artifact
    network: Step | None
    knobs: dict[str, Any] = field(default_factory=dict)

    def but(self, **knobs: Any) -> "How":
        return dataclasses.replace(self, knobs={**self.knobs, **knobs})


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An int8 file, how it was made, and its counts on `select` against the float file."""

    how: How
    step: Step
    artifact: Artifact
    counts: dict[str, Any]

    @property
    def worth(self) -> tuple[int, int]:
        """Right answers, and of equals those that are the float file's: few images tell by these what they cannot by
        the others.
        """
        return self.counts["correct"], self.counts["agree"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the ladder stands: the job, its store, and the float file that int8 is compared with."""

    job: Job
    store: Store
    parent: Artifact

    @property
    def knobs(self) -> Any:
        assert self.job.quantizer
        return self.job.quantizer.config


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One repair: `tries` gives what to make of the best so far, one or several; `left_out` why it cannot, or "";
    `layers` what it saw of each layer.
    """

    name: str
    tries: Callable[[Place, How], Iterator[How]]
    left_out: Callable[[Place, How], str] = lambda place, how: ""
    layers: Callable[[Place, How], dict[str, Any]] | None = None


def climb(job: Job, store: Store, parent: Artifact, network: Step | None) -> tuple[Tried, list[dict[str, Any]]]:
    """The best file that was found, and a record of each rung that was reached.

    `network` is what `parent` was exported from; without it, the rungs that change a network are left out.
    """
    place = Place(job=job, store=store, parent=parent)
    how, best, records = How(parent=parent, network=network), None, []
    for rung in RUNGS:
        record = {"rung": rung.name, "tried": [], "left_out": rung.left_out(place, how), "helped": False}
        records.append(record)
        if record["left_out"]:
            say(f"  {rung.name}: left out, since {record['left_out']}")
            continue
        if rung.layers:
            record["layers"] = rung.layers(place, how)
        for each in rung.tries(place, how):
            one = _made(place, each)
            record["tried"].append(_row(place, one))
            if best is None or one.worth > best.worth:
                best, record["helped"] = one, True
            if evaluate.drop_points(best.counts) <= job.recipe.max_drop:
                break
        assert best
        how, lost = best.how, evaluate.drop_points(best.counts)
        say(f"  {rung.name}: {'' if record['helped'] else 'no better; '}{lost:.2f} points lost on select")
        if lost <= job.recipe.max_drop:
            break
    assert best
    return best, records


def describe(records: list[dict[str, Any]]) -> str:
    """Which rungs made the file, in words for a table."""
    return "int8 by " + ", ".join(record["rung"] for record in records if record["helped"])


def _made(place: Place, how: How) -> Tried:
    job, store, select = place.job, place.store, place.job.splits.select
    entry = _quantizer(job, how)
    step = artifact_steps.quantized(store, entry, how.parent, job.splits.calibrate, plugins_digest(job))
    path, precision = step.folder / "model.onnx", entry.module.PRECISION
    artifact = artifact_steps.onnx_artifact(job, precision, path, precision, step.facts)
    logits = artifact_steps.answers_step(job, store, artifact, "ort_cpu", select)
    base = artifact_steps.answers_step(job, store, place.parent, "ort_cpu", select)
    return Tried(how=how, step=step, artifact=artifact, counts=evaluate.counts(logits, select.labels, base))


def _quantizer(job: Job, how: How) -> catalog.Entry:
    """The quantizer that the ladder begins with, its knobs turned."""
    assert job.quantizer
    name = job.quantizer.module.FIRST
    config = catalog.load("quantizers", name).module.Config(**how.knobs)
    return catalog.load("quantizers", format_spec(name, config))


def _row(place: Place, tried: Tried) -> dict[str, Any]:
    counts = tried.counts
    return {
        "knobs": tried.how.knobs,
        "reestimated": tried.how.parent.digest != place.parent.digest,
        "n": counts["n"],
        "correct": counts["correct"],
        "parent_correct": counts["baseline_correct"],
        "agree": counts["agree"],
        "parent_only": counts["baseline_only"],
        "this_only": counts["this_only"],
        "size_bytes": tried.artifact.size_bytes,
        "seconds": tried.step.facts["seconds"],
        "layers": tried.how.knobs.get("keep_float", "").split("+") if tried.how.knobs.get("keep_float") else [],
    }


def _as_it_is(place: Place, how: How) -> Iterator[How]:
    yield how


def _calibrators(place: Place, how: How) -> Iterator[How]:
    for rule in calibrate.RULES[1:]:
        yield how.but(calibrator=rule)


def _no_batchnorm(place: Place, how: How) -> str:
    if how.network is None:
        return "it needs the network, and there is only a file"
    network = training_steps.trained(place.job, how.network)
    return "" if batchnorm.norms_of(network) else "the network has no BatchNorm"


def _reestimated(place: Place, how: How) -> Iterator[How]:
    """Weights on the grid of int8, then BatchNorm's statistics anew: what rounding moves, the folding takes back."""
    job, images = place.job, place.job.splits.calibrate
    assert how.network
    source = how.network
    parts = {
        "version": VERSIONS["reestimated"],
        "network": source.key,
        "images": images.digest,
        "plugins": plugins_digest(job),
        "versions": versions("torch"),
    }

    def make(folder: Path) -> dict[str, Any]:
        network = training_steps.trained(job, source)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(on_grid(module.weight))
        batchnorm.reestimate(network, images.images)
        net.save(network, folder)
        return {}

    step = place.store.step("reestimated", parts, make, say)
    exported = artifact_steps.export_step(job, place.store, "re-estimated", step)
    artifact = artifact_steps.onnx_artifact(
        job, "re-estimated", exported.folder / "model.onnx", "float32", exported.facts
    )
    yield dataclasses.replace(how, parent=artifact, network=step)


def on_grid(weight: torch.Tensor) -> torch.Tensor:
    """The weight `[O,...]` as int8 holds it: rounded to 1/127 of the largest of each output channel."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round() * scale


def _equalised(place: Place, how: How) -> Iterator[How]:
    yield how.but(equalise=True)


def _corrected(place: Place, how: How) -> Iterator[How]:
    yield how.but(correct_bias=True)


def _cannot_saturate(place: Place, how: How) -> str:
    return "" if environment.int8_saturates(environment.capture()) else "products of int8 do not saturate on this CPU"


def _without_saturation(place: Place, how: How) -> Iterator[How]:
    yield how.but(reduce_range=True)
    yield how.but(weights="uint8")


def _no_layers_may_stay(place: Place, how: How) -> str:
    return "" if place.knobs.most_float else "most_float is 0"


def _layers_in_float(place: Place, how: How) -> Iterator[How]:
    order = [row["layer"] for row in sensitivity(place, how)["layers"]]
    count = 1
    while count <= min(place.knobs.most_float, len(order)):
        yield how.but(keep_float="+".join(order[:count]))
        count *= 2


def sensitivity(place: Place, how: How) -> dict[str, Any]:
    """What leaving one layer in float makes of the file's error: `layers`, the most sensitive first, and `noise_share`
    with every layer in int8.

    The noise share is the mean squared difference of the logits from the float file's over their variance, on train
    images.
    """
    job, entry = place.job, _quantizer(place.job, how)
    parts = {
        "version": VERSIONS["layers"],
        "parent": how.parent.digest,
        "quantizer": entry.spec,
        "images": job.splits.calibrate.digest,
        "versions": versions("onnxruntime", "onnxruntime-gpu", "onnx"),
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        images = artifact_steps.sample(job.splits.calibrate, SENSITIVITY_IMAGES)
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


def _rounded(place: Place, how: How) -> Iterator[How]:
    yield how.but(rounding="adaptive", rounding_steps=place.knobs.rounding_steps)


RUNGS = (
    Rung(name="per-channel min-max", tries=_as_it_is),
    Rung(name="better calibrator", tries=_calibrators),
    Rung(name="BatchNorm re-estimation", tries=_reestimated, left_out=_no_batchnorm),
    Rung(name="cross-layer equalisation", tries=_equalised),
    Rung(name="bias correction", tries=_corrected),
    Rung(name="weights that cannot saturate", tries=_without_saturation, left_out=_cannot_saturate),
    Rung(name="sensitive layers in float", tries=_layers_in_float, left_out=_no_layers_may_stay, layers=sensitivity),
    Rung(name="adaptive rounding", tries=_rounded),
)
