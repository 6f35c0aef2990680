"""Conversion: converters that misbehave, and the gate that every file has to pass."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_sandbox import granted

from compress import catalog, conversion
from compress.errors import Unmeasurable
from compress.store import Store, file_digest
from compress.types import Artifact, Failure

ADAPTER = '''"""A runtime of the tests: its converter does what the test says."""

import os, shutil, signal, subprocess, sys, time
import dataclasses
from pathlib import Path

REQUIRES = "none>=1"
FORMAT = "made"
TOLERANCE = {"float32": 1e-3}


def unavailable():
    """Never."""
    return ""


def version():
    """One."""
    return "1"


def convert(source, folder, precision):
    """What the test says."""
    made = folder / "model.made"
    BODY
    return {"tools": {"none": "1"}, "notes": []}


def open_session(path, threads):
    """The file's bytes."""
    return (Path(path) / "model.made").read_bytes()
'''


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "a store, größer")


@pytest.fixture
def artifact(tmp_path) -> Artifact:
    path = tmp_path / "ein Netz.onnx"
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 1, 2])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Flatten", ["input"], ["logits"])], "net", [taken], [given])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return Artifact(
        path=path, digest=file_digest(path), format="onnx", precision="float32", stage="student",
        size_bytes=path.stat().st_size, parameters=0, macs=0, input_shape=(1, 1, 2), class_names=("a", "b"),
    )  # fmt: skip


def plugin(folder: Path, body: str) -> tuple[Path, ...]:
    path = folder / "made_up.py"
    path.write_text(ADAPTER.replace("BODY", body))
    return (path,)


def test_what_was_converted_is_kept_and_found_again(store, artifact, tmp_path):
    given = plugin(tmp_path, "made.write_bytes(b'x' + source.read_bytes())")
    made, facts = conversion.converted(store, artifact, "made_up", given)
    assert (made.format, made.stage, made.precision) == ("made", "student", "float32")
    assert (made.path / "model.made").read_bytes() == b"x" + artifact.path.read_bytes()
    assert made.size_bytes == artifact.size_bytes + 1 and made.digest != artifact.digest
    assert facts["files"] == ["model.made"] and facts["tools"] == {"none": "1"} and facts["locks"] == granted()
    again, same = conversion.converted(store, artifact, "made_up", given)
    assert again == made and same == facts


TOOLS = ("pip", "pip3", "uv", "conda")  # whose `--version` works wherever they are, but for a converter


@pytest.mark.parametrize(
    ("body", "said", "kind"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV", "crashed"),
        ("os.abort()", "killed by SIGABRT", "crashed"),
        ("os._exit(0)", "exit status 0 and no result", "ended-early"),
        ("time.sleep(60)", "no result within 3 s; stopped", "hung"),
        ("raise ValueError('no kernel for the operator Celu')", "ValueError: no kernel for the operator Celu", "error"),
        ("pass", "without an error and without a file", "refused"),
        ("made.write_bytes(bytes(2_000_000))", "OSError: .*File too large", "error"),
        (
            "[(folder / str(i)).write_bytes(bytes(900_000)) for i in range(9)]; time.sleep(60)",
            "it wrote .* GB",
            "killed",
        ),
        ("held = bytearray(b'1' * 400_000_000); time.sleep(60)", "GB of memory", "killed"),
        ("made.write_bytes(b'x'); source.write_bytes(b'other')", "changed its input", "refused"),
        *[
            (f"subprocess.run(['{name}', '--version'], check=True)", f"CalledProcessError: .*'{name}'", "error")
            for name in TOOLS
        ],
    ],
    ids=["segfault", "abort", "exit", "hang", "operator", "nothing", "file", "disk", "memory", "input", *TOOLS],
)
def test_a_converter_that_misbehaves_is_a_reason(store, artifact, tmp_path, monkeypatch, body, said, kind):
    monkeypatch.setattr(conversion, "TIMEOUT_S", 3.0 if "60" in body and "held" not in body else 60.0)
    monkeypatch.setattr(conversion, "FILE_BYTES", 1_000_000)
    monkeypatch.setattr(conversion, "FOLDER_BYTES", 5_000_000)
    monkeypatch.setattr(conversion, "MEMORY_BYTES", 300_000_000)
    before = artifact.path.read_bytes()
    with pytest.raises(Unmeasurable, match=said) as caught:
        conversion.converted(store, artifact, "made_up", plugin(tmp_path, body))
    assert str(store.root) not in caught.value.message, "a path of ours says nothing to the user"
    assert conversion.failure_of(caught.value) == Failure(caught.value.message, kind)
    assert artifact.path.read_bytes() == before
    assert not any((store.root / "scratch").iterdir()), "nothing half-made is left"
    assert not list((store.root / "steps").rglob("manifest.json"))


@pytest.mark.parametrize(("name", "said"), [("ncnn", "ncnn has no layer Hardmax"), ("mnn", "MNN has no ONNX::Hardmax")])
def test_an_operator_that_a_runtime_lacks_is_named(store, artifact, tmp_path, name, said):
    if reason := catalog.load("runtimes", name).module.unavailable():
        pytest.skip(reason)
    model = onnx.load(artifact.path)
    model.graph.node.append(helper.make_node("Hardmax", [model.graph.output[0].name], ["one_of"]))
    model.graph.output[0].name = "one_of"
    onnx.save(model, tmp_path / "hard.onnx")
    digest = file_digest(tmp_path / "hard.onnx")
    hard = dataclasses.replace(artifact, path=tmp_path / "hard.onnx", digest=digest)
    with pytest.raises(Unmeasurable, match=said):
        conversion.converted(store, hard, name)


def test_a_conversion_that_was_killed_is_made_again(store, artifact, tmp_path):
    given = plugin(tmp_path, "made.write_bytes(b'x')")
    made, _ = conversion.converted(store, artifact, "made_up", given)
    (made.path.parent / "manifest.json").unlink()  # what a kill between the files and the manifest leaves
    again, _ = conversion.converted(store, artifact, "made_up", given)
    assert again == made and (again.path / "model.made").read_bytes() == b"x"


def test_a_converter_writes_nowhere_else(store, artifact, tmp_path):
    outside = tmp_path / "outside"
    given = plugin(tmp_path, f"made.write_bytes(b'x')\n    open({str(outside)!r}, 'w').write('x')")
    try:
        _, facts = conversion.converted(store, artifact, "made_up", given)
    except Unmeasurable as error:
        assert "PermissionError" in error.message and not outside.exists()
    else:
        assert not facts["locks"]["files"] and not granted()["files"], "it could be, or was, locked"


def test_home_is_not_the_users(store, artifact, tmp_path):
    given = plugin(tmp_path, "made.write_text(str(Path.home()))")
    made, _ = conversion.converted(store, artifact, "made_up", given)
    assert (made.path / "model.made").read_text() != str(Path.home())


def test_a_precision_that_a_runtime_does_not_take(store, artifact, tmp_path):
    import dataclasses

    given, other = plugin(tmp_path, "pass"), dataclasses.replace(artifact, precision="int8")
    with pytest.raises(Unmeasurable, match="made_up takes no int8 file; it takes float32") as caught:
        conversion.converted(store, other, "made_up", given)
    assert conversion.failure_of(caught.value).kind == "refused"


def test_a_runtime_that_is_not_here_is_unavailable(store, artifact, tmp_path):
    (path,) = given = plugin(tmp_path, "pass")
    path.write_text(path.read_text().replace('return ""', 'return "no such device"'))
    with pytest.raises(Unmeasurable, match="no such device") as caught:
        conversion.converted(store, artifact, "made_up", given)
    assert conversion.failure_of(caught.value) == Failure("no such device", "unavailable")


LABELS = np.arange(1000) % 10
LOGITS = np.random.default_rng(0).normal(size=(1000, 10)) + 8 * np.eye(10)[LABELS]


def test_the_gate_lets_rounding_through_and_stops_what_is_wrong():
    noise = np.random.default_rng(1).uniform(-1, 1, LOGITS.shape) * np.ptp(LOGITS)
    assert conversion.gate(LOGITS, LOGITS + 9e-4 * noise, LABELS, "float32", 1e-3)["why"] == ""
    assert "allowed is 0.001" in conversion.gate(LOGITS, LOGITS + 2e-3 * noise, LABELS, "float32", 1e-3)["why"]
    # what an importer gets wrong: the classes in another order, another image's answer, a constant
    for wrong in (np.roll(LOGITS, 1, axis=1), np.roll(LOGITS, 1, axis=0), np.zeros_like(LOGITS)):
        assert conversion.gate(LOGITS, wrong, LABELS, "float32", 1e-3)["why"]
        assert conversion.gate(LOGITS, wrong, LABELS, "int8", 0.25)["why"]


def test_a_single_nan_stops_a_file():
    broken = LOGITS.copy()
    broken[500, 3] = np.nan
    for precision in ("float32", "int8"):
        for pair in ((LOGITS, broken), (broken, LOGITS), (broken, broken)):
            facts = conversion.gate(*pair, LABELS, precision, 1e-3)
            assert facts["why"] == "its logits, or those of the ONNX file, are not all finite numbers"
            assert facts["difference_of_spread"] is None


@pytest.mark.parametrize(("changed", "why"), [(20, ""), (21, "answers 97.9% of the images")])
def test_int8_agrees_on_98_percent(changed, why):
    """The images whose answers change are wrong in both, so that top-1 stays the same."""
    wrong, other = np.eye(10)[(LABELS + 1) % 10], np.eye(10)[(LABELS + 2) % 10]
    expected, got = LOGITS.copy(), LOGITS.copy()
    expected[:changed], got[:changed] = wrong[:changed], other[:changed]
    facts = conversion.gate(expected, got, LABELS, "int8", 0.25)
    assert facts["why"].startswith(f"it {why}" if why else "") and bool(facts["why"]) is bool(why)


def test_int8_may_not_be_shown_to_lose_more_than_a_point():
    """Of 20,000 images 1.5 % get worse and none better: they agree on 98.5 %, and a point is certainly lost."""
    labels = np.tile(LABELS, 20)
    expected = np.tile(LOGITS, (20, 1))
    got = expected.copy()
    right = np.flatnonzero(expected.argmax(1) == labels)[:300]
    got[right] = np.eye(10)[(labels[right] + 1) % 10]
    assert "loses at least 1." in conversion.gate(expected, got, labels, "int8", 0.25)["why"]
    got[right[200:]] = expected[right[200:]]
    assert conversion.gate(expected, got, labels, "int8", 0.25)["why"] == ""


def test_images_without_labels_are_compared_by_answers_alone():
    labels = np.full(len(LABELS), -1)
    facts = conversion.gate(LOGITS, LOGITS, labels, "int8", 0.25)
    assert facts["labelled"] == 0 and facts["why"] == "" and facts["agreement_fraction"] == 1
