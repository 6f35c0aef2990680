"""From raw facts to every number that a report shows. No other module derives one.

The parts are in `rows_cells` (latency), `rows_validity`, `rows_accuracy`, `rows_stages`, `rows_limits`, `rows_ladder`,
`rows_elsewhere`, `rows_corruptions`, `rows_paced`, `rows_settings`, `rows_sustained`, `rows_classes` and
`rows_verdict`.
"""

from typing import Any

from compress import stats
from compress.report.rows_accuracy import accuracy_rows
from compress.report.rows_cells import aa_row, cell_rows, teacher_stage
from compress.report.rows_classes import class_rows
from compress.report.rows_converted import converted_rows
from compress.report.rows_corruptions import corruption_rows
from compress.report.rows_elsewhere import elsewhere_rows
from compress.report.rows_ladder import ladder_rows
from compress.report.rows_limits import choice_rows
from compress.report.rows_paced import paced_rows
from compress.report.rows_settings import sentences as settings_sentences
from compress.report.rows_settings import settings_rows
from compress.report.rows_stages import size_ratio, stage_rows
from compress.report.rows_sustained import sustained_rows
from compress.report.rows_tree import tree_row
from compress.report.rows_validity import harness_ns, sentences
from compress.report.rows_verdict import SHORT_TIERS, verdict


def _primary_cell(facts: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The cell that the verdict speaks of: the first of the shipped artifact that has a speed-up, or else a latency."""
    shipped = [c for c in cells if c["stage"] == facts["shipped"] and not c["control"]]
    timed = [c for c in shipped if c["speedup_same_runtime"]["value"] is not None]
    measured = [c for c in shipped if c["latency_ns"]["value"] is not None]
    return next(iter(timed + measured + shipped), None)


def _primary_accuracy(
    facts: dict[str, Any], rows: list[dict[str, Any]], cell: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Accuracy of the shipped artifact, in the runtime that the latency comes from where it was evaluated there."""
    shipped = [r for r in rows if r["stage"] == facts["shipped"]]
    evaluated = [r for r in shipped if r["top1_fraction"]["value"] is not None]
    there = [r for r in evaluated if cell and r["runtime"] == cell["runtime"]]
    return next(iter(there + evaluated + shipped), None)


def _points(cells: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that have both a latency and an accuracy, each told whether another is at least as good in both."""
    top1 = {(r["stage"], r["runtime"]): r["top1_fraction"] for r in accuracy}
    points = [
        {"cell": c["cell"], "latency_ns": c["latency_ns"], "top1_fraction": top1[c["stage"], c["runtime"]]}
        for c in cells
        if not c["control"]
        and c["latency_ns"]["value"] is not None
        and top1.get((c["stage"], c["runtime"]), {"value": None})["value"] is not None
    ]
    best = set(stats.pareto([(p["latency_ns"]["value"], p["top1_fraction"]["value"]) for p in points]))
    return [{**p, "dominated": i not in best} for i, p in enumerate(points)]


def derive(facts: dict[str, Any]) -> dict[str, Any]:
    """Every derived number of a report, from facts that `report.validate` accepts.

    Returns `cells`, `accuracy`, `stages`, `aa`, `pareto`, `size_ratio`, `tree`, `choice`, `ladder`, `elsewhere`,
    `converted`, `corruptions`, `paced`, `settings`, `sustained`, `classes`, `verdict`, `warnings`, `harness_ns`,
    `teacher`, `primary_cell`, `short_tier`.
    Each number is a dict of `value`, `low`, `high` (95 % interval, or None) and `reason` (why something is missing);
    units are in the key (`latency_ns`, `top1_fraction`). Pure: equal facts give equal results. No NaN is ever returned.
    """
    teacher = teacher_stage(facts)
    cells, accuracy, aa = cell_rows(facts), accuracy_rows(facts, teacher), aa_row(facts)
    cell = _primary_cell(facts, cells)
    row = _primary_accuracy(facts, accuracy, cell)
    size = size_ratio(facts, teacher, facts["shipped"])
    return {
        "teacher": teacher,
        "primary_cell": cell["cell"] if cell else "",
        "short_tier": facts["run"]["tier"] if facts["run"]["tier"] in SHORT_TIERS else "",
        "cells": cells,
        "accuracy": accuracy,
        "stages": stage_rows(facts, accuracy),
        "aa": aa,
        "pareto": _points(cells, accuracy),
        "size_ratio": size,
        "tree": tree_row(facts),
        "choice": choice_rows(facts),
        "ladder": ladder_rows(facts),
        "elsewhere": elsewhere_rows(facts),
        "converted": converted_rows(facts),
        "corruptions": corruption_rows(facts, teacher),
        "paced": paced_rows(facts, cells),
        "settings": settings_rows(facts),
        "sustained": sustained_rows(facts, cells),
        "classes": class_rows(facts, row),
        "verdict": verdict(facts, cells, cell, row, aa, size),
        "warnings": [*sentences(cells), *settings_sentences(facts)],
        "harness_ns": harness_ns(facts),
    }
