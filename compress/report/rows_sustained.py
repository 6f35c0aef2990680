"""Rows of cells that worked without a pause: what is left of their first minute's speed at the end."""

from typing import Any

from compress.report.estimates import Estimate, measured, missing

SLOWER = 1.10  # of the first window's median: from here on the machine holds back


def sustained_rows(facts: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell that was to work without a pause. Windows of one process are correlated: there is no interval."""
    of_cell = {m["cell"]: m.get("sustained") for m in facts["measurements"]}
    return [_row(cell, found) for cell in cells if (found := of_cell[cell["cell"]])]


def _row(cell: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    windows = found["windows"]
    row = {key: cell[key] for key in ("cell", "stage", "runtime", "threads")}
    if found["failure"] or not windows:
        why = missing(found["failure"] or "no window was recorded")
        numbers = ("first_ns", "last_ns", "worst_ns", "last_of_first", "slower_after_s", "celsius", "joules_per_query")
        return {**row, "seconds": 0.0, "queries": 0, **dict.fromkeys(numbers, why)}
    medians = [window["median_ns"] for window in windows]
    began = [0.0, *(window["end_s"] for window in windows)]
    slow = [start for start, median in zip(began, medians, strict=False) if median > SLOWER * medians[0]]
    celsius = [window["celsius"] for window in windows if window["celsius"] is not None]
    return {
        **row,
        "seconds": windows[-1]["end_s"],
        "queries": sum(window["n"] for window in windows),
        "first_ns": measured(medians[0]),
        "last_ns": measured(medians[-1]),
        "worst_ns": measured(max(medians)),
        "last_of_first": measured(medians[-1] / medians[0]),
        "slower_after_s": measured(slow[0]) if slow else missing("never 10 % slower than at first"),
        "celsius": measured(max(celsius)) if celsius else missing("this machine shows no temperature"),
        "joules_per_query": _energy(found.get("energy"), sum(window["n"] for window in windows)),
    }


def _energy(energy: dict[str, Any] | None, queries: int) -> Estimate:
    """The processor's energy for a query, above what it takes when idle: the mean of that before and after."""
    if not energy or energy["reason"]:
        return missing(energy["reason"] if energy else "this version of the benchmark did not count it")
    idle = energy.get("idle_watts")
    if not idle or "joules" not in energy or "seconds" not in energy:
        raise ValueError("energy without joules, seconds and idle watts")
    of_work = [(energy["joules"] - watts * energy["seconds"]) / queries for watts in idle]
    if min(of_work) <= 0:
        return missing("lost in what the processor takes when idle")
    said = " and ".join(f"{watts:.1f}" for watts in idle)
    return measured(sum(of_work) / len(of_work), reason=f"no interval: {said} W when idle before and after")
