"""The ladder of int8: repairs in order of their price, until the file costs no more than `max_drop` on `select`.

Each rung is tried on top of those that helped. One that is no better on `select` than the best file so far is taken
back; all are recorded with what they cost and gained. A file is good enough when its loss is within `max_drop` with
95 % confidence: one that seems to be inside by the luck of few images is no reason to stop. Where there are too few
images for any file to be that sure, the loss itself decides, and it is said. Every file is a step of its own in the
store, so a ladder that was stopped goes on, and one that is climbed again costs nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from compress import (
    batchnorm,
    calibrate,
    catalog,
    evaluate,
    int8_steps,
    onnx_torch,
    targets,
    training_steps,
)
from compress.errors import UsageError
from compress.int8_steps import How, Place, Tried
from compress.plan import Job
from compress.progress import say
from compress.store import Step, Store
from compress.types import Artifact


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One repair: `tries` gives what to make of the best so far, one or several; `left_out` why it cannot, or "";
    `layers` what it saw of each layer.
    """

    name: str
    tries: Callable[[Place, How], Iterator[How]]
    left_out: Callable[[Place, How], str] = lambda place, how: ""
    layers: Callable[[Place, How], dict[str, Any]] | None = None


def climb(
    job: Job, store: Store, parent: Artifact, network: Step | None, teachers: tuple[Step, ...] = ()
) -> tuple[Tried, list[dict[str, Any]]]:
    """The best file that was found, and a record of each rung that was reached.

    `network` is what `parent` was exported from; without it, the rungs that change or train a network are left out.
    Raises UsageError where none is left.
    """
    place = Place(job=job, store=store, parent=parent, teachers=teachers)
    how, records = How(parent=parent, network=network, knobs=_first_knobs(job)), []
    best: Tried | None = None
    assert job.quantizer
    names = getattr(job.quantizer.module, "RUNGS", [rung.name for rung in RUNGS])
    for rung in (rung for rung in RUNGS if rung.name in names):
        record: dict[str, Any] = {
            "rung": rung.name,
            "tried": [],
            "left_out": rung.left_out(place, how),
            "helped": False,
        }
        records.append(record)
        if record["left_out"]:
            say(f"  {rung.name}: left out, since {record['left_out']}")
            continue
        if rung.layers:
            record["layers"] = rung.layers(place, how)
        for each in rung.tries(place, how):
            one = int8_steps.made(place, each)
            better = best is None or one.better_than(best)
            record["tried"].append(_row(place, one, better=better))
            if better:
                best, record["helped"] = one, True
            if _good_enough(best, job):
                break
        assert best
        how, lost = best.how, evaluate.drop_points(best.counts)
        say(f"  {rung.name}: {'' if record['helped'] else 'no better; '}{lost:.2f} points lost on select")
        if _good_enough(best, job):
            break
    if best is None:
        raise UsageError(
            f"`{job.quantizer.name}` has no rung that can be tried here: {records[-1]['left_out']}",
            code="E-LADDER-RUNG",
            hint="take --quantize int8_auto, or run the whole chain with `compress run`",
        )
    for doubt in doubts(best, job):
        say(f"  {doubt}")
    return best, records


def _first_knobs(job: Job) -> dict[str, Any]:
    """What the target and the quantizer set before the first rung, where it is not the default of int8."""
    assert job.quantizer
    config = catalog.load("quantizers", job.quantizer.module.FIRST).module.Config()
    own = dataclasses.asdict(job.quantizer.config)
    wanted = {**targets.find(job.recipe.target).knobs(), **own}
    return {name: value for name, value in wanted.items() if getattr(config, name, value) != value}


def _good_enough(best: Tried | None, job: Job) -> bool:
    if best is None:
        return False
    if doubts(best, job):
        return evaluate.drop_points(best.counts) <= job.recipe.max_drop
    return evaluate.most_drop_points(best.counts) <= job.recipe.max_drop


def doubts(best: Tried, job: Job) -> list[str]:
    """Why no file could be shown to be good enough with confidence, and what decides instead; else nothing."""
    images, allowed = best.counts["n"], job.recipe.max_drop
    fewest = evaluate.fewest_images(allowed)
    if images >= fewest:
        return []
    enough = f"{fewest:,} would do" if allowed else "no number of images would"
    return [f"{images:,} images of select cannot show with confidence that {allowed:g} points are lost at most "
            f"({enough}): the ladder stopped by what was lost on them"]  # fmt: skip


def describe(records: list[dict[str, Any]]) -> str:
    """Which rungs made the file, in words for a table."""
    return "int8 by " + ", ".join(record["rung"] for record in records if record["helped"])


def _row(place: Place, tried: Tried, *, better: bool) -> dict[str, Any]:
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
        "seconds": round(tried.seconds, 3),
        "trained_epochs": tried.step.facts.get("trained_epochs", 0),
        "emulated": counts["emulated"],
        "better": better,
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
    yield int8_steps.reestimated(place, how)


def _equalised(place: Place, how: How) -> Iterator[How]:
    yield how.but(equalise=True)


def _corrected(place: Place, how: How) -> Iterator[How]:
    yield how.but(correct_bias=True)


def _cannot_saturate(place: Place, how: How) -> str:
    target = targets.find(place.job.recipe.target)
    return f"products of int8 do not saturate on {target.name}" if target.saturates is False else ""


def _without_saturation(place: Place, how: How) -> Iterator[How]:
    if not how.knobs.get("reduce_range"):
        yield how.but(reduce_range=True)
    yield how.but(weights="uint8", reduce_range=False)


def _no_layers_may_stay(place: Place, how: How) -> str:
    return "" if place.knobs.most_float else "most_float is 0"


def _layers_in_float(place: Place, how: How) -> Iterator[How]:
    order = [row["layer"] for row in int8_steps.sensitivity(place, how)["layers"]]
    count = 1
    while count <= min(place.knobs.most_float, len(order)):
        yield how.but(keep_float="+".join(order[:count]))
        count *= 2


def _rounded(place: Place, how: How) -> Iterator[How]:
    yield how.but(rounding="adaptive")


def _cannot_train(place: Place, how: How) -> str:
    import onnx

    if how.network is None:
        return "it trains, and there is only a file"
    if not place.knobs.qat_share:
        return "qat_share is 0"
    return onnx_torch.unreadable(onnx.load(how.parent.path))


def _trained(place: Place, how: How) -> Iterator[How]:
    # training does not see what kernels clip: its weights have to be of the kind that cannot saturate
    if not _cannot_saturate(place, how) and how.knobs.get("weights") != "uint8":
        how = how.but(reduce_range=True)
    yield dataclasses.replace(how, trained=True)


RUNGS = (
    Rung(name="per-channel min-max", tries=_as_it_is),
    Rung(name="better calibrator", tries=_calibrators),
    Rung(name="BatchNorm re-estimation", tries=_reestimated, left_out=_no_batchnorm),
    Rung(name="cross-layer equalisation", tries=_equalised),
    Rung(name="bias correction", tries=_corrected),
    Rung(name="weights that cannot saturate", tries=_without_saturation, left_out=_cannot_saturate),
    Rung(
        name="sensitive layers in float",
        tries=_layers_in_float,
        left_out=_no_layers_may_stay,
        layers=int8_steps.sensitivity,
    ),
    Rung(name="adaptive rounding", tries=_rounded),
    Rung(name="quantization-aware training", tries=_trained, left_out=_cannot_train),
)
