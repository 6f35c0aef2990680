"""Queries at a rate and in batches: counted from when they were due, on a simulated clock and on real files."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from compress import bench, facts, probing, report, worker
from compress.cli.main import compress as group
from compress.errors import InputRejected, UsageError
from compress.report import format as fmt
from compress.report import html, markdown, rows_cells
from compress.types import Scenario

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"


class Clock:
    """Time that passes only by sleeping and by working."""

    def __init__(self):
        self.now = 0

    def read(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def work(self, ns: int) -> tuple[int, int]:
        self.now += ns
        return ns, 0


def asked(service_ns, fps: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(latencies from the schedule, latencies of the calls alone) where query k takes `service_ns(k)`."""
    clock, calls = Clock(), []

    def timed(session, inputs):
        calls.append(service_ns(len(calls)))
        return clock.work(calls[-1])

    samples = worker.paced(timed, None, iter(lambda: None, 1), fps, seconds, clock.read, clock.sleep)
    return np.array(samples), np.array(calls)


def test_a_stall_is_felt_by_all_that_wait_for_it():
    """50 queries a second of 2 ms, of which every 200th takes a second: the next 55 wait, each 18 ms less."""
    stall_ns, usual_ns, period_ns = 1_000_000_000, 2_000_000, 20_000_000
    samples, calls = asked(lambda k: stall_ns if k % 200 == 100 else usual_ns, 50, 400)
    assert len(samples) == 20_000
    waits = [stall_ns - k * (period_ns - usual_ns) for k in range(200)]
    expected = np.quantile(np.maximum(waits, usual_ns), 0.99)
    p99, naive = np.quantile(samples, 0.99), np.quantile(calls, 0.99)
    assert p99 == pytest.approx(expected, rel=0.05) and naive <= p99 / 5


def test_queries_that_are_on_time_take_what_they_take():
    samples, calls = asked(lambda k: 3_000_000 + k, 100, 2)
    assert len(samples) == 200 and (samples == calls).all()


def test_a_rate_that_cannot_be_kept_shows_a_growing_delay():
    samples, _ = asked(lambda k: 30_000_000, 50, 2)
    assert (np.diff(samples) == 10_000_000).all() and samples[-1] == 30_000_000 + 99 * 10_000_000


def test_late_answers_and_their_longest_run():
    samples = [1, 9, 9, 1, 9, 9, 9, 1]
    found = facts._paced(np.array(samples), Scenario(fps=1.0, deadline_ns=5.0))
    assert (found["n"], found["late"], found["longest_late_run"]) == (8, 5, 3)
    assert facts._paced(np.array([1, 2]), Scenario(fps=1.0, deadline_ns=5.0))["longest_late_run"] == 0
    assert facts._paced(np.array([9, 9]), Scenario(fps=1.0, deadline_ns=5.0))["longest_late_run"] == 2


