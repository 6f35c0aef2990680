"""Minutes without a pause: windows of real files, and what the report makes of a machine that slows down."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from test_bench import ADAPTER, adapters, artifact, cell, images  # noqa: F401 (fixtures)

from compress import bench, report, units, worker
from compress.cli.main import compress as group
from compress.errors import InputRejected, UsageError
from compress.report import format as fmt
from compress.report import html, markdown, rows_sustained

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
WARMING = """
        global count
        count = globals().get("count", 0) + 1
        time.sleep(0.004 if count > 40 else 0.002)"""


def test_a_machine_that_slows_down_is_seen_and_a_broken_cell_is_a_row(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    adapters(monkeypatch, tmp_path, warming=WARMING, broken="raise ValueError('no more')")
    cells = [cell("w", artifact, "warming"), cell("b", artifact, "broken")]
    seen: list[tuple[int, int]] = []
    found = bench.sustained(
        cells, images, 0.5, seed=0, scratch=tmp_path / "s", on_cell=lambda *counts: seen.append(counts)
    )
    assert "no more" in found["b"]["failure"] and not found["b"]["windows"] and seen[-1] == (2, 2)
    windows = found["w"]["windows"]
    assert len(windows) == 10 and found["w"]["failure"] == ""
    ends = [window["end_s"] for window in windows]
    assert ends == sorted(ends) and 0.5 <= ends[-1] < 1.0
    assert windows[-1]["median_ns"] > 1.5 * windows[0]["median_ns"] > 1.5e6
    assert all(window["p90_ns"] >= window["median_ns"] and window["n"] > 0 for window in windows)


def facts_of(medians: list[float], failure: str = "") -> dict:
    """A published report's facts, its first cell with these windows of a minute."""
    document = json.loads((RUN.parents[1] / "reports" / "digits-mobilenet" / "report.json").read_text())
    facts = copy.deepcopy({k: v for k, v in document.items() if k != "derived"})
    windows = [
        {"end_s": 60.0 * (i + 1), "n": 100, "median_ns": m, "p90_ns": 1.2 * m, "celsius": 50.0 + i, "megahertz": None}
        for i, m in enumerate(medians)
    ]
    facts["measurements"][0]["sustained"] = {"windows": windows, "failure": failure}
    return facts


def test_what_is_left_at_the_end_and_when_it_began_to_slow() -> None:
    (row,) = report.document_of(facts_of([1e6, 1.05e6, 1.2e6, 1.5e6, 1.4e6]))["derived"]["sustained"]
    assert row["last_of_first"]["value"] == pytest.approx(1.4) and row["worst_ns"]["value"] == 1.5e6
    assert row["slower_after_s"]["value"] == 120.0 and row["queries"] == 500 and row["seconds"] == 300.0
    assert row["celsius"]["value"] == 54.0
    (steady,) = report.document_of(facts_of([1e6, 1.09e6, 0.9e6]))["derived"]["sustained"]
    assert steady["slower_after_s"]["reason"] == "never 10 % slower than at first"
    assert rows_sustained.SLOWER == 1.10


def counter(root: Path, name: str, of: str, microjoules: object) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(of + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("999\n")
    return folder


def test_only_whole_packages_that_may_be_read_count_energy(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 990)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 5)
    counter(tmp_path, "intel-rapl:0:0", "core", 100)
    counter(tmp_path, "intel-rapl:2", "psys", 100)
    counter(tmp_path, "intel-rapl:3", "package-3", "what only root may read")
    (counter(tmp_path, "intel-rapl:4", "package-4", 1) / "energy_uj").unlink()
    assert worker.energy_counters(tmp_path) == [first, second]
    assert worker.energy_counters(tmp_path / "none") == []
    meter = worker.Meter([first, second])
    meter.read()
    (first / "energy_uj").write_text("10\n")
    joules, seconds = meter.since()  # 990 to 999, to 0, and on to 10
    assert joules == pytest.approx(20e-6) and 0 <= seconds < 5


def test_the_energy_of_work_and_of_idleness(tmp_path: Path, monkeypatch) -> None:
    """Three watts when idle, and seven while the model works, by a clock of our own."""
    folder = counter(tmp_path, "intel-rapl:0", "package-0", 0)
    (folder / "max_energy_range_uj").write_text("99999999999\n")
    now, used = [100.0], [0.0]

    def passes(seconds: float, watts: float = 3.0) -> None:
        now[0] += seconds
        used[0] += 1e6 * watts * seconds
        (folder / "energy_uj").write_text(f"{used[0]:.0f}\n")

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=passes))
    meter = worker.Meter([folder])
    meter.idle()
    passes(4)  # loading
    meter.read()
    for _ in range(5):
        passes(60, 7.0)
        meter.add()
    meter.idle()
    found = meter.facts("")
    assert (found["joules"], found["seconds"]) == pytest.approx((2100.0, 300.0)) and found["reason"] == ""
    assert found["idle_watts"] == pytest.approx([3.0, 3.0])
    # a counter that goes away spoils the energy alone
    (folder / "energy_uj").unlink()
    meter.read()
    meter.add(), meter.idle()
    assert meter.facts("gone") == {"reason": "gone"} and worker.Meter([]).facts("none") == {"reason": "none"}


