"""May this ship? A report judged by limits, for continuous integration: each limit passes, fails, or cannot be told."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from compress import stats
from compress.errors import InputRejected, UsageError
from compress.report import format as fmt
from compress.report.compared import compare_reports
from compress.report.estimates import missing
from compress.report.markdown import escaped
from compress.report.markup import clean
from compress.report.rows_limits import latency_gate, side, size_gate

Gate = dict[str, str]
EXIT_FAILED, EXIT_UNCLEAR = 3, 4
# exit code → what it says of what ships
WORDS = {0: "may ship", EXIT_FAILED: "may not ship", EXIT_UNCLEAR: "cannot be told"}
# Two sessions differ by some percent on any machine: a slow-down is ruled out as far as this.
TOLERATED = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is asked for; 0 and None ask for nothing. Latencies in ns, the drop in points of top-1 below the teacher."""

    max_latency_ns: float = 0.0
    max_p99_ns: float = 0.0
    max_drop_points: float | None = None
    max_size_bytes: int = 0
    min_speedup: float = 0.0


def judge(
    document: dict[str, Any], limits: Limits, *, runtime: str = "", threads: int = 0,
    against: dict[str, Any] | None = None,
) -> list[Gate]:  # fmt: skip
    """A row of `name`, `limit`, `value` and `status` (pass, fail, inconclusive, invalid) for each limit.

    Judged is what ships, in `runtime` and at `threads` where they are given, else in the cell that the report's verdict
    speaks of. An interval has to lie wholly on one side of a limit. `against` is an earlier report: nothing may have
    become slower, larger or less accurate. Raises UsageError when nothing is asked for, InputRejected for a report
    without such a cell.
    """
    cell = _cell(document, runtime, threads)
    timed = [
        *([latency_gate(cell, limits.max_latency_ns)] if limits.max_latency_ns else []),
        *([_tail_gate(document, cell, limits.max_p99_ns)] if limits.max_p99_ns else []),
    ]
    gates = [_trusted(document, [cell], gate) for gate in timed]
    if limits.min_speedup:
        baseline = [c for c in document["derived"]["cells"] if c["cell"] == cell["speedup_same_runtime"].get("against")]
        gates.append(_agreed(document, _trusted(document, [cell, *baseline], _speedup_gate(cell, limits.min_speedup))))
    if limits.max_drop_points is not None:
        gates.append(_drop_gate(document, cell["runtime"], limits.max_drop_points))
    if limits.max_size_bytes:
        gates.append(_size(document, cell, limits.max_size_bytes))
    if against is not None:
        gates += _regressions(document, against, cell)
    if not gates:
        raise UsageError(
            "no limit was given", code="E-GATE-LIMITS", hint="for example --max-p99 20ms --max-drop 1 --max-size 500kB"
        )
    return gates


def exit_code(gates: list[Gate]) -> int:
    """0 when all pass, 3 when one fails, else 4: a needed measurement is missing, too wide or not valid."""
    found = {gate["status"] for gate in gates}
    return EXIT_FAILED if "fail" in found else EXIT_UNCLEAR if found - {"pass"} else 0


def _cell(document: dict[str, Any], runtime: str, threads: int) -> dict[str, Any]:
    derived = document["derived"]
    shipped = [c for c in derived["cells"] if c["stage"] == document["shipped"] and not c["control"]]
    wanted = [
        c
        for c in shipped
        if (not runtime or c["runtime"] == runtime)
        and (not threads or c["threads"] == threads)
        and (runtime or threads or c["cell"] == derived["primary_cell"])
    ]
    if not wanted:
        there = ", ".join(f"{c['runtime']} at {fmt.threads(c['threads'])}" for c in shipped) or "none"
        raise InputRejected(
            f"the report has no cell of {document['shipped']} in {runtime or 'any runtime'}"
            + (f" at {fmt.threads(threads)}" if threads else ""),
            code="E-GATE-CELL",
            hint=f"there are: {there}",
        )
    return wanted[0]


