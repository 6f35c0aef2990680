"""The sentence for a release manager, and the gates that it passed or failed."""

from typing import Any

from compress.report import format as fmt
from compress.report.estimates import Estimate
from compress.report.rows_accuracy import margin_fraction
from compress.report.rows_cells import teacher_stage
from compress.report.rows_limits import limit_gates, limit_sentence
from compress.report.rows_stages import artifact_at

# A release is never decided on these: their intervals come from too few, too short rounds.
SHORT_TIERS = ("smoke", "quick")
TEACHER = "the teacher"


def _gate(name: str, limit: str, value: str, status: str) -> dict[str, str]:
    return {"name": name, "limit": limit, "value": value, "status": status}


def _accuracy_gate(row: dict[str, Any] | None, margin: float) -> dict[str, str]:
    limit = f"at most {100 * margin:g} point{'' if margin == 0.01 else 's'} below the teacher"
    if row is None or row["difference_fraction"]["value"] is None:
        why = row["difference_fraction"]["reason"] if row else "the shipped artifact was not evaluated"
        return _gate("accuracy", limit, fmt.absent(why), "inconclusive")
    status = {"kept": "pass", "lost": "fail"}.get(row["verdict"], "inconclusive")
    value = f"{row['verdict']}: {fmt.points_interval(row['difference_fraction'])}"
    if row["more_images"]:
        value += f"; about {fmt.about(row['more_images'])} more images would settle it"
    return _gate("accuracy", limit, value, status)


def _speed_gate(speedup: Estimate | None, other: str) -> dict[str, str]:
    limit = f"not slower than {other} in the same runtime"
    if speedup is None or speedup["value"] is None:
        why = speedup["reason"] if speedup else "the shipped artifact was not timed"
        return _gate("latency", limit, fmt.absent(why), "inconclusive")
    status = {"slower": "fail", "inconclusive": "inconclusive"}.get(speedup["verdict"], "pass")
    return _gate("latency", limit, f"{speedup['verdict']}: {fmt.ratio_interval(speedup)}", status)


def _not_valid(cells: list[dict[str, Any]]) -> list[str]:
    """Which cells' rounds are not valid, and why."""
    broken = {c["cell"]: [f["text"] for f in c["flags"] if f["severity"] == "invalid"] for c in cells}
    return [f"{cell} is not valid: {'; '.join(texts)}" for cell, texts in broken.items() if texts]


def _believed(gate: dict[str, str], why: list[str]) -> dict[str, str]:
    """A gate on a ratio of latencies, which nothing decides where the rounds of one of its cells are not valid."""
    if not why or gate["status"] not in ("pass", "fail"):
        return gate
    return {**gate, "status": "inconclusive", "value": f"{gate['value']}; {'; '.join(why)}"}


def _size_gate(ratio: Estimate, other: str) -> dict[str, str]:
    limit = f"smaller than {other}'s file" if other == TEACHER else f"smaller than {other}"
    if ratio["value"] is None:
        return _gate("size", limit, fmt.absent(ratio["reason"]), "inconclusive")
    return _gate("size", limit, _size_words(ratio), "pass" if ratio["value"] > 1 else "fail")


def _aa_gate(aa: dict[str, Any]) -> dict[str, str]:
    limit = "the same bytes measured twice agree"
    if aa["value"] is None:
        return _gate("A/A control", limit, fmt.absent(aa["reason"]), "inconclusive")
    status = {"ok": "pass", "invalid": "invalid"}.get(aa["verdict"], "inconclusive")
    return _gate("A/A control", limit, f"{aa['verdict']}: {fmt.ratio_interval(aa)}", status)


def _tier_gate(tier: str) -> dict[str, str]:
    limit = "long enough to decide a release"
    if tier in SHORT_TIERS:
        return _gate("benchmark tier", limit, f"{tier}: a first look; use standard or rigorous", "inconclusive")
    return _gate("benchmark tier", limit, tier or fmt.absent("no tier was named"), "pass" if tier else "inconclusive")


def _status(gates: list[dict[str, str]]) -> str:
    found = {gate["status"] for gate in gates}
    return next((s for s in ("invalid", "fail", "inconclusive") if s in found), "pass")


def _size_words(ratio: Estimate) -> str:
    if ratio["value"] >= 1:
        return f"{fmt.ratio(ratio['value'])} smaller"
    return f"{fmt.ratio(1 / ratio['value'])} larger"


