"""Rows of how int8 files fare on other CPUs: what was measured, what is emulated, what is assumed."""

from typing import Any

from compress import stats
from compress.report.estimates import measured, missing


def elsewhere_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a file and kind of CPU, and one for each thing that nobody measured."""
    return [_row(each) for each in facts.get("elsewhere") or []]


def _row(each: dict[str, Any]) -> dict[str, Any]:
    cost = missing(each["words"])
    if each["n"]:
        cost = measured(*stats.paired_difference(each["parent_only"], each["this_only"], each["n"]))
    return {**each, "cost_fraction": cost}
