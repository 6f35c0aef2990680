"""What a visit tells beside the latency: cold loads, kept answers (BT-9), and the peaks of the CPU itself."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_bench import ADAPTER, adapters, artifact, cell, images  # noqa: F401 (fixtures)
from test_report import make_facts

from compress import bench, measuring, report, worker
from compress.facts import measurement_facts
from compress.report import html, plots_roofline, rows_validity

TIER = bench.Tier(name="brief", rounds=4, warmup_runs=2, warmup_s=0.0, block_s=0.08)
MEMO = """
        key = inputs.tobytes()
        kept = globals().setdefault("kept", {})
        if key not in kept:
            time.sleep(0.004)
            kept[key] = True"""


def test_latencies_of_files_that_nobody_compared_are_warned_of():
    said = measuring._not_compared(("ort_cpu", "null", "openvino", "ncnn", "ort_web"))
    assert [text.rpartition("compress eval --runtime ")[2] for text in said] == ["openvino does", "ort_web does"]


def test_what_the_harness_adds_is_that_of_its_own_loop(images):  # noqa: F811
    """The inputs are made as for a query, outside of the clocks; a hot loop without them shows a tenth."""
    added_ns = worker.harness_ns(worker.draw(images, 1, [0, 0]))
    assert worker.timer_ns() / 2 < added_ns < 200_000


def test_what_keeps_its_answers_is_found_ten_times_of_ten(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    """BT-9. A hundred and fifty different images in turn are never all in the cache; one and the same always is."""
    adapters(monkeypatch, tmp_path, memo=MEMO, honest="time.sleep(0.004)")
    cells = [*(cell(f"memo {n}", artifact, "memo") for n in range(10)), cell("honest", artifact, "honest")]
    tier = dataclasses.replace(TIER, rounds=1)
    for measured in bench.measure(cells, images, tier, seed=3, scratch=tmp_path / "s"):
        codes = {flag["code"] for flag in rows_validity.flags(measurement_facts(measured, ""))}
        assert ("same_input" in codes) == measured.cell.startswith("memo"), measured.cell


def test_every_other_load_is_cold_and_the_first_rounds_look_at_more(artifact, images, tmp_path):  # noqa: F811
    [found] = bench.measure([cell("one", artifact)], images, TIER, seed=0, scratch=tmp_path / "s", memory=True)
    assert ["cold" in visit for visit in found.visits] == [False, True, False, True]
    assert all(isinstance(visit.get("cold", True), bool) for visit in found.visits)
    looked = ["repeated_median_ns" in visit for visit in found.visits]
    assert looked == [number < TIER.extra_rounds for number in range(TIER.rounds)]
    assert all(visit["peak_gmacs_per_second"] > 0.1 for visit in found.visits[: TIER.extra_rounds])
    # the arrays that the peaks need are not the model's memory
    assert found.memory["peak_rss_bytes"] < 400e6


PLACED = """

def placement(path, threads, inputs):
    if "everything" in __file__:
        raise RuntimeError("none of its 3 nodes runs there")
    return {"There": 2, "CPUExecutionProvider": len(inputs)}
"""


def test_nodes_are_placed_in_the_first_round_and_none_there_is_a_failure(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    adapters(monkeypatch, tmp_path, some="pass", everything="pass")
    for name in ("some", "everything"):
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write(PLACED)
    cells = [cell("some", artifact, "some"), cell("everything", artifact, "everything")]
    found, failed = bench.measure(cells, images, TIER, seed=0, scratch=tmp_path / "s")
    nodes = [visit["effective"].get("nodes") for visit in found.visits]
    asked = [{"provider": "There", "count": 2}, {"provider": "CPUExecutionProvider", "count": 1}]
    assert nodes == [asked, None, None, None]
    assert {"elsewhere"} <= {flag["code"] for flag in rows_validity.flags(measurement_facts(found, ""))}
    assert "placement: RuntimeError: none of its 3 nodes runs there" in failed.failure and not failed.visits


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_is_forgotten_and_the_system_is_asked_whether_it_was(tmp_path, folder):
    place = tmp_path / "model"
    if folder:
        place.mkdir()
    path = place / "weights" if folder else place
    path.write_bytes(bytes(300_000))
    assert worker.pages_in_memory(path) == math.ceil(300_000 / worker.mmap.PAGESIZE)
    if not worker.forget(place):
        pytest.skip("this file system keeps its files in memory")
    assert worker.pages_in_memory(path) == 0
    path.read_bytes()
    assert worker.pages_in_memory(path) > 0
    assert path.read_bytes() == bytes(300_000)


def test_an_empty_file_and_a_system_that_keeps_files(tmp_path, monkeypatch):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "full").write_bytes(b"x")
    assert worker.forget(tmp_path / "empty")
    monkeypatch.setattr(worker.os, "posix_fadvise", lambda *given: None)
    (tmp_path / "full").read_bytes()
    assert not worker.forget(tmp_path / "full")


def with_peaks(gmacs: float, bytes_per_second: float) -> dict:
    facts = make_facts()
    for measurement in facts["measurements"]:
        for visit in measurement["visits"]:
            visit |= {"peak_gmacs_per_second": gmacs, "peak_bytes_per_second": bytes_per_second}
            visit |= {"cold": visit["round"] % 2 == 1}
            visit["load_ns"] += 5e6 * visit["cold"]
    return facts


def test_shares_of_the_peak_and_places_under_the_roof():
    document = report.document_of(with_peaks(50.0, 10e9))
    cells = {c["cell"]: c for c in document["derived"]["cells"]}
    for found in plots_roofline.shown(document):
        assert found["peak_share"]["value"] == pytest.approx(found["gmacs_per_second"]["value"] / 50)
        assert found["load_cold_ns"]["value"] - found["load_ns"]["value"] == pytest.approx(5e6)
    [int8] = [c for c in cells.values() if (c["stage"], c["runtime"]) == ("int8", "ort_cpu")]
    assert int8["macs_per_byte"]["value"] == pytest.approx(6_500_000 / 812_000)
    assert plots_roofline.roofs(plots_roofline.shown(document)) == {1: (50.0, 10e9)}
    page = html.render(document)
    assert "Arithmetic under the CPU&#x27;s roofs" in page and "float32&#x27;s peak" in page and "cold: " in page


def test_reports_of_before_have_no_roof_and_every_load_was_warm():
    document = report.document_of(make_facts())
    cell_ = next(c for c in document["derived"]["cells"] if not c["failure"])
    assert cell_["load_ns"]["value"] and cell_["load_cold_ns"]["reason"] == "every load was a warm one"
    assert cell_["peak_share"]["reason"] == "no peak was taken here"
    assert "roofs" not in html.render(document)


def test_peaks_are_of_the_order_of_a_processors():
    found = worker.peaks(2)
    assert 0.1 < found["peak_gmacs_per_second"] < 1e5 and 1e8 < found["peak_bytes_per_second"] < 1e13
    assert np.isfinite(list(found.values())).all()


RECORDING = """
import numpy as np
from compress.runtimes import ort_cpu
from compress.runtimes.ort_cpu import FORMAT, effective, open_session, unavailable, version
kept = []
def run(session, inputs):
    logits = ort_cpu.run(session, inputs)
    if len(kept) < 256:
        kept.append((inputs, logits))
        if len(kept) == 256:
            np.savez({place!r}, **dict(zip(("inputs", "logits"), map(np.concatenate, zip(*kept)))))
    return logits
