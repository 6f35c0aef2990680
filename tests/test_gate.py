"""`compress gate` and `compress report diff`: what passes, what fails, and what must not be decided."""

import copy
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from compress import gate, report
from compress.cli.main import compress as group
from compress.errors import InputRejected, UsageError
from compress.report import compared, compared_text

REPORTS = Path(__file__).parents[1] / "reports"


@pytest.fixture(scope="module")
def calm() -> dict:
    """The published report of the digits network (standard tier, 359 images, int8 ships) as of a quiet machine: each
    round's times are scaled to the cell's first, with a spread of half a per cent; teacher, then student a third of it.
    """
    document = json.loads((REPORTS / "digits-mobilenet" / "report.json").read_text())
    facts = {key: value for key, value in document.items() if key != "derived"}
    middle = {"teacher": 4e5, "distilled": 1.5e5, "int8": 1.25e5}
    for place, measurement in enumerate(facts["measurements"]):
        noise = np.random.default_rng(place).normal(0, 0.005, len(measurement["visits"]))
        for visit, off in zip(measurement["visits"], noise, strict=True):
            factor = middle[measurement["stage"]] * (1 + off) / visit["median_ns"]
            visit |= {"steal_fraction": 0.0, "steady": True, "throttled_periods": 0}
            visit["median_ns"] *= factor
            for key in ("quantiles_ns", "tail_ns"):
                visit[key] = [round(q * factor) for q in visit[key]]
            if "repeated_median_ns" in visit:
                visit["repeated_median_ns"] = visit["median_ns"]
    return facts


@pytest.fixture
def facts(calm) -> dict:
    return copy.deepcopy(calm)


@pytest.fixture
def document(facts) -> dict:
    return report.document_of(facts)


def statuses(gates: list[dict]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in gates}


def cell_of(document: dict) -> dict:
    return next(c for c in document["derived"]["cells"] if c["cell"] == document["derived"]["primary_cell"])


def slower(facts: dict, stage: str, factor: float) -> dict:
    """The same report with the visits of a stage slowed down."""
    changed = copy.deepcopy(facts)
    for measurement in changed["measurements"]:
        for visit in measurement["visits"] if measurement["stage"] == stage else ():
            visit["median_ns"] *= factor
            for key in ("quantiles_ns", "tail_ns"):
                visit |= {key: [round(q * factor) for q in visit[key]]} if key in visit else {}
    return changed


def test_an_interval_has_to_lie_on_one_side(document):
    low, high = (cell_of(document)["latency_ns"][end] for end in ("low", "high"))
    for limit, status in ((high, "pass"), (low * 0.99, "fail"), ((low + high) / 2, "inconclusive")):
        gates = gate.judge(document, gate.Limits(max_latency_ns=limit))
        assert statuses(gates) == {"max_latency": status}
        assert gate.exit_code(gates) == {"pass": 0, "fail": 3, "inconclusive": 4}[status]


def test_a_ratio_needs_an_agreeing_control_and_a_valid_baseline(facts):
    limits = gate.Limits(min_speedup=1.5)
    assert statuses(gate.judge(report.document_of(facts), limits)) == {"min_speedup": "pass"}
    untwinned = {**facts, "measurements": [m for m in facts["measurements"] if not m["control"]]}
    (row,) = gate.judge(report.document_of(untwinned), limits)
    assert row["status"] == "inconclusive" and "the A/A control is missing" in row["value"]
    teacher = next(m for m in facts["measurements"] if m["cell"] == "teacher/ort_cpu/1")
    teacher["visits"][0]["steal_fraction"] = 0.3
    (row,) = gate.judge(report.document_of(facts), limits)
    assert row["status"] == "invalid" and "took 30.0 %" in row["value"]
    (row,) = gate.judge(report.document_of(facts), gate.Limits(max_latency_ns=1e9))
    assert row["status"] == "pass", "the baseline has no part in a limit on the latency itself"


def test_the_tail_is_judged_with_its_spread_over_rounds(document):
    p99 = cell_of(document)["percentiles_ns"]["p99"]["value"]
    assert statuses(gate.judge(document, gate.Limits(max_p99_ns=2 * p99))) == {"max_p99": "pass"}
    assert statuses(gate.judge(document, gate.Limits(max_p99_ns=0.5 * p99))) == {"max_p99": "fail"}
    assert statuses(gate.judge(document, gate.Limits(max_p99_ns=p99))) == {"max_p99": "inconclusive"}


def test_a_tail_that_was_not_measured_decides_nothing(facts):
    for measurement in facts["measurements"]:
        for visit in measurement["visits"]:
            visit["n"] = 30
    (row,) = gate.judge(report.document_of(facts), gate.Limits(max_p99_ns=1e9))
    assert row["status"] == "inconclusive" and "need 662" in row["value"]