def _speed_words(speedup: Estimate, other: str) -> str:
    bounds = fmt.ratio_interval(speedup)
    number, _, interval = bounds.partition(" ")
    word = {
        "faster": f"{number} faster {interval} than",
        "slower": f"slower than ({number} the speed of, {interval.strip('()')})",
        "no difference": f"as fast as (ratio {bounds})",
    }
    said = word.get(speedup["verdict"], f"not clearly faster or slower (ratio {bounds}) than")
    return f"{said} {other} in the same runtime"


def _accuracy_words(row: dict[str, Any] | None) -> str:
    if row is None:
        return "its top-1 was " + fmt.absent("the shipped artifact was not evaluated")
    if row["top1_fraction"]["value"] is None:
        return f"its top-1 was {fmt.percent_interval(row['top1_fraction'])}"
    top1, difference = fmt.percent_interval(row["top1_fraction"]), row["difference_fraction"]
    if difference["value"] is None:
        return f"its top-1 is {top1}"
    return f"its top-1 is {top1}, {fmt.points_interval(difference)} against the teacher"


def _sentence(
    name: str, other: str, cell: dict[str, Any] | None, size: Estimate, row: dict[str, Any] | None, judged: bool,
    valid: bool,
) -> str:  # fmt: skip
    """`judged`: whether accuracies were asked for; `valid`: whether the rounds can be believed."""
    top1 = [_accuracy_words(row)] if judged else []
    smaller = [] if size["value"] is None else [_size_words(size)]
    if cell and cell["speedup_same_runtime"]["value"] is not None:
        where = f"{name} on {cell['runtime']} ({fmt.threads(cell['threads'])})"
        faster = _speed_words(cell["speedup_same_runtime"], other) + ("" if valid else ", by rounds that are not valid")
        compared = ", ".join([faster, *smaller])
        return f"{where} is {', and '.join([compared, *top1])}."
    why = cell["speedup_same_runtime"]["reason"] if cell else "the shipped artifact was not timed"
    rest = ", and ".join([*(f"it is {words}" for words in smaller), *top1])
    return f"The speed-up of {name} was {fmt.absent(why)}{'; ' * bool(rest)}{rest}."


def _alone(name: str, cell: dict[str, Any] | None) -> str:
    """The sentence of a single file, which there is nothing to compare with."""
    if cell is None or cell["latency_ns"]["value"] is None:
        return f"The latency of {name} was {fmt.absent(cell['latency_ns']['reason'] if cell else 'it was not timed')}."
    where = f"{name} on {cell['runtime']} ({fmt.threads(cell['threads'])})"
    images = "" if cell["batch"] == 1 else f" of {cell['batch']} images"
    return f"{where} takes {fmt.latency_interval(cell['latency_ns'])} for one query{images}."


def shipped_name(facts: dict[str, Any]) -> str:
    artifact = artifact_at(facts, facts["shipped"])
    return (artifact["file"] if artifact else "") or facts["shipped"]


def verdict(
    facts: dict[str, Any],
    cells: list[dict[str, Any]],
    cell: dict[str, Any] | None,
    accuracy: dict[str, Any] | None,
    aa: dict[str, Any],
    size: Estimate,
) -> dict[str, Any]:
    """Of the primary `cell`, one of `cells`: `sentence`, `status` (pass, fail, inconclusive or invalid), `gates`, and
    `reasons` (gates not passed).
    """
    against = cell["speedup_same_runtime"].get("against") if cell else None
    doubts = _not_valid([c for c in cells if c is cell or c["cell"] == against])
    limits = limit_gates(facts, cell)
    first, name, judged = teacher_stage(facts), shipped_name(facts), bool(facts["accuracy"])
    other = TEACHER if facts["stages"] else (artifact_at(facts, first) or {"file": first})["file"]
    if other == name and first != facts["shipped"]:  # files of one name in two folders: their stages differ
        name, other = facts["shipped"], first
    compared = [
        *([_accuracy_gate(accuracy, margin_fraction(facts))] if judged else []),
        _believed(_speed_gate(cell["speedup_same_runtime"] if cell else None, other), doubts),
        _size_gate(size, other),
    ]
    alone = facts["shipped"] == first
    gates = [*([] if alone else compared), *limits, _aa_gate(aa), _tier_gate(facts["run"]["tier"])]
    sentence = _alone(name, cell) if alone else _sentence(name, other, cell, size, accuracy, judged, not doubts)
    return {
        "sentence": sentence + limit_sentence(limits),
        "status": _status(gates),
        "gates": gates,
        "reasons": [f"{g['name']}: {g['value']}" for g in gates if g["status"] != "pass"],
    }
