"""Two reports side by side: what became faster, smaller or better from one to the other, as far as that can be said."""

import math
from typing import Any

from compress import stats
from compress.report.estimates import Estimate, measured, missing
from compress.report.rows_accuracy import unpaired_difference

# Where these are the same, latencies of two sessions may be compared as they are.
MACHINE = ("cpu_model", "isa", "cores_allowed", "cpu_quota", "gpu")


def compare_reports(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """`environment` (field, before, after), `warnings`, and rows by stage: `latency`, `accuracy`, `size`.

    Both are documents of `report.load`. Each row's `change` is an Estimate with a verdict. A latency is compared as the
    speed-up over the same teacher in the same runtime, which another machine or another hour changes least; where
    there is no such speed-up, and only on one machine, as it is.
    """
    machine = _differences(before["environment"], after["environment"])
    other = [field for field, *_ in machine if field in MACHINE]
    same_images = before["dataset"]["digest"] == after["dataset"]["digest"]
    same_teacher = _teacher_digest(before) == _teacher_digest(after)
    return {
        "before": before["run"]["name"],
        "after": after["run"]["name"],
        "environment": machine,
        "warnings": _warnings(before, after, other, same_images, same_teacher),
        "latency": _latency(before, after, not other, same_teacher),
        "accuracy": _accuracy(before, after, same_images),
        "size": _sizes(before, after),
    }


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, before, after) of each fact of the two machines that differs, packages by their names."""
    aside = ("packages", "commit")
    flat = [{**{k: v for k, v in e.items() if k not in aside}, **e["packages"]} for e in (before, after)]
    names = [name for name in dict.fromkeys((*flat[0], *flat[1])) if flat[0].get(name) != flat[1].get(name)]
    return [(name, flat[0].get(name), flat[1].get(name)) for name in names]


def _warnings(
    before: dict[str, Any], after: dict[str, Any], other: list[str], same_images: bool, same_teacher: bool
) -> list[str]:
    texts = []
    if other:
        of = ", ".join(other)
        texts.append(f"measured on different machines ({of}): latencies are not compared as they are")
    if not same_teacher:
        texts.append("the teachers are different files: speed-ups over them are not compared")
    if not same_images:
        texts.append("judged on different images: top-1 is not compared")
    for name, document in (("before", before), ("after", after)):
        derived = document["derived"]
        if derived["aa"]["verdict"] == "invalid":
            texts.append(f"{name}: the A/A control is invalid, the machine was too noisy for its latencies")
        if derived["short_tier"]:
            texts.append(f"{name}: measured in the {derived['short_tier']} tier, a first look")
    return texts


def _teacher_digest(document: dict[str, Any]) -> str:
    name = document["derived"]["teacher"]
    return next((a["digest"] for a in document["artifacts"] if a["stage"] == name), "")


def _key(cell: dict[str, Any]) -> tuple:
    return cell["stage"], cell["runtime"], cell["threads"], cell["batch"]


def _latency(
    before: dict[str, Any], after: dict[str, Any], same_machine: bool, same_teacher: bool
) -> list[dict[str, Any]]:
    old = {_key(c): c for c in before["derived"]["cells"] if not c["control"]}
    new = {_key(c): c for c in after["derived"]["cells"] if not c["control"]}
    rows = []
    for key in dict.fromkeys((*old, *new)):
        stage, runtime, threads, batch = key
        change, by = _speed(old.get(key), new.get(key), same_machine, same_teacher)
        verdict = "" if change["low"] is None else stats.speed_verdict(change["low"], change["high"])
        rows.append({
            "stage": stage, "runtime": runtime, "threads": threads, "batch": batch, "change": change, "by": by,
            "verdict": verdict, "before": _latency_of(old.get(key)), "after": _latency_of(new.get(key)),
        })  # fmt: skip
    return rows


def _latency_of(cell: dict[str, Any] | None) -> Estimate:
    return missing("no such cell") if cell is None else cell["latency_ns"]


def _speed(
    old: dict[str, Any] | None, new: dict[str, Any] | None, same_machine: bool, same_teacher: bool
) -> tuple[Estimate, str]:  # fmt: skip
    """How many times faster `new` is than `old`, and by what it is told: `speed-up` or `latency`."""
    if old is None or new is None:
        return missing(f"only measured {'after' if old is None else 'before'}"), ""
    pairs = [(c["speedup_same_runtime"], c["latency_ns"]) for c in (old, new)]
    if same_teacher and all(ratio["low"] is not None for ratio, _ in pairs):
        return _quotient(pairs[1][0], pairs[0][0]), "speed-up"
    if not same_machine:
        return missing("no speed-up over the same teacher, and different machines"), ""
    if any(latency["low"] is None for _, latency in pairs):
        return missing(next(latency["reason"] for _, latency in pairs if latency["low"] is None)), ""
    return _quotient(pairs[0][1], pairs[1][1]), "latency"


def _quotient(above: Estimate, below: Estimate) -> Estimate:
    """above / below of two estimates from sessions of their own: the widths of their logarithms add in quadrature."""
    logs = [tuple(math.log(e[k]) for k in ("value", "low", "high")) for e in (above, below)]
    (a, a_low, a_high), (b, b_low, b_high) = logs
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return measured(math.exp(a - b), math.exp(low), math.exp(high))


def _accuracy(before: dict[str, Any], after: dict[str, Any], same_images: bool) -> list[dict[str, Any]]:
    old, new = (
        {(r["stage"], r["runtime"]): r for r in document["derived"]["accuracy"]} for document in (before, after)
    )
    rows = []
    for key in dict.fromkeys((*old, *new)):
        pair = [side[key]["top1_fraction"] if key in side else missing("no such row") for side in (old, new)]
        if not same_images:
            change = missing("judged on different images")
        elif None in (pair[0]["value"], pair[1]["value"]):
            change = missing(next(each["reason"] for each in pair if each["value"] is None))
        else:
            change = unpaired_difference(pair[1], pair[0])
        verdict = "" if change["value"] is None else _better(change)
        rows.append({
            "stage": key[0], "runtime": key[1], "before": pair[0], "after": pair[1], "change": change,
            "verdict": verdict,
        })  # fmt: skip
    return rows


def _better(change: Estimate) -> str:
    """In words, from an interval that takes the two for independent, which is wider than it need be."""
    if change["value"] == 0 or (change["low"] <= 0 <= change["high"]):
        return "no difference shown"
    return "better" if change["low"] > 0 else "worse"


def _sizes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    old, new = ({a["stage"]: a for a in document["artifacts"]} for document in (before, after))
    return [
        {
            "stage": stage, "before": old[stage]["size_bytes"], "after": new[stage]["size_bytes"],
            "same_file": old[stage]["digest"] == new[stage]["digest"],
        }
        for stage in old
        if stage in new
    ]  # fmt: skip
