"""Rows of how files stand corrupted images: top-1 by kind, what it costs, and what it costs beside the teacher."""

from typing import Any

from compress import stats
from compress.report.estimates import Estimate, baseline, measured


def corruption_rows(facts: dict[str, Any], teacher: str) -> list[dict[str, Any]]:
    """One row a file: `kinds` (for each kind `mean`, and one estimate a severity), `change_fraction` of top-1 by the
    mean corruption, and `against_teacher_fraction`, how that differs from the teacher's; negative is worse. Raises
    ValueError for impossible counts.
    """
    return [_row(each, is_teacher=each["stage"] == teacher) for each in facts.get("corruptions") or []]


def _row(each: dict[str, Any], *, is_teacher: bool) -> dict[str, Any]:
    # of what is lost; of a change it is the other way round
    low, high = (None if each[key] is None else -each[key] / 100 for key in ("high", "low"))
    return {
        "stage": each["stage"],
        "n": each["n"],
        "kinds": {of["kind"]: _kind(of["correct"], each["n"]) for of in each["kinds"]},
        "change_fraction": measured(-each["lost_points"] / 100),
        "against_teacher_fraction": baseline() if is_teacher else measured(-each["extra_points"] / 100, low, high),
    }


def _kind(counts: list[int], n: int) -> dict[str, Any]:
    # the severities are of the same images: their mean has no interval of independent draws
    severities: list[Estimate] = [measured(count / n, *stats.wilson(count, n)) for count in counts]
    return {"mean": measured(sum(counts) / (n * len(counts))), "severities": severities}