def test_the_drop_is_judged_by_the_paired_interval(document):
    found = {p: gate.judge(document, gate.Limits(max_drop_points=p))[0]["status"] for p in (3.0, 0.5)}
    assert found == {3.0: "pass", 0.5: "inconclusive"}
    worse = copy.deepcopy({k: v for k, v in document.items() if k != "derived"})
    for row in worse["accuracy"]:
        if row["stage"] == "int8":
            row |= {"correct": 320, "teacher_only": 40, "this_only": 7, "agree": 310}
    (row,) = gate.judge(report.document_of(worse), gate.Limits(max_drop_points=2.0))
    assert row["status"] == "fail" and "359 images" in row["value"]


def test_size_and_speedup(document):
    limits = gate.Limits(max_size_bytes=300_000, min_speedup=2.0)
    assert statuses(gate.judge(document, limits)) == {"min_speedup": "pass", "max_size": "fail"}
    limits = gate.Limits(max_size_bytes=500_000, min_speedup=4.0)
    assert statuses(gate.judge(document, limits)) == {"min_speedup": "fail", "max_size": "pass"}


def test_a_noisy_machine_or_a_first_look_decides_no_latency(facts):
    limits = gate.Limits(max_latency_ns=1e9, max_size_bytes=10**9)
    short = report.document_of({**facts, "run": {**facts["run"], "tier": "quick"}})
    gates = gate.judge(short, limits)
    assert statuses(gates) == {"max_latency": "inconclusive", "max_size": "pass"} and gate.exit_code(gates) == 4
    noisy = copy.deepcopy(facts)
    for measurement in noisy["measurements"]:
        for visit in measurement["visits"] if measurement["control"] else ():
            visit["median_ns"] *= 1.5
    gates = gate.judge(report.document_of(noisy), limits)
    assert statuses(gates) == {"max_latency": "invalid", "max_size": "pass"} and gate.exit_code(gates) == 4


def test_a_failure_outranks_what_cannot_be_told(document):
    gates = gate.judge(document, gate.Limits(max_drop_points=0.5, max_size_bytes=1000))
    assert set(statuses(gates).values()) == {"inconclusive", "fail"} and gate.exit_code(gates) == 3


def test_what_is_not_there_is_an_error(document):
    with pytest.raises(UsageError, match="no limit was given"):
        gate.judge(document, gate.Limits())
    with pytest.raises(InputRejected, match="no cell of int8 in ncnn") as caught:
        gate.judge(document, gate.Limits(max_size_bytes=1), runtime="ncnn")
    assert "ort_cpu at 1 thread" in caught.value.hint
    with pytest.raises(InputRejected, match="at 4 threads"):
        gate.judge(document, gate.Limits(max_size_bytes=1), threads=4)


def test_a_runtime_that_could_not_run_is_inconclusive(document):
    gates = gate.judge(document, gate.Limits(max_latency_ns=1e9, max_drop_points=1.0), runtime="ort_cuda")
    assert set(statuses(gates).values()) == {"inconclusive"}
    assert all("no CUDA device" in row["value"] for row in gates)


def test_against_an_earlier_report(facts, document):
    gates = gate.judge(document, gate.Limits(), against=document)
    assert statuses(gates) == {
        "against: latency": "pass", "against: accuracy": "pass", "against: size": "pass"
    }  # fmt: skip
    changed = slower(facts, "int8", 1.3)
    for row in changed["accuracy"]:
        if row["stage"] == "int8":
            row |= {"correct": 320, "teacher_only": 40, "this_only": 7, "agree": 310}
    for artifact in changed["artifacts"]:
        if artifact["stage"] == "int8":
            artifact |= {"size_bytes": artifact["size_bytes"] + 1, "digest": "0" * 64}
    for measurement in changed["measurements"]:
        if measurement["stage"] == "int8":
            measurement["artifact_digest"] = "0" * 64
    gates = gate.judge(report.document_of(changed), gate.Limits(), against=document)
    assert set(statuses(gates).values()) == {"fail"}
    assert gate.judge(document, gate.Limits(), against=report.document_of(changed))[0]["status"] == "pass"


def test_a_speedup_is_compared_and_not_the_hour(facts, document):
    """Both artifacts twice as slow: the machine was, and nothing has changed."""
    everything = facts
    for stage in ("teacher", "distilled", "int8"):
        everything = slower(everything, stage, 2.0)
    found = compared.compare_reports(document, report.document_of(everything))
    rows = {row["stage"]: row for row in found["latency"] if row["runtime"] == "ort_cpu"}
    assert rows["int8"]["change"]["value"] == pytest.approx(1.0) and rows["int8"]["by"] == "speed-up"
    assert rows["teacher"]["verdict"] == "slower" and rows["teacher"]["by"] == "latency"


