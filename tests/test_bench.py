"""The benchmark end to end: real child processes, tiny ONNX models, and every way in which a child can go wrong."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import bench, child, environment, facts, files, measuring, report, worker
from compress.errors import InputRejected, Unmeasurable, UsageError
from compress.report import rows_cells
from compress.store import Store
from compress.types import SINGLE_STREAM, Artifact, Failure

TIER = bench.Tier(name="test", rounds=2, warmup_runs=3, warmup_s=0.01, block_s=0.02)
CLASSES = ("a", "b", "c", "d", "e")


def model_bytes(batch="N", weight_location=None):
    generator = np.random.default_rng(0)
    kernel = numpy_helper.from_array(generator.normal(size=(8, 3, 3, 3)).astype(np.float32), "kernel")
    matrix = numpy_helper.from_array(generator.normal(size=(8, 5)).astype(np.float32), "matrix")
    if weight_location is not None:
        matrix = TensorProto(name="matrix", data_type=TensorProto.FLOAT, dims=[8, 5], data_location=1)
        matrix.external_data.add(key="location", value=weight_location)
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [kernel, matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"class_names": "a b c d e"})
    return model.SerializeToString()


def artifact_of(path, content=None, **changes):
    if content is not None:
        path.write_bytes(content)
    facts = {
        "path": path,
        "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": "onnx",
        "precision": "float32",
        "stage": "export",
        "size_bytes": path.stat().st_size,
        "parameters": 256,
        "macs": 13824,
        "input_shape": (3, 8, 8),
        "class_names": CLASSES,
    }
    return Artifact(**(facts | changes))


def cell(name, artifact, runtime="ort_cpu", threads=1):
    return bench.Cell(name=name, artifact=artifact, runtime=runtime, threads=threads)


@pytest.fixture
def artifact(tmp_path):
    return artifact_of(tmp_path / "tiny.onnx", model_bytes())


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, size=(150, 8, 8, 3), dtype=np.uint8)


ADAPTER = """
import os, sys, time, signal, ctypes, subprocess
import numpy as np
FORMAT = "onnx"
def unavailable(): return ""
def version(): return "1.0"
def open_session(path, threads): return path
def effective(session): return {{}}
def run(session, inputs):
    {body}
    return np.zeros((len(inputs), 5), np.float32)
"""


def adapters(monkeypatch, folder, **bodies):
    """Makes each name a runtime whose `run` begins with the given statements; other names stay what they are."""
    files = {}
    for name, body in bodies.items():
        files[name] = folder / f"{name}.py"
        files[name].write_text(ADAPTER.format(body=textwrap.dedent(body).strip().replace("\n", "\n    ")))
    real = bench.runtime_file
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): files.get(name) or real(name, plugins))


def gone(pid):
    """Whether the process has ended; one that nobody has collected yet has ended too."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_two_names_of_one_artifact_and_a_runtime_that_is_not_here(artifact, images, tmp_path):
    cells = [cell("one", artifact), cell("two", artifact, threads=2), cell("gpu", artifact, "ort_cuda")]
    seen = []
    result = bench.measure(
        cells,
        images,
        TIER,
        seed=7,
        scratch=tmp_path / "s",
        on_visit=lambda *progress: seen.append(progress),
        memory=True,
    )
    assert [m.cell for m in result] == ["one", "two", "gpu"]
    assert result[0].memory["pss_bytes"] > 0 and (result[2].failure == "") == (result[2].memory is not None)
    assert 0 < result[0].memory["arena_off_peak_rss_bytes"] < 2 * result[0].memory["peak_rss_bytes"]
    for measurement, threads in zip(result[:2], (1, 2), strict=True):
        assert measurement.failure == "" and measurement.artifact_digest == artifact.digest
        assert [v["round"] for v in measurement.visits] == [0, 1]
        for visit in measurement.visits:
            assert visit["effective"]["intra_op_threads"] == threads == measurement.threads
            assert visit["effective"]["providers"] == ["CPUExecutionProvider"]
            assert len(visit["samples_ns"]) >= worker.MIN_BLOCK_RUNS and min(visit["samples_ns"]) > 0
            assert sum(visit["samples_ns"]) <= visit["block_ns"]
            assert 3 <= len(visit["warmup_ns"]) <= worker.WARMUP_KEPT
            assert min(visit["import_ns"], visit["load_ns"], visit["first_inference_ns"]) > 0
            assert visit["cpu_ns_per_inference"] > 0
    for number in (0, 1):
        positions = [bench.visit_order(7, number, 3).index(i) for i in (0, 1)]
        assert [m.visits[number]["position"] for m in result[:2]] == positions
    # Where there is a GPU the row holds numbers of the GPU; it never holds numbers of the CPU.
    gpu = result[2]
    assert gpu.failure or all(v["effective"]["providers"][0] == "CUDAExecutionProvider" for v in gpu.visits)
    assert not gpu.failure or ("pip install" in gpu.failure and gpu.visits == ())
    assert gpu.failure_kind == ("unavailable" if gpu.failure else "")
    assert seen == [(done, 9) for done in range(10)]
    assert list((tmp_path / "s").iterdir()) == []


