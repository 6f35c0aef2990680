"""Whether the shipped artifact keeps to the limits that the recipe sets, and how its student was chosen by them."""

from typing import Any

from compress import stats, units
from compress.errors import UsageError
from compress.report import format as fmt
from compress.report.estimates import Estimate, measured, missing
from compress.report.rows_stages import artifact_at


def limit_gates(facts: dict[str, Any], cell: dict[str, Any] | None) -> list[dict[str, str]]:
    """A gate for each limit of the recipe. A latency is judged by the upper end of its interval, and is only called too
    slow where the whole interval is. Raises ValueError for a limit that is none.
    """
    try:
        size = _limit(facts, "max_size", units.size_bytes)
        latency = _limit(facts, "max_latency", units.latency_ns)
    except UsageError as error:
        raise ValueError(error.message) from error
    gates = [size_gate(facts, size)] if size else []
    return gates + ([latency_gate(cell, latency)] if latency else [])


def limit_sentence(gates: list[dict[str, str]]) -> str:
    """` Of what was asked: at most 500 kB, met (312 kB).`, or nothing."""
    words = {"pass": "met", "fail": "not met"}
    parts = [f"{gate['limit']}: {words.get(gate['status'], 'not shown')} ({gate['value']})" for gate in gates]
    return f" Of what was asked, {'; '.join(parts)}." if parts else ""


def _limit(facts: dict[str, Any], key: str, parse: Any) -> float:
    text = facts["recipe"].get(key)
    return parse(str(text), f"`{key}`") if text else 0.0


def size_gate(facts: dict[str, Any], limit: float) -> dict[str, str]:
    """Whether the shipped file has at most `limit` bytes."""
    artifact = artifact_at(facts, facts["shipped"])
    words = f"at most {fmt.size(limit)}"
    if artifact is None or not artifact["size_bytes"]:
        return {"name": "max_size", "limit": words, "value": fmt.absent("no artifact"), "status": "inconclusive"}
    status = "pass" if artifact["size_bytes"] <= limit else "fail"
    return {"name": "max_size", "limit": words, "value": fmt.size(artifact["size_bytes"]), "status": status}


def latency_gate(cell: dict[str, Any] | None, limit: float) -> dict[str, str]:
    """Whether the whole interval of the cell's median is at most `limit` ns, or wholly above."""
    words = f"at most {fmt.latency(limit)} by the upper end of the interval"
    if cell is None or cell["latency_ns"]["value"] is None:
        why = cell["latency_ns"]["reason"] if cell else "the shipped artifact was not timed"
        return {"name": "max_latency", "limit": words, "value": fmt.absent(why), "status": "inconclusive"}
    estimate = cell["latency_ns"]
    value = f"{fmt.latency_interval(estimate)} in {cell['runtime']}"
    return {"name": "max_latency", "limit": words, "value": value, "status": side(estimate, limit)}


def side(estimate: Estimate, limit: float) -> str:
    """`pass` when the whole interval is at most `limit`, `fail` when it is wholly above, else `inconclusive`."""
    low, high = (estimate["value"] if estimate[end] is None else estimate[end] for end in ("low", "high"))
    return "pass" if high <= limit else "fail" if low > limit else "inconclusive"


def choice_rows(facts: dict[str, Any]) -> list[dict[str, Any]] | None:
    """One row a candidate of the screening, or None where the student was given.

    Raises ValueError where a trial has more right answers than select has images.
    """
    choice = facts.get("choice")
    if not choice:
        return None
    rows = []
    for candidate in choice["candidates"]:
        top1 = missing("not tried")
        if candidate["correct"] is not None:
            low, high = stats.wilson(candidate["correct"], choice["select"])
            top1 = measured(candidate["correct"] / choice["select"], low, high)
        word = "chosen" if candidate["label"] == choice["chosen"] else candidate["out"] or "fits"
        latency = candidate["latency"] or missing(candidate["reason"])
        rows.append({**candidate, "word": word, "latency_ns": latency, "top1_fraction": top1})
    return rows
