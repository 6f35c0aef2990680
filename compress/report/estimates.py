"""The shape of every derived number: a value with its 95 % interval, or the reason why there is none."""

from typing import Any

Estimate = dict[str, Any]


def measured(value: float, low: float | None = None, high: float | None = None, reason: str = "") -> Estimate:
    """A value; `reason` says why an interval that one would expect is missing."""
    bounds = (None, None) if low is None or high is None else (float(low), float(high))
    return {"value": float(value), "low": bounds[0], "high": bounds[1], "reason": reason}


def missing(reason: str) -> Estimate:
    """No value, and why."""
    return {"value": None, "low": None, "high": None, "reason": reason or "no reason was recorded"}


def middle_ns(visit: dict[str, Any]) -> float:
    """What a visit counts by: the median of its queries, or their mean where nothing else was told. ValueError where
    there is neither.
    """
    middle = visit["median_ns"] or visit.get("mean_ns")
    if not middle:
        raise ValueError("a visit has neither `median_ns` nor `mean_ns`")
    return middle


def baseline() -> Estimate:
    """The place of a comparison in the row that the others are compared with."""
    return {**missing("the baseline itself"), "is_baseline": True}