"""


def test_what_is_timed_answers_as_what_is_judged(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    """BT-16: of 256 queries of a timed run, the very bits that the accuracy run gives for these images:
    ONNX Runtime sums the products of an image in one order, whatever the batch.
    """
    place = tmp_path / "kept.npz"
    source = RECORDING.format(place=str(place))
    (tmp_path / "recording.py").write_text(source)
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): tmp_path / "recording.py")
    tier = dataclasses.replace(TIER, rounds=1, block_s=0.5, queries=256)
    [found] = bench.measure([cell("one", artifact, "recording")], images, tier, seed=5, scratch=tmp_path / "s")
    assert not found.failure and len(found.visits[0]["samples_ns"]) >= 256
    monkeypatch.undo()
    kept = np.load(place)
    asked = np.rint(kept["inputs"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    assert len(np.unique(asked.reshape(256, -1), axis=0)) > 32, "different images"
    assert 1 < bench.ANSWER_BATCH < len(asked), "many images at once, as always, where the timed run asked one"
    judged = bench.answers(artifact, "ort_cpu", asked, threads=1, scratch=tmp_path / "s")
    assert judged.tobytes() == kept["logits"].tobytes(), np.abs(judged - kept["logits"]).max()


IN_A_GROUP = """
import dataclasses, json, os, sys
from pathlib import Path
import numpy as np
from compress import bench, probing
from compress.facts import measurement_facts
from compress.report import rows_validity
group, folder = map(Path, sys.argv[1:])
(group / "cgroup.procs").write_text(str(os.getpid()))
bench.runtime_file = lambda name, plugins=(): folder / "busy.py"
artifact = probing.tiny_network(folder / "tiny.onnx")
images = np.zeros((70, *artifact.input_shape[1:], artifact.input_shape[0]), np.uint8)
tier = bench.Tier(name="t", rounds=10, warmup_runs=2, warmup_s=0.0, block_s=0.25, extra_rounds=0)
cell = bench.Cell(name="busy", artifact=artifact, runtime="busy", threads=1)
[found] = bench.measure([cell], images, tier, seed=0, scratch=folder / "s")
flags = rows_validity.flags(measurement_facts(found, ""))
throttled = [visit["throttled_periods"] > 0 for visit in found.visits]
print(json.dumps({"throttled": throttled, "codes": [flag["code"] for flag in flags], "failure": found.failure}))
"""


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group, of version 1 or 2, that grants half a core."""
    roots = {
        Path("/sys/fs/cgroup/cpu"): {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
        Path("/sys/fs/cgroup"): {"cpu.max": "50000 100000"},
    }
    for root, limits in roots.items():
        group = root / f"compress-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            # a folder that is no control group is empty
            if all((group / file).exists() for file in limits):
                for file, text in limits.items():
                    (group / file).write_text(text)
                yield group
                return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("control groups of processors cannot be made here")


@pytest.mark.slow
def test_a_quota_of_half_a_core_is_flagged_in_ten_rounds_of_ten(tmp_path, half_a_core):
    """BT-8, in a process that puts itself into the group."""
    busy = "end = time.perf_counter() + 0.004\n    while time.perf_counter() < end: pass"
    (tmp_path / "busy.py").write_text(ADAPTER.format(body=busy))
    command = [sys.executable, "-c", IN_A_GROUP, str(half_a_core), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failure"] == "" and found["throttled"] == [True] * 10 and "throttled" in found["codes"]