def test_the_interval_of_two_sessions_is_wider_than_each(document):
    found = compared.compare_reports(document, document)
    row = next(row for row in found["latency"] if row["stage"] == "int8" and row["runtime"] == "ort_cpu")
    own = cell_of(document)["speedup_same_runtime"]
    width, own_width = (e["high"] / e["low"] for e in (row["change"], own))
    assert own_width < width < own_width**2
    assert row["change"]["low"] < 1 < row["change"]["high"]


def test_other_machines_teachers_and_images_are_warned_of_at_the_top(facts, document):
    other = copy.deepcopy(facts)
    other["environment"]["cpu_model"] = "Cortex-A76"
    other["dataset"]["digest"] = "1" * 64
    found = compared.compare_reports(document, report.document_of(other))
    assert "different machines (cpu_model)" in found["warnings"][0]
    assert any("different images" in warning for warning in found["warnings"])
    assert ("cpu_model", document["environment"]["cpu_model"], "Cortex-A76") in found["environment"]
    by = {row["stage"]: row["by"] for row in found["latency"] if row["runtime"] == "ort_cpu"}
    assert by == {"teacher": "", "distilled": "speed-up", "int8": "speed-up"}
    assert all(row["change"]["value"] is None for row in found["accuracy"])
    text = compared_text.text(found)
    assert text.splitlines()[1].startswith("! measured on different machines")
    for artifact in other["artifacts"]:
        if artifact["stage"] == "teacher":
            artifact["digest"] = "2" * 64
    for measurement in other["measurements"]:
        if measurement["stage"] == "teacher" and measurement["runtime"] == "ort_cpu":
            measurement["artifact_digest"] = "2" * 64
    found = compared.compare_reports(document, report.document_of(other))
    assert all(row["change"]["value"] is None for row in found["latency"])


def test_the_text_fits_80_columns_and_markdown_is_escaped(facts, document):
    hostile = copy.deepcopy(facts)
    hostile["run"]["name"] = "<b>x</b> | `y` " + "long" * 30
    found = compared.compare_reports(report.document_of(hostile), document)
    assert max(map(len, compared_text.text(found).splitlines())) <= 80
    page = compared_text.markdown(found)
    assert "<b>" not in page and "\\|" in page


def test_junit_and_summary_hold_every_gate(document):
    gates = gate.judge(document, gate.Limits(max_size_bytes=1000, max_drop_points=0.5, min_speedup=2.0))
    suite = ET.fromstring(gate.junit(gates, "a \x01 name <&>"))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    kinds = [[child.tag for child in case] for case in suite]
    assert sorted(map(tuple, kinds)) == [(), ("error",), ("failure",)]
    table = gate.summary(gates, "run: int8")
    assert "may not ship" in table and table.count("\n| ") == 5


@pytest.fixture
def published(tmp_path, facts) -> str:
    return str(report.write(facts, tmp_path / "report")["json"].parent)


def test_the_commands(tmp_path, published):
    source = published
    junit, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    summary.write_text("before\n")
    done = CliRunner().invoke(
        group,
        [
            "gate",
            source,
            "--max-size",
            "500kB",
            "--max-latency",
            "3ms",
            "--junit",
            str(junit),
            "--summary",
            str(summary),
        ],
    )
    assert done.exit_code == 0 and done.output.count("pass") == 2
    assert junit.read_bytes().startswith(b"<?xml") and summary.read_text().startswith("before\n### ")
    done = CliRunner().invoke(group, ["gate", source, "--max-size", "1kB", "--json"])
    assert done.exit_code == 3 and json.loads(done.stdout)[0]["status"] == "fail"
    done = CliRunner().invoke(group, ["gate", source, "--max-drop", "0.5"])
    assert done.exit_code == 4 and "next" in done.output
    done = CliRunner().invoke(group, ["report", "diff", source, source, "--format", "json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["before"] == "digits-mobilenet"
    shown = [CliRunner().invoke(group, ["report", *way, source]).stdout for way in ([], ["show"])]
    assert shown[0] == shown[1] and "faster" in shown[0]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    source = str(REPORTS / "digits-mobilenet")
    done = CliRunner().invoke(group, ["gate", source, "--max-size", "1MB", "--junit", str(tmp_path / "no" / "x.xml")])
    assert isinstance(done.exception, UsageError) and "cannot write" in done.exception.message