def test_a_real_cell_tells_its_energy_or_why_not(artifact, images, tmp_path, monkeypatch) -> None:  # noqa: F811
    (tmp_path / "busy.py").write_text(ADAPTER.format(body="time.sleep(0.002)"))
    np.save(tmp_path / "images.npy", images)
    spec = {"adapter": str(tmp_path / "busy.py"), "model": str(artifact.path), "threads": 1, "mode": "sustained"}
    spec |= {"images": str(tmp_path / "images.npy"), "batch": 1, "seed": [0], "sustained_s": 0.5}
    assert worker.sustained(spec)["energy"] == {"reason": "it takes 10 s of work"}
    monkeypatch.setattr(worker, "LEAST_ENERGY_S", 0.1)
    monkeypatch.setattr(worker, "energy_counters", list)
    assert worker.sustained(spec)["energy"] == {"reason": worker.NO_COUNTER}
    monkeypatch.setattr(worker, "energy_counters", lambda: [counter(tmp_path, "c", "package-0", 7)])
    energy = worker.sustained(spec)["energy"]
    assert energy["joules"] == 0 and energy["idle_watts"] == [0, 0] and energy["seconds"] >= 0.5


def test_energy_in_the_report() -> None:
    facts = facts_of([1e6] * 10)
    counted = {"joules": 50.0, "seconds": 10.0, "idle_watts": [2.0, 3.0], "reason": ""}
    facts["measurements"][0]["sustained"]["energy"] = counted
    document = report.document_of(facts)
    (row,) = document["derived"]["sustained"]
    assert row["joules_per_query"]["value"] == pytest.approx(0.025) and row["joules_per_query"]["low"] is None
    assert row["joules_per_query"]["reason"] == "no interval: 2.0 and 3.0 W when idle before and after"
    assert "25.0 mJ" in html.render(document) and "energy per query 25.0 mJ" in markdown.render(document)
    facts["measurements"][0]["sustained"]["energy"] = {"reason": worker.NO_COUNTER}
    document = report.document_of(facts)
    assert worker.NO_COUNTER in html.render(document)
    assert worker.NO_COUNTER.partition(" (")[0] in markdown.render(document)
    facts["measurements"][0]["sustained"]["energy"] = counted | {"idle_watts": [1.0, 6.0]}
    (row,) = report.document_of(facts)["derived"]["sustained"]
    assert row["joules_per_query"]["reason"] == "lost in what the processor takes when idle"
    for broken in ({"reason": ""}, counted | {"idle_watts": []}):
        facts["measurements"][0]["sustained"]["energy"] = broken
        with pytest.raises(InputRejected, match="energy without"):
            report.document_of(facts)
    assert [fmt.energy(j) for j in (2.5, 0.0042, 3.1e-6)] == ["2.50 J", "4.20 mJ", "3.10 µJ"]


def test_all_renderings_say_the_same() -> None:
    document = report.document_of(facts_of([1e6, 2e6]))
    (row,) = document["derived"]["sustained"]
    page, text = html.render(document), markdown.render(document)
    for rendering in (page, text, markdown.summary(document)):
        assert fmt.sustained_title(document) in rendering
    assert "1.00 ms" in page and "2.00 ms" in text and "10 % slower after 1 min 00 s" in text
    assert 'id="sustained-title"' in page and fmt.celsius(row["celsius"]["value"]) in page
    failed = report.document_of(facts_of([], failure="the child was killed by SIGSEGV"))
    assert "SIGSEGV" in html.render(failed) and "SIGSEGV" in markdown.render(failed)
    assert 'id="sustained-title"' not in html.render(failed)
    # a cell that never came to its end is not called steady
    assert ">never<" not in html.render(failed) and "Without a pause for" not in html.render(failed)
    steady = report.document_of(facts_of([1e6, 1e6]))
    assert ">never<" in html.render(steady)


def test_the_command_measures_each_cell_once_more(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    wanted = ["bench", str(RUN / "student.onnx"), "--synthetic", "--tier", "smoke", "--sustained", "1s"]
    done = CliRunner().invoke(group, [*wanted, "--batch", "1,2", "--out", str(tmp_path / "out")])
    assert done.exit_code in (0, 4), done.output
    assert "Without a pause for 1.0 s" in done.output
    document = report.load(tmp_path / "out" / "report.json")
    # not the control's twin, not the batches
    assert [row["cell"] for row in document["derived"]["sustained"]] == ["student/ort_cpu/1"]


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600.0), ("90 s", 90.0), ("1.5h", 5400.0), ("2min", 120.0)])
def test_durations(text, seconds):
    assert units.duration_s(text, "--sustained") == seconds


@pytest.mark.parametrize("text", ["10", "10ms", "0s", "long"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="--sustained") as caught:
        units.duration_s(text, "--sustained")
    print(caught.value)


def test_sensors_that_are_missing_or_asleep_are_none(tmp_path):
    assert worker.hottest_celsius(tmp_path) is None and worker.clock_megahertz(tmp_path) is None
    for name, text in (("thermal_zone0", "41500"), ("thermal_zone1", "67000"), ("thermal_zone2", "N/A")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "temp").write_text(text)
    for name, text in (("cpu0", "1800000"), ("cpu1", "600000")):
        (tmp_path / name / "cpufreq").mkdir(parents=True)
        (tmp_path / name / "cpufreq" / "scaling_cur_freq").write_text(text)
    assert worker.hottest_celsius(tmp_path) == 67.0 and worker.clock_megahertz(tmp_path) == 600.0
    assert worker.clock_megahertz(tmp_path, max) == 1800.0
    assert np.isfinite(worker.hottest_celsius() or 0.0)
