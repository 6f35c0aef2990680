"""Rows of what each runtime was given: the converted file, whether it answers as the ONNX file does, and whether int8
pays there.
"""

from typing import Any

from compress import stats
from compress.report import format as fmt
from compress.report.estimates import Estimate, measured, missing
from compress.report.rows_cells import compare, find
from compress.report.rows_validity import flags


def converted_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a stage and runtime that something was converted for, or compared."""
    return [_row(facts, each) for each in facts.get("converted") or []]


def gain_words(row: dict[str, Any]) -> str:
    """What an int8 file gains in its runtime over the float file that it was made of, in a clause; or ""."""
    found = row["gain"]
    if found["value"] is None:
        return ""
    pays = ", so it does not pay in time here" if found["verdict"] in ("slower", "no difference") else ""
    return f"{found['verdict']}: {fmt.ratio_interval(found)} the speed of {found['parent']} in {row['runtime']}{pays}"


def gain(facts: dict[str, Any], each: dict[str, Any]) -> Estimate:
    """How many times as fast as its parent's an int8 file is in the same runtime, with the fewest threads measured;
    `each` has its `stage`, `runtime` and `precision`.
    """
    parent = next((stage["parent"] for stage in facts["stages"] if stage["name"] == each["stage"]), "")
    none = {"verdict": "", "parent": parent}
    if not parent or not each["precision"].startswith("int8"):
        return {**missing("nothing in float to compare with"), **none}
    mine = [
        m
        for m in facts["measurements"]
        if not m["control"] and (m["stage"], m["runtime"]) == (each["stage"], each["runtime"])
    ]
    if not mine:
        return {**missing("not timed"), **none}
    this = min(mine, key=lambda m: (m["batch"], m["threads"]))
    other = find(facts, parent, each["runtime"], this["threads"], this["batch"])
    if any(flag["severity"] == "invalid" for m in (this, other) if m and m["visits"] for flag in flags(m)):
        return {**missing("its rounds or those of the float file are not valid"), **none}
    return {**compare(other, this, f"{parent} in {each['runtime']}"), "parent": parent}


def _row(facts: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
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
        "gain": gain(facts, each),
    }