def _trusted(document: dict[str, Any], cells: list[dict[str, Any]], gate: Gate) -> Gate:
    """A latency decides nothing where the machine made differences up, or was looked at too briefly."""
    broken = [
        f"{cell['cell']}: {flag['text']}" for cell in cells for flag in cell["flags"] if flag["severity"] == "invalid"
    ]
    if broken:
        return {**gate, "status": "invalid", "value": f"{gate['value']}; {'; '.join(broken)}"}
    if document["derived"]["aa"]["verdict"] == "invalid":
        why = "the A/A control is invalid: too noisy a machine"
        return {**gate, "status": "invalid", "value": f"{gate['value']}; {why}"}
    if document["derived"]["short_tier"] and gate["status"] == "pass":
        tier = document["derived"]["short_tier"]
        return {**gate, "status": "inconclusive", "value": f"{gate['value']}; the tier {tier} is a first look"}
    return gate


def _ratio_of(document: dict[str, Any], cell: dict[str, Any], gate: Gate) -> Gate:
    """A gate on the cell's speed-up over the teacher: both cells have to be valid, and the control has to agree."""
    against = cell["speedup_same_runtime"].get("against")
    pair = [c for c in document["derived"]["cells"] if c["cell"] in (cell["cell"], against)]
    return _agreed(document, _trusted(document, pair, gate))


def _before(against: dict[str, Any], where: tuple[str, str], threads: int, gate: Gate) -> Gate:
    """The same of an earlier report, which is named where it is to blame."""
    cells = [c for c in against["derived"]["cells"] if not c["control"]]
    earlier = next((c for c in cells if (c["stage"], c["runtime"], c["threads"]) == (*where, threads)), None)
    if earlier is None:
        return gate
    judged = _ratio_of(against, earlier, {**gate, "value": ""})
    said = judged["value"].removeprefix("; ")
    return {**judged, "value": f"{gate['value']}; the earlier report: {said}" if said else gate["value"]}


def _agreed(document: dict[str, Any], gate: Gate) -> Gate:
    """A ratio passes only where the same bytes, measured twice, agreed."""
    verdict = document["derived"]["aa"]["verdict"]
    if gate["status"] != "pass" or verdict == "ok":
        return gate
    why = f"the A/A control is {verdict or 'missing'}: the ratio of a file to itself was not shown to be 1"
    return {**gate, "status": "inconclusive", "value": f"{gate['value']}; {why}"}


def _tail_gate(document: dict[str, Any], cell: dict[str, Any], limit: float) -> Gate:
    estimate = cell["percentiles_ns"]["p99"]
    row = {"name": "max_p99", "limit": f"at most {fmt.latency(limit)} by the upper end of the interval"}
    if estimate["value"] is None:
        return {**row, "value": fmt.absent(estimate["reason"]), "status": "inconclusive"}
    return {**row, "value": f"{fmt.latency_interval(estimate)} in {cell['runtime']}", "status": side(estimate, limit)}


def _speedup_gate(cell: dict[str, Any], least: float) -> Gate:
    row = {"name": "min_speedup", "limit": f"at least {fmt.ratio(least)} the teacher's speed in the same runtime"}
    estimate = cell["speedup_same_runtime"]
    if estimate["value"] is None or estimate["low"] is None:
        return {**row, "value": fmt.absent(estimate["reason"]), "status": "inconclusive"}
    status = "pass" if estimate["low"] >= least else "fail" if estimate["high"] < least else "inconclusive"
    return {**row, "value": fmt.ratio_interval(estimate), "status": status}


def _drop_gate(document: dict[str, Any], runtime: str, points: float) -> Gate:
    row = {"name": "max_drop", "limit": f"at most {points:g} points of top-1 below the teacher"}
    judged = next(
        (r for r in document["derived"]["accuracy"] if r["stage"] == document["shipped"] and r["runtime"] == runtime),
        None,
    )
    estimate = judged["difference_fraction"] if judged else missing(f"not evaluated in {runtime}")
    if judged is None or estimate["value"] is None:
        return {**row, "value": fmt.absent(estimate["reason"]), "status": "inconclusive"}
    word = stats.accuracy_verdict(estimate["low"], estimate["high"], points / 100)
    status = {"kept": "pass", "lost": "fail"}.get(word, "inconclusive")
    return {**row, "value": f"{fmt.points_interval(estimate)} on {fmt.count(judged['n'])} images", "status": status}


