"""Rows of queries that came at a rate: how long after the moment at which each was due it was answered."""

from typing import Any

from compress import stats
from compress.report.estimates import measured
from compress.report.rows_cells import percentile_of


def paced_rows(facts: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell that was asked at a rate. The share of late answers takes single queries for independent. Raises
    ValueError where the rate is missing.
    """
    of_cell = {m["cell"]: [v["paced"] for v in m["visits"] if "paced" in v] for m in facts["measurements"]}
    if any(of_cell.values()) and not {"fps", "deadline_ns"} <= set(facts["run"]):
        raise ValueError("queries came at a rate, and `run` does not name it")
    return [_row(cell, of_cell[cell["cell"]], facts["run"]) for cell in cells if of_cell[cell["cell"]]]


def _row(cell: dict[str, Any], visits: list[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    queries, late = sum(v["n"] for v in visits), sum(v["late"] for v in visits)
    medians = [v["median_ns"] for v in visits]
    latency = measured(stats.median(medians), reason="one round only")
    if len(medians) > 1:
        latency = measured(stats.median(medians), *stats.bootstrap_median(medians, run["seed"]))
    return {
        **{key: cell[key] for key in ("cell", "stage", "runtime", "threads")},
        "fps": run["fps"],
        "deadline_ns": run["deadline_ns"],
        "queries": queries,
        "latency_ns": latency,
        "p99_ns": percentile_of(visits, 99),
        "late_fraction": measured(late / queries, *stats.wilson(late, queries)),
        "longest_late_run": max(v["longest_late_run"] for v in visits),
        "against_back_to_back": measured(latency["value"] / cell["latency_ns"]["value"]),
    }
