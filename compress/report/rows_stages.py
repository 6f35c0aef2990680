"""Stage rows: what each stage cost in accuracy, what it gained in latency and bytes, and whether it paid."""

from typing import Any

from compress import stats
from compress.report import format as fmt
from compress.report.estimates import Estimate, baseline, measured, missing
from compress.report.rows_accuracy import unpaired_difference
from compress.report.rows_cells import compare


def artifact_at(facts: dict[str, Any], stage: str, format: str = "onnx") -> dict[str, Any] | None:
    """The artifact of `stage` in that format, or in any when there is none in it."""
    of_stage = [a for a in facts["artifacts"] if a["stage"] == stage]
    return next((a for a in of_stage if a["format"] == format), of_stage[0] if of_stage else None)


def size_ratio(facts: dict[str, Any], larger: str, smaller: str) -> Estimate:
    """Bytes of `larger` over bytes of `smaller` (stage names)."""
    bytes_of = {}
    for stage in (larger, smaller):
        artifact = artifact_at(facts, stage)
        if artifact is None or not artifact["size_bytes"]:
            return missing(f"no artifact of {stage or 'the parent'}")
        bytes_of[stage] = artifact["size_bytes"]
    return measured(bytes_of[larger] / bytes_of[smaller])


def _cost_on_select(stage: dict[str, Any]) -> Estimate:
    select = stage["select"]
    if not stage["parent"]:
        return baseline()
    if not select or not select["n"]:
        return missing("not judged on the select split")
    counts = (select.get("parent_only"), select.get("this_only"))
    if None in counts:
        return missing("the parent's answers on the same images are missing")
    return measured(*stats.paired_difference(*counts, select["n"]))


def _in_common(rows: list[dict[str, Any]], stage: str, parent: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    good = {(r["stage"], r["runtime"]): r for r in rows if r["top1_fraction"]["value"] is not None}
    runtimes = dict.fromkeys(r["runtime"] for r in rows)
    return next(
        ((good[stage, r], good[parent, r]) for r in runtimes if (stage, r) in good and (parent, r) in good), None
    )


def _cost_on_report(facts: dict[str, Any], stage: dict[str, Any], accuracy: list[dict[str, Any]]) -> Estimate:
    if not stage["parent"]:
        return {**baseline(), "paired": False}
    for row in facts.get("against_parents") or []:  # older facts counted against the teacher alone
        if (row["stage"], row["parent"]) == (stage["name"], stage["parent"]):
            return {
                **measured(*stats.paired_difference(row["parent_only"], row["this_only"], row["n"])),
                "paired": True,
            }
    pair = _in_common(accuracy, stage["name"], stage["parent"])
    if pair is None:
        return {**missing("no runtime has both this stage and its parent"), "paired": False}
    this, parent = pair
    if parent["is_teacher"] and this["difference_fraction"]["value"] is not None:
        return {**this["difference_fraction"], "paired": True}
    return {**unpaired_difference(this["top1_fraction"], parent["top1_fraction"]), "paired": False}


def _latency_gain(facts: dict[str, Any], stage: dict[str, Any]) -> Estimate:
    if not stage["parent"]:
        return {**baseline(), "verdict": "", "runtime": ""}
    onnx = {a["digest"] for a in facts["artifacts"] if a["format"] == "onnx"}
    cells = {
        (m["stage"], m["runtime"], m["threads"], m["batch"]): m
        for m in facts["measurements"]
        if not m["control"] and m["artifact_digest"] in onnx
    }
    tried = [
        {**compare(cells.get((stage["parent"], *where)), this, stage["parent"]), "runtime": where[0]}
        for (name, *where), this in cells.items()
        if name == stage["name"]
    ]
    found = next((t for t in tried if t["value"] is not None), None)
    none = {**missing("not measured in an ONNX runtime"), "verdict": "", "runtime": ""}
    return found or next(iter(tried), none)


def _paid(stage: dict[str, Any], latency: Estimate, size: Estimate) -> tuple[str, str]:
    """The word and why. A stage pays by being faster, or by being smaller without being slower."""
    if not stage["parent"]:
        return "", "the start of the chain"
    if stage["decision"] != "kept":
        return "not kept", stage["reason"] or "no reason was recorded"
    smaller = size["value"] is not None and size["value"] > 1.02
    speed = latency["verdict"] or f"latency {fmt.absent(latency['reason'])}"
    where = f" in {latency['runtime']}" if latency["verdict"] else ""
    bytes_text = f"{fmt.ratio(size['value'])} smaller" if smaller else "not smaller"
    paid = latency["verdict"] == "faster" or (smaller and latency["verdict"] != "slower")
    return ("paid" if paid else "did not pay"), f"{speed}{where}, {bytes_text}"


def _row(facts: dict[str, Any], stage: dict[str, Any], accuracy: list[dict[str, Any]]) -> dict[str, Any]:
    latency = _latency_gain(facts, stage)
    size = size_ratio(facts, stage["parent"], stage["name"]) if stage["parent"] else baseline()
    paid, why = _paid(stage, latency, size)
    return {
        "stage": stage["name"],
        "parent": stage["parent"],
        "decision": stage["decision"],
        "cost_on_select_fraction": _cost_on_select(stage),
        "cost_on_report_fraction": _cost_on_report(facts, stage, accuracy),
        "latency_gain": latency,
        "size_gain": size,
        "paid": paid,
        "why": why,
    }


def stage_rows(facts: dict[str, Any], accuracy: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a stage, in the order of the chain."""
    return [_row(facts, stage, accuracy) for stage in facts["stages"]]
