"""Rows of what each runtime was given: the converted file, and whether it answers as the ONNX file does."""

from typing import Any

from compress import stats
from compress.report.estimates import measured, missing


def converted_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a stage and runtime that something was converted for, or compared."""
    return [_row(each) for each in facts.get("converted") or []]


def _row(each: dict[str, Any]) -> dict[str, Any]:
    gate = each["gate"]
    reason = each["failure"] or "nothing was compared"
    cost = agreement = difference = missing(reason)
    if gate:
        agreement = measured(gate["agreement_fraction"])
        if gate["difference_of_spread"] is not None:
            difference = measured(gate["difference_of_spread"])
        if gate["labelled"]:
            cost = measured(*stats.paired_difference(gate["expected_only"], gate["this_only"], gate["labelled"]))
    identity = ("stage", "runtime", "format", "precision", "files", "notes", "failure")
    return {
        **{key: each[key] for key in identity},
        "word": "refused"
        if gate and gate["why"]
        else "failed"
        if each["failure"]
        else "ok"
        if gate
        else "not compared",
        "images": gate["images"] if gate else 0,
        "reference": gate.get("reference", "the ONNX file") if gate else "",
        "size_bytes": each["size_bytes"] if each["files"] else None,
        "tools": ", ".join(f"{name} {version}" for name, version in sorted(each["tools"].items())),
        "agreement_fraction": agreement,
        "difference_fraction": difference,
        "cost_fraction": cost,
    }
