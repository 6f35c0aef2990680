"""Cells that fail, by the kind of their failure: real runtimes that crash, hang or are killed while they answer."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from test_bench import TIER, artifact, cell, gone, images  # noqa: F401 (fixtures)
from test_report import make_facts

from compress import bench, catalog, conversion, report
from compress.errors import InputRejected
from compress.report.schema import schema
from compress.store import Store, folder_digest
from compress.types import Artifact, FailureKind

# The runtime's own file but for `run`, which answers first: its library and its threads are at work by then. What it
# starts, and it itself, are noted.
WRAPPED = """
import ctypes, importlib.util, os, signal, subprocess, time
spec = importlib.util.spec_from_file_location("real", {real!r})
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
globals().update({{name: value for name, value in vars(real).items() if not name.startswith("__")}})
{more}
def run(session, inputs):
    answer = real.run(session, inputs)
    other = subprocess.Popen(["sleep", "300"])
    with open({note!r}, "a") as file:
        file.write(f"{{os.getpid()}} {{other.pid}} ")
    {fault}
    return answer
"""
FAULTS = {
    "segfault": ("ctypes.string_at(0)", "crashed"),
    "abort": ("os.abort()", "crashed"),
    "early": ("os._exit(0)", "ended-early"),
    "hang": ("time.sleep(300)", "hung"),
    # as the kernel does it to the largest process when there is no memory left
    "memory": ("held = bytearray(64 << 20); os.kill(os.getpid(), signal.SIGKILL)", "killed"),
}
RUNTIMES = ("ort_cpu", "openvino", "ncnn", "litert")


def tflite() -> bytes:
    """A fully connected layer as LiteRT reads it: its converter would take longer than all else here."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as made

    weights = np.random.default_rng(0).normal(size=(5, 192)).astype(np.float32)
    shapes = {"input": [1, 3, 8, 8], "weights": [5, 192], "logits": [1, 5]}
    tensors = [
        made.TensorT(shape=shape, type=made.TensorType.FLOAT32, buffer=1 + (name == "weights"), name=name)
        for name, shape in shapes.items()
    ]
    kind = made.BuiltinOperator.FULLY_CONNECTED
    operator = made.OperatorT(
        inputs=[0, 1, -1], outputs=[2], builtinOptionsType=made.BuiltinOptions.FullyConnectedOptions,
        builtinOptions=made.FullyConnectedOptionsT(),
    )  # fmt: skip
    model = made.ModelT(
        version=3,
        operatorCodes=[made.OperatorCodeT(builtinCode=kind, deprecatedBuiltinCode=kind, version=1)],
        subgraphs=[made.SubGraphT(tensors=tensors, inputs=[0], outputs=[2], operators=[operator])],
        buffers=[made.BufferT(), made.BufferT(), made.BufferT(data=weights.view(np.uint8).ravel())],
    )
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def readable_by(runtime: str, artifact: Artifact, folder: Path) -> Artifact:  # noqa: F811
    """The artifact, or another of its shape, in the runtime's own format."""
    if runtime != "litert":
        return conversion.converted(Store(folder / "store"), artifact, runtime)[0]
    made = folder / "made"
    made.mkdir()
    (made / "model.tflite").write_bytes(tflite())
    return dataclasses.replace(artifact, path=made, format="tflite", digest=folder_digest(made))


def children() -> set[int]:
    """The processes that this one has started and not collected; dead ones are among them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found |= {int(folder.name)} if int(fields[1]) == os.getpid() else set()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_that_dies_or_hangs_is_a_typed_row_and_leaves_nothing_behind(
    artifact, images, tmp_path, monkeypatch, runtime  # noqa: F811
):  # fmt: skip
    module = catalog.load("runtimes", runtime).module
    if reason := module.unavailable():
        pytest.skip(reason)
    made = readable_by(runtime, artifact, tmp_path)
    files, note, own = {}, tmp_path / "pids", bench.runtime_file
    for fault, (body, _) in FAULTS.items():
        name = f"{runtime} {fault}"  # of its own: what a name can do is asked once a process
        files[name] = tmp_path / f"{name}.py"
        # the seconds that the others have for a slow machine would be waited for
        more = "START_ALLOWANCE_S = 2.0" if fault == "hang" else ""
        text = WRAPPED.format(real=str(own(runtime)), note=str(note), fault=body, more=more)
        files[name].write_text(text)
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): files.get(name) or own(name, plugins))
    before = children()
    cells = [cell("good", made, runtime), *(cell(name, made, name) for name in files)]
    tier = dataclasses.replace(TIER, rounds=1)
    good, *failed = bench.measure(cells, images, tier, seed=1, scratch=tmp_path / "s")
    assert (good.failure, good.failure_kind, len(good.visits)) == ("", "", 1)
    for measurement, (fault, (_, kind)) in zip(failed, FAULTS.items(), strict=True):
        print(runtime, fault, "->", measurement.failure)
        assert measurement.failure_kind == kind and measurement.visits == ()
    pids = note.read_text().split()
    # all have answered; on a slow machine the one of little time need not have come so far
    assert 2 * (len(FAULTS) - 1) <= len(pids) <= 2 * len(FAULTS)
    assert [gone(pid) for pid in pids] == [True] * len(pids)
    assert children() <= before, "a process that ended was not collected"


def test_a_report_holds_the_kind_and_takes_no_other_word(tmp_path) -> None:
    kinds = schema()["properties"]["measurements"]["items"]["properties"]["failure_kind"]["enum"]
    assert kinds == ["", *get_args(FailureKind)]
    facts = make_facts()
    failed = next(m for m in facts["measurements"] if m["failure"])
    failed["failure_kind"] = "unavailable"
    path = report.write(facts, tmp_path)["json"]
    cells = {row["cell"]: row["failure_kind"] for row in report.load(path)["derived"]["cells"]}
    assert cells.pop(failed["cell"]) == "unavailable" and set(cells.values()) == {""}
    failed["failure_kind"] = "exploded"
    with pytest.raises(InputRejected, match=r"measurements\[7\].failure_kind` must be one of , crashed, killed"):
        report.document_of(facts)