def test_order_is_seeded_and_differs_between_rounds():
    orders = [bench.visit_order(3, number, 6) for number in range(8)]
    assert orders == [bench.visit_order(3, number, 6) for number in range(8)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 4
    assert orders != [bench.visit_order(4, number, 6) for number in range(8)]


# A query takes as long as its input says: the times tell which inputs were asked, in which order.
SIMULATED = """
def timed(session, inputs):
    import zlib
    return 10_000_000 + zlib.crc32(inputs.tobytes()) % 1_000_000, 0
"""
# what clocks and the machine say; all else in a report comes from the seed and the files
MEASURED = {
    "started", "import_ns", "load_ns", "load_cold_ns", "cold", "first_inference_ns", "block_ns", "visit_ns", "timer_ns",
    "harness_ns",
    "cpu_ns_per_inference", "involuntary_switches",
}  # fmt: skip


def without_measured(value):
    if isinstance(value, dict):
        return {key: without_measured(each) for key, each in value.items() if key not in MEASURED}
    return [without_measured(each) for each in value] if isinstance(value, list) else value


def test_one_seed_gives_one_report_but_for_what_is_measured(artifact, images, tmp_path, monkeypatch):
    """BT-14: the same bytes; and another seed has another order of visits and of inputs."""
    adapters(monkeypatch, tmp_path, simulated="pass")
    with (tmp_path / "simulated.py").open("a") as file:
        file.write(SIMULATED)
    # a machine that nobody else uses, which this one may not be
    for name, quiet in (("load_average", 0.0), ("throttled_periods", 0), ("cpu_ticks", (0, 1))):
        monkeypatch.setattr(environment, name, lambda quiet=quiet: quiet)
    tier = dataclasses.replace(TIER, name="simulated", rounds=3, warmup_s=0.0, block_s=0.0, extra_rounds=0)
    monkeypatch.setitem(bench.TIERS, tier.name, tier)
    artifacts = [artifact, artifact_of(tmp_path / "other.onnx", model_bytes(batch=1), stage="other")]
    pairs, store = [(each, "simulated") for each in artifacts], Store(tmp_path / "store")

    def measured(seed):
        found = measuring.latency(pairs, ("1",), images, tier.name, seed, store)
        document = files.document(
            artifacts, [facts.measurement_facts(each, measuring.twin_of(each)) for each in found], command="bench",
            tier=tier.name, seed=seed, image_count=len(images), data_note="noise", scenario=SINGLE_STREAM,
            environment=child.HERE.environment(),
        )  # fmt: skip
        return without_measured(json.loads(report.to_json(document)))

    first, again, other = measured(3), measured(3), measured(4)
    assert [row["failure"] for row in first["measurements"]] == ["", "", ""]
    assert json.dumps(first) == json.dumps(again)
    for key in ("position", "quantiles_ns"):
        told = [[visit[key] for row in each["measurements"] for visit in row["visits"]] for each in (first, other)]
        assert told[0] != told[1], key


def test_queries_are_seeded_real_images_in_new_buffers(images):
    one, other = worker.draw(images, 4, [1, 2]), worker.draw(images, 4, [1, 2])
    first, second = next(one), next(one)
    assert first.shape == (4, 3, 8, 8) and first.dtype == np.float32 and first.flags.c_contiguous
    assert np.array_equal(first, next(other)) and np.array_equal(second, next(other))
    assert not np.shares_memory(first, second) and not np.array_equal(first, second)
    pool = {image.transpose(2, 0, 1).tobytes() for image in images}
    assert all(np.rint(query * 255).astype(np.uint8).tobytes() in pool for query in first)
    assert not np.array_equal(first, next(worker.draw(images, 4, [1, 3])))


@pytest.mark.parametrize(("wanted", "expected"), [(0, 5), (12, 12), (1000, 50)])
def test_a_slow_file_is_asked_as_often_as_a_percentile_needs_or_five_times_as_long(monkeypatch, wanted, expected):
    """A query of 10 ms in a block of 0.1 s takes 5 at least; the clock stands still but in the model."""
    now = [0]
    clock = SimpleNamespace(perf_counter_ns=lambda: now[0], process_time_ns=lambda: now[0])
    monkeypatch.setattr(worker, "time", clock)
    adapter = SimpleNamespace(run=lambda session, inputs: now.__setitem__(0, now[0] + 10_000_000))
    runs, seconds = 5, 0.1 if wanted else 0.0
    samples, *_ = worker.repeat(adapter, None, iter(lambda: None, 1), runs, seconds, wanted)
    assert len(samples) == expected and set(samples) == {10_000_000}


def test_tiers_ask_as_often_as_their_percentile_needs():
    needed = [rows_cells.queries_needed(percentile) for percentile in (90, 99, 99.9)]
    assert [bench.TIERS[name].queries for name in ("quick", "standard", "rigorous")] == needed


def test_steady_compares_the_last_two_thirds():
    assert worker.is_steady([900, 900, 100, 100, 101, 101])
    assert not worker.is_steady([900, 900, 110, 110, 100, 100])
    assert not worker.is_steady([100, 100])


FAULTS = {
    "segv": ("ctypes.string_at(0)", "SIGSEGV", "crashed"),
    "abort": ("os.abort()", "SIGABRT", "crashed"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL; out of memory?", "killed"),
    "alarm": ("os.kill(os.getpid(), signal.SIGALRM)", "SIGALRM", "hung"),
    "quit": ("os._exit(0)", "exit status 0 and no result", "ended-early"),
    "leave": ("sys.exit(0)", "exit status 0 and no result", "ended-early"),
    "rubbish": ("open('result.json', 'w').write('[1, 2'); os._exit(0)", "result is not JSON", "rubbish"),
    "error": ("raise ValueError('the \\x1b[31mreason')", "ValueError: the  [31mreason", "error"),
    "memory": ("raise MemoryError('all used')", "MemoryError: all used", "error"),
}


def test_no_fault_of_a_child_stops_the_others(artifact, images, tmp_path, monkeypatch):
    log = tmp_path / "log"
    note = f"with open({str(log)!r}, 'a') as f: f.write({{name!r}} + ' ')\n"
    bodies = {name: note.format(name=name) + body for name, (body, *_) in FAULTS.items()}
    adapters(monkeypatch, tmp_path, **bodies)
    cells = [cell("good", artifact), *(cell(name, artifact, name) for name in FAULTS)]
    good, *faulty = bench.measure(cells, images, TIER, seed=0, scratch=tmp_path / "s")
    assert (good.failure, good.failure_kind) == ("", "") and len(good.visits) == TIER.rounds
    for measurement, (_, expected, kind) in zip(faulty, FAULTS.values(), strict=True):
        print(measurement.cell, "->", measurement.failure)
        assert expected in measurement.failure and measurement.failure_kind == kind
        assert measurement.visits == ()
    assert sorted(log.read_text().split()) == sorted(FAULTS), "a failed cell was visited again"


def test_a_cell_that_is_known_not_to_be_measurable_keeps_its_reason(artifact, images, tmp_path):
    why = Failure("it answers otherwise", "refused")
    cells = [dataclasses.replace(cell("bad", artifact), refused=why), cell("good", artifact)]
    bad, good = bench.measure(cells, images, TIER, seed=0, scratch=tmp_path / "s")
    assert (bad.failure, bad.failure_kind, bad.visits) == ("it answers otherwise", "refused", ())
    assert not good.failure and facts.measurement_facts(bad, "")["failure_kind"] == "refused"


def test_another_number_of_threads_than_was_asked_for_is_a_failed_cell(artifact, images, tmp_path, monkeypatch):
    adapters(monkeypatch, tmp_path, greedy="pass")
    path = tmp_path / "greedy.py"
    path.write_text(path.read_text().replace("return {}", "return {'intra_op_threads': 2}"))
    found = bench.measure(
        [cell("one", artifact, "greedy"), cell("two", artifact, "greedy", threads=2)], images, TIER, seed=0,
        scratch=tmp_path / "s",
    )  # fmt: skip
    assert found[0].failure == "load: RuntimeError: asked for 1 threads, it took 2" and found[1].failure == ""


@pytest.mark.parametrize("rubbish", ["[1, 2]", '"error"', "7", "{not json", "\0\0"])
def test_rubbish_for_a_result_is_a_reason(rubbish, tmp_path):
    (tmp_path / "result.json").write_text(rubbish)
    with pytest.raises(child.ChildFailed, match="the child's result is n") as caught:
        child._read_result(tmp_path / "result.json", tmp_path / "log", 0)
    assert caught.value.how == "rubbish"


def test_hanging_child_is_stopped_with_all_that_it_started(artifact, images, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    body = f"""
        other = subprocess.Popen(["sleep", "300"])
        with open({str(pids)!r}, "w") as f: f.write(f"{{os.getpid()}} {{other.pid}}")
        time.sleep(300)"""
    adapters(monkeypatch, tmp_path, hang=body)
    [measurement] = bench.measure(
        [cell("hang", artifact, "hang")], images, TIER, seed=0, scratch=tmp_path / "s", timeout_s=1.5
    )
    assert measurement.failure == "no result within 1.5 s; stopped" and measurement.failure_kind == "hung"
    assert [gone(pid) for pid in pids.read_text().split()] == [True, True]


def test_what_a_finished_child_left_running_is_stopped(artifact, images, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    body = f"""
        other = subprocess.Popen(["sleep", "300"])
        with open({str(pids)!r}, "a") as f: f.write(f"{{other.pid}} ")
        os._exit(0)"""
    adapters(monkeypatch, tmp_path, litter=body)
    bench.measure([cell("litter", artifact, "litter")], images, TIER, seed=0, scratch=tmp_path / "s")
    assert [gone(pid) for pid in pids.read_text().split()] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_child_ends_when_the_benchmark_itself_is_killed(tmp_path):
    pid_file, adapter = tmp_path / "pid", tmp_path / "hang.py"
    body = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    adapter.write_text(ADAPTER.format(body=body))
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    spec = {"mode": "latency", "adapter": str(adapter), "model": "", "threads": 1, "batch": 1, "seed": [0]}
    spec |= {"images": str(tmp_path / "images.npy"), "warmup_runs": 1, "warmup_s": 0.0, "block_s": 0.0}
    call = f"child.run_child({spec!r}, pathlib.Path({str(tmp_path)!r}), 60, ())"
    code = f"import pathlib; from compress import child; {call}"
    environment = os.environ | {"PYTHONPATH": str(child.WORKER.parent.parent)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    for _ in range(200):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(pid_file.read_text())


def test_child_sees_no_secrets_and_its_own_thread_limits(artifact, images, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    seen = tmp_path / "seen"
    body = f"open({str(seen)!r}, 'w').write(repr((dict(os.environ), os.getcwd(), sys.stdin.read())))"
    adapters(monkeypatch, tmp_path, spy=body)
    bench.measure([cell("spy", artifact, "spy", threads=3)], images, TIER, seed=0, scratch=tmp_path / "s")
    variables, folder, standard_input = eval(seen.read_text())
    assert "SECRET_TOKEN" not in variables
    assert {variables[f"{pool}_NUM_THREADS"] for pool in ("OMP", "MKL", "OPENBLAS")} == {"3"}
    assert folder.startswith(str(tmp_path / "s")) and variables["TMPDIR"] == folder
    assert standard_input == ""


def test_peak_memory_is_the_childs_own(artifact, images, tmp_path, monkeypatch):
    allocate = "np.ones(256 << 20, np.uint8)"
    adapters(monkeypatch, tmp_path, large=allocate, small="pass")
    ballast = np.ones(400 << 20, np.uint8)  # would show in ru_maxrss, which a child inherits
    tier = dataclasses.replace(TIER, rounds=1)
    cells = [cell("large", artifact, "large"), cell("small", artifact, "small")]
    large, small = bench.measure(cells, images, tier, seed=0, scratch=tmp_path / "s", memory=True)
    growth = large.memory["peak_rss_bytes"] - small.memory["peak_rss_bytes"]
    assert growth == pytest.approx(256 << 20, rel=0.05)
    assert small.memory["empty_rss_bytes"] < small.memory["peak_rss_bytes"] < ballast.nbytes / 2
    assert 0 < small.memory["pss_bytes"] <= small.memory["peak_rss_bytes"]
    assert "arena_off_peak_rss_bytes" not in small.memory, "this runtime has no such choice"
    assert not any("peak_rss_bytes" in visit for visit in small.visits), "a timed visit looks at nothing else"


@pytest.mark.parametrize("name", ["ort_cpu", "ort_mobile"])
def test_a_session_without_an_arena_has_none(name, artifact, tmp_path):
    adapter = worker.load_adapter(str(bench.runtime_file(name)))
    folder = tmp_path if name == "ort_mobile" else artifact.path
    if name == "ort_mobile":
        adapter.convert(artifact.path, tmp_path, "float32")
    for opened, arena in ((adapter.open_session, True), (adapter.open_without_arena, False)):
        session = opened(str(folder), 1)
        assert adapter.effective(session)["arena"] is session.get_session_options().enable_cpu_mem_arena is arena


class Nvml:
    """The driver's library with two GPUs, of which the first cannot be asked."""

    def __init__(self, processes):
        self.processes = processes

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number, gpu):
        gpu._obj.value = number + 1
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, gpu, count, running):
        if gpu.value == 1:
            return 4  # no permission
        for row, (pid, held) in zip(running, self.processes, strict=False):
            row.pid, row.bytes = pid, held
        count._obj.value = len(self.processes)
        return 0


def test_memory_of_gpus_is_what_the_driver_counts_as_the_processs(monkeypatch):
    assert worker.gpu_bytes() >= 0  # here, with or without a driver
    others, own = (os.getpid() + 1, 7 << 20), os.getpid()
    for processes, expected in (
        ([others, (own, 300 << 20), (own, 1 << 20)], 301 << 20),
        ([others], 0),  # a container knows processes by other numbers
        ([(own, 2**64 - 1)], 0),  # the driver does not count
        ([], 0),
    ):
        monkeypatch.setattr(worker.ctypes, "CDLL", lambda name, found=processes: Nvml(found))
        assert worker.gpu_bytes() == expected


def test_files_that_cannot_be_measured_are_rows_with_a_reason(artifact, images, tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    changed = artifact_of(tmp_path / "changed.onnx", model_bytes())
    changed.path.write_bytes(model_bytes(batch=1))
    cases = {
        "malformed": (artifact_of(tmp_path / "bad.onnx", b"not a model"), "bad.onnx", "error"),
        "cut": (artifact_of(tmp_path / "cut.onnx", model_bytes()[:300]), "cut.onnx", "error"),
        "empty": (artifact_of(tmp_path / "empty.onnx", b""), "empty.onnx is empty", "refused"),
        "missing": (dataclasses.replace(artifact, path=tmp_path / "no.onnx"), "cannot open", "refused"),
        "pipe": (dataclasses.replace(artifact, path=tmp_path / "pipe.onnx"), "not a regular file", "refused"),
        "changed": (changed, "not the file of its manifest", "refused"),
        "other size": (dataclasses.replace(artifact, input_shape=(1, 8, 8)), "images of shape [1, 8, 8]", "refused"),
        "other format": (dataclasses.replace(artifact, format="torch"), "reads onnx artifacts", "refused"),
    }
    cells = [cell("good", artifact), *(cell(name, bad) for name, (bad, *_) in cases.items())]
    good, *failed = bench.measure(cells, images, TIER, seed=0, scratch=tmp_path / "s")
    assert good.failure == "" and len(good.visits) == TIER.rounds
    for measurement, (bad, expected, kind) in zip(failed, cases.values(), strict=True):
        print(measurement.cell, "->", measurement.failure)
        assert expected in measurement.failure and measurement.visits == (), bad.path
        assert measurement.failure_kind == kind, bad.path
        assert str(tmp_path / "s") not in measurement.failure, "a private path means nothing to the user"


def test_unknown_runtime_and_doubled_name(artifact, images, tmp_path):
    with pytest.raises(UsageError, match="did you mean `ort_cpu`"):
        bench.measure([cell("x", artifact, "ort_cup")], images, TIER, seed=0, scratch=tmp_path)
    with pytest.raises(ValueError, match="names of their own"):
        bench.measure([cell("x", artifact), cell("x", artifact)], images, TIER, seed=0, scratch=tmp_path)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_answers_are_those_of_the_runtime_for_every_image_once(images, tmp_path, batch):
    import onnxruntime

    assert len(images) % bench.ANSWER_BATCH and len(images) % 4
    artifact = artifact_of(tmp_path / "tiny.onnx", model_bytes(batch))
    logits = bench.answers(artifact, "ort_cpu", images, threads=1, scratch=tmp_path / "s")
    free = onnxruntime.InferenceSession(model_bytes(), providers=["CPUExecutionProvider"])
    expected = free.run(None, {"input": images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)})[0]
    assert logits.dtype == np.float32 and logits.shape == (150, 5)
    # Another batch size may change the order of the sums; neighbouring images differ by 1e-2 and more.
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3
    assert list((tmp_path / "s").iterdir()) == []


def test_answers_of_what_cannot_answer(artifact, images, tmp_path, monkeypatch):
    def error_of(kind, artifact, runtime="ort_cpu", images=images):
        with pytest.raises(kind) as caught:
            bench.answers(artifact, runtime, images, threads=1, scratch=tmp_path / "s")
        print(caught.value)
        return str(caught.value)

    bodies = {"segv": "ctypes.string_at(0)", "narrow": "return np.zeros((len(inputs), 2), np.float32)"}
    adapters(monkeypatch, tmp_path, **bodies)
    bad = artifact_of(tmp_path / "bad.onnx", b"not a model")
    assert f"{bad.path} is not a usable model file" in error_of(InputRejected, bad)
    assert "hint: " in error_of(InputRejected, bad)
    assert "expected [150, 5]" in error_of(InputRejected, artifact, "narrow")
    assert "SIGSEGV" in error_of(Unmeasurable, artifact, "segv")
    assert "no image" in error_of(Unmeasurable, artifact, images=images[:0])
    assert "the data has [3, 8, 4]" in error_of(InputRejected, artifact, images=images[:, :, :4])
    assert (InputRejected.exit_code, Unmeasurable.exit_code) == (5, 4)


def test_answers_in_a_runtime_that_is_not_here(artifact, images, tmp_path, monkeypatch):
    adapters(monkeypatch, tmp_path, absent="pass")
    text = (tmp_path / "absent.py").read_text().replace('return ""', 'return "no device: pip install it"')
    (tmp_path / "absent.py").write_text(text)
    with pytest.raises(Unmeasurable, match="tiny.onnx cannot run in absent: no device: pip install it"):
        bench.answers(artifact, "absent", images, threads=1, scratch=tmp_path / "s")


def test_a_runtime_to_blame_is_not_a_bad_file(artifact, images, tmp_path, monkeypatch):
    adapters(monkeypatch, tmp_path, fallen="pass")
    text = (tmp_path / "fallen.py").read_text().replace("return path", "raise RuntimeError('fell back to the CPU')")
    (tmp_path / "fallen.py").write_text(text)
    with pytest.raises(Unmeasurable, match="fell back to the CPU"):
        bench.answers(artifact, "fallen", images, threads=1, scratch=tmp_path / "s")


def test_inspect(artifact, tmp_path):
    seen = bench.inspect_onnx(artifact.path, tmp_path / "s")
    assert seen["inputs"] == [{"name": "input", "shape": ["N", 3, 8, 8], "type": "tensor(float)"}]
    assert [v["name"] for v in seen["outputs"]] == ["logits"]
    assert seen["metadata"] == {"class_names": "a b c d e"}


@pytest.mark.parametrize("content", [b"", b"not a model", model_bytes()[:200], b"\x08" * 5000])
def test_inspect_names_a_malformed_file(tmp_path, content):
    path = tmp_path / "bad model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputRejected) as caught:
        bench.inspect_onnx(path, tmp_path / "s")
    print(caught.value)
    assert str(path) in caught.value.message and caught.value.hint
    assert str(tmp_path / "s" / "bench-") not in str(caught.value)


@pytest.mark.parametrize("place", ["beside", "above", "absolute"])
def test_weights_outside_the_file_are_refused(tmp_path, place):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.zeros((8, 5), np.float32).tobytes())
    location = {"beside": "secret.bin", "above": "../" * 20 + str(secret).lstrip("/"), "absolute": str(secret)}[place]
    path = tmp_path / "outside.onnx"
    path.write_bytes(model_bytes(weight_location=location))
    with pytest.raises(InputRejected, match="outside.onnx") as caught:
        bench.inspect_onnx(path, tmp_path / "s")
    print(caught.value)
    assert "refers to other files" in caught.value.message and "weights inside the file" in caught.value.hint
    assert str(tmp_path / "s" / "bench-") not in str(caught.value)


def test_random_damage_never_passes_unseen_to_the_parent(tmp_path):
    generator, sound = np.random.default_rng(8), np.frombuffer(model_bytes(), np.uint8)
    for index in range(6):
        damaged = sound.copy()
        damaged[generator.integers(0, len(sound), size=40)] = generator.integers(0, 256, size=40)
        path = tmp_path / f"damaged{index}.onnx"
        path.write_bytes(damaged.tobytes())
        try:
            assert "inputs" in bench.inspect_onnx(path, tmp_path / "s")
        except InputRejected as error:
            assert path.name in error.message


def test_worker_and_one_adapter_work_alone(images, tmp_path):
    """Copied to a bare folder, without this package on the path."""
    alone = tmp_path / "board"
    alone.mkdir()
    shutil.copy(child.WORKER, alone)
    shutil.copy(bench.runtime_file("ort_cpu"), alone)
    (alone / "tiny.onnx").write_bytes(model_bytes())
    np.save(alone / "images.npy", images)
    spec = {"mode": "answers", "adapter": "ort_cpu.py", "model": "tiny.onnx", "threads": 1, "batch": 64}
    spec |= {"images": "images.npy", "logits": "logits.npy", "result": "result.json"}
    (alone / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-I", "worker.py", "spec.json"], cwd=alone, check=True)
    assert np.load(alone / "logits.npy").shape == (150, 5)
    assert json.loads((alone / "result.json").read_text())["effective"]["intra_op_threads"] == 1


def test_tiers():
    assert list(bench.TIERS) == ["smoke", "quick", "standard", "rigorous"]
    assert all(tier.name == name for name, tier in bench.TIERS.items())
    assert all(tier.rounds >= 5 for tier in bench._TIERS)  # not those of the tests, which have fewer
    with pytest.raises(dataclasses.FrozenInstanceError):
        bench.TIERS["quick"].rounds = 1
