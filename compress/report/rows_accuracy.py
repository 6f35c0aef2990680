"""Accuracy rows: the shipped bytes on every image of the report split, paired with the teacher's answers."""

import math
from typing import Any

from compress import stats
from compress.report.estimates import Estimate, baseline, measured, missing
from compress.report.rows_confidence import confidence_of


def margin_fraction(facts: dict[str, Any]) -> float:
    """The drop of top-1 that the run allowed, as a fraction."""
    return facts["run"]["max_drop_points"] / 100


def more_images(difference: Estimate, margin: float, n: int) -> int | None:
    """About how many more images would settle `undecided`, were the difference to stay; None when none would.

    The half-width of the interval shrinks with the root of n until it no longer reaches the margin.
    """
    distance = abs(difference["value"] + margin)
    half_width = (difference["high"] - difference["low"]) / 2
    if distance < half_width / 100:
        return None
    return max(1, math.ceil(n * (half_width / distance) ** 2 - n))


def _against_teacher(row: dict[str, Any], is_teacher: bool, margin: float) -> dict[str, Any]:
    nothing = {"mcnemar_p": None, "verdict": "", "more_images": None, "flips": None, "divergence_nats": None}
    agree = row.get("agree")
    agreement = missing("agreement was not counted") if agree is None else measured(agree / row["n"])
    if is_teacher:
        return {**nothing, "difference_fraction": baseline(), "agreement_fraction": agreement}
    lost, won = row.get("teacher_only"), row.get("this_only")
    if lost is None or won is None:
        reason = "the teacher's answers on the same images are missing"
        return {**nothing, "difference_fraction": missing(reason), "agreement_fraction": agreement}
    difference = measured(*stats.paired_difference(lost, won, row["n"]))
    verdict = stats.accuracy_verdict(difference["low"], difference["high"], margin)
    return {
        "difference_fraction": difference,
        "mcnemar_p": stats.mcnemar_exact(lost, won),
        "verdict": verdict,
        "more_images": more_images(difference, margin, row["n"]) if verdict == "undecided" else None,
        "agreement_fraction": agreement,
        "flips": None if agree is None else _flips(row["n"], agree, lost, won),
        "divergence_nats": row.get("divergence_nats"),
    }


def _flips(n: int, agree: int, lost: int, won: int) -> dict[str, int]:
    """Answers that differ from the teacher's: right to wrong, wrong to right, and wrong to another wrong one. Equal
    accuracy can hide many ("Accuracy is Not All You Need", arXiv 2407.09141). Raises ValueError for impossible counts.
    """
    other = n - agree - lost - won
    if other < 0:
        raise ValueError(f"of {n} images {agree} are answered alike, yet {lost + won} are right on one side only")
    return {"lost": lost, "won": won, "other": other}


def _proportion(correct: int | None, n: int, reason: str) -> Estimate:
    return missing(reason) if correct is None else measured(correct / n, *stats.wilson(correct, n))


def _row(row: dict[str, Any], teacher: str, margin: float) -> dict[str, Any]:
    identity = {"stage": row["stage"], "runtime": row["runtime"], "is_teacher": row["stage"] == teacher}
    reason = row["failure"] or ("" if row["n"] else "no image was evaluated")
    if reason:
        keys = ("top1_fraction", "top5_fraction", "agreement_fraction", "difference_fraction", "calibration_error",
                "scaled_error")  # fmt: skip
        empty = {
            "mcnemar_p": None, "verdict": "", "more_images": None, "flips": None, "n": 0, "correct": None,
            "failure": reason, "temperature": None, "divergence_nats": None,
        }  # fmt: skip
        return {**identity, **{key: missing(reason) for key in keys}, **empty}
    return {
        **identity,
        "n": row["n"],
        "correct": row["correct"],
        "failure": "",
        "top1_fraction": _proportion(row["correct"], row["n"], "the correct answers were not counted"),
        "top5_fraction": _proportion(row.get("top5_correct"), row["n"], "too few classes for a top-5"),
        **_against_teacher(row, identity["is_teacher"], margin),
        **confidence_of(row),
    }


def accuracy_rows(facts: dict[str, Any], teacher: str) -> list[dict[str, Any]]:
    """One row an artifact and runtime, in the order of the facts."""
    return [_row(row, teacher, margin_fraction(facts)) for row in facts["accuracy"]]


def unpaired_difference(this: dict[str, Any], other: dict[str, Any]) -> Estimate:
    """`this` minus `other` with Newcombe's interval of two Wilson intervals (method 10).

    The two may share images; treating them as independent then gives too wide an interval, never too narrow a one
    as long as their errors go together.
    """
    value = this["value"] - other["value"]
    low = value - math.hypot(this["value"] - this["low"], other["high"] - other["value"])
    high = value + math.hypot(this["high"] - this["value"], other["value"] - other["low"])
    return measured(value, low, high)