def test_a_file_that_is_faster_than_itself_ends_with_four(tmp_path, monkeypatch):
    """The machine made a difference up: the report is written, and a build server hears of it."""
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(rows_cells.stats, "aa_verdict", lambda low, high: "invalid")
    wanted = ["bench", str(RUN / "student.onnx"), "--synthetic", "--tier", "smoke", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(group, wanted)
    assert done.exit_code == 4 and "A/A control: invalid" in done.output
    assert report.load(tmp_path / "out" / "report.json")["derived"]["verdict"]["status"] == "invalid"


def test_real_files_at_a_rate_and_in_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    monkeypatch.setitem(
        bench.TIERS, "smoke", bench.Tier(name="smoke", rounds=2, warmup_runs=2, warmup_s=0, block_s=0.1)
    )
    wanted = ["bench", str(RUN / "student.onnx"), "--synthetic", "--tier", "smoke", "--batch", "1,4", "--fps", "100"]
    done = CliRunner().invoke(group, [*wanted, "--deadline", "1s", "--out", str(tmp_path / "out")])
    assert done.exit_code in (0, 4), done.output
    document = report.load(tmp_path / "out" / "report.json")
    with np.load(tmp_path / "out" / "samples.npz") as samples:
        assert sum(len(samples[name]) for name in samples if name.endswith(" paced")) == 100
    (row,) = document["derived"]["paced"]
    assert (row["queries"], row["fps"], row["late_fraction"]["value"]) == (100, 100.0, 0.0)
    assert row["deadline_ns"] == 1e9 and row["latency_ns"]["value"] > 0
    assert {c["batch"] for c in document["derived"]["cells"]} == {1, 4}
    for of_batch in document["derived"]["cells"]:
        in_a_second = of_batch["batch"] * 1e9 / of_batch["latency_ns"]["value"]
        assert of_batch["images_per_second"]["value"] == pytest.approx(in_a_second)
    title = fmt.paced_title(document)
    assert title == "At 100 frames per second, answers due within 1.00 s"
    shown = fmt.percent_interval(row["late_fraction"])
    for text in (done.output, markdown.render(document), html.render(document)):
        assert title in text and shown in text


def test_a_runtime_of_one_batch_size_refuses_another(tmp_path, monkeypatch):
    adapter = tmp_path / "narrow.py"
    adapter.write_text(
        "FORMAT = 'onnx'\ndef unavailable(): return ''\ndef version(): return '1'\n"
        "def open_session(path, threads): return path\ndef run(session, inputs): return inputs\n"
        "def effective(session): return {'fixed_batch': 1}\n"
    )
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): adapter)
    artifact = probing.tiny_network(tmp_path / "tiny.onnx")
    cells = [bench.Cell(name=str(b), artifact=artifact, runtime="narrow", threads=1, batch=b) for b in (1, 8)]
    tier = bench.Tier(name="t", rounds=1, warmup_runs=1, warmup_s=0.0, block_s=0.01)
    one, eight = bench.measure(
        cells, np.zeros((4, 16, 16, 3), np.uint8), tier, seed=0, scratch=tmp_path / "s"
    )  # fmt: skip
    assert not one.failure and "takes batches of 1 only, asked for 8" in eight.failure


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch takes"),
        (["--batch", "4,4"], "--batch takes"),
        (["--batch", "many"], "--batch takes"),
        (["--deadline", "33ms"], "--deadline is for queries at a rate"),
        (["--fps", "30", "--deadline", "33"], "--deadline must be a time with its unit"),
        (["--fps", "-1"], "--fps must be between"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    done = CliRunner().invoke(group, ["bench", str(RUN / "student.onnx"), "--synthetic", *flags])
    assert isinstance(done.exception, UsageError) and message in done.exception.message


def test_a_rate_that_is_not_named_is_a_contradiction():
    source = json.loads((RUN.parents[1] / "reports" / "digits-mobilenet" / "report.json").read_text())
    visit = next(m for m in source["measurements"] if m["visits"])["visits"][0]
    visit["paced"] = {"n": 1, "median_ns": 1.0, "quantiles_ns": [1, 1], "late": 0, "longest_late_run": 0}
    with pytest.raises(InputRejected, match="`run` does not name it"):
        report.document_of({k: v for k, v in source.items() if k != "derived"})


def test_a_report_without_a_rate_says_nothing_of_one(tmp_path):
    source = json.loads((RUN.parents[1] / "reports" / "digits-mobilenet" / "report.json").read_text())
    document = report.document_of(copy.deepcopy({k: v for k, v in source.items() if k != "derived"}))
    assert "What each stage cost" in html.render(document)
    of_files = report.document_of({**{k: v for k, v in document.items() if k != "derived"}, "stages": []})
    assert "What each stage cost" not in html.render(of_files), "no empty table where there are no stages"
    assert document["derived"]["paced"] == [] and "frames per second" not in html.render(document)