def _size(document: dict[str, Any], cell: dict[str, Any], limit: int) -> Gate:
    """The bytes of what runs in that cell, which another runtime has in a format of its own."""
    if not cell["size_bytes"]:
        return size_gate(document, limit)
    status = "pass" if cell["size_bytes"] <= limit else "fail"
    row = {"name": "max_size", "limit": f"at most {fmt.size(limit)}"}
    return {**row, "value": fmt.size(cell["size_bytes"]), "status": status}


def _regressions(document: dict[str, Any], against: dict[str, Any], cell: dict[str, Any]) -> list[Gate]:
    found = compare_reports(against, document)
    where = (document["shipped"], cell["runtime"])
    speed = next(
        (r for r in found["latency"] if (r["stage"], r["runtime"], r["threads"]) == (*where, cell["threads"])), None
    )
    top1 = next((r for r in found["accuracy"] if (r["stage"], r["runtime"]) == where), None)
    size = next((r for r in found["size"] if r["stage"] == document["shipped"]), None)
    return [
        _before(against, where, cell["threads"], _ratio_of(document, cell, _no_slower(speed))),
        _no_worse(top1),
        _no_larger(size),
    ]


def _no_slower(row: dict[str, Any] | None) -> Gate:
    gate = {"name": "against: latency", "limit": f"not slower than before; shown to within {TOLERATED:.0%}"}
    if row is None or row["change"]["value"] is None:
        why = row["change"]["reason"] if row else "no such cell"
        return {**gate, "value": fmt.absent(why), "status": "inconclusive"}
    shown = "pass" if row["change"]["low"] >= 1 - TOLERATED else "inconclusive"
    status = "fail" if row["verdict"] == "slower" else shown
    return {**gate, "value": f"{fmt.ratio_interval(row['change'])} by {row['by']}", "status": status}


def _no_worse(row: dict[str, Any] | None) -> Gate:
    gate = {"name": "against: accuracy", "limit": "not less accurate than before"}
    if row is None or row["change"]["value"] is None:
        why = row["change"]["reason"] if row else "no such row"
        return {**gate, "value": fmt.absent(why), "status": "inconclusive"}
    status = "fail" if row["verdict"] == "worse" else "pass"
    return {**gate, "value": f"{row['verdict']}: {fmt.points_interval(row['change'])}", "status": status}


def _no_larger(row: dict[str, Any] | None) -> Gate:
    gate = {"name": "against: size", "limit": "not larger than before"}
    if row is None:
        return {**gate, "value": fmt.absent("no such file before"), "status": "inconclusive"}
    status = "pass" if row["after"] <= row["before"] else "fail"
    return {**gate, "value": f"{fmt.size(row['before'])} → {fmt.size(row['after'])}", "status": status}


def junit(gates: list[Gate], name: str) -> bytes:
    """The gates as JUnit XML, which build servers show: a failure for what fails, an error for what cannot be told."""
    count = [sum(gate["status"] in kinds for gate in gates) for kinds in (("fail",), ("inconclusive", "invalid"))]
    suite = ET.Element(
        "testsuite", name=clean(name), tests=str(len(gates)), failures=str(count[0]), errors=str(count[1])
    )
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname=clean(name), name=f"{gate['name']}: {gate['limit']}")
        if gate["status"] != "pass":
            kind = "failure" if gate["status"] == "fail" else "error"
            ET.SubElement(case, kind, message=clean(gate["value"]), type=gate["status"])
    root = ET.Element("testsuites")
    root.append(suite)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def summary(gates: list[Gate], name: str) -> str:
    """The gates as a Markdown table, for the summary page of a build."""
    lines = [f"### {escaped(name)}: {WORDS[exit_code(gates)]}", "", "| | limit | found |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(_table_row(gate) for gate in gates)]) + "\n"


def _table_row(gate: Gate) -> str:
    return f"| {gate['status']} | {escaped(gate['name'])}: {escaped(gate['limit'])} | {escaped(gate['value'])} |"
