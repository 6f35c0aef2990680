"""`compress convert`: for every runtime that is here, a folder whose example runs and answers as the ONNX file does.

The int8 file is that of the published digits network, trained, so that int8 means something. The float one is of a
small network: some converters take a second a layer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress import bench, catalog, convert_file, export, files, network, web_kit
from compress.cli.main import compress as group
from compress.errors import UsageError
from compress.store import Store

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
GIVEN = [
    name
    for name in catalog.names("runtimes")
    if {"SNIPPET", "SCRIPT"} & set(vars(catalog.load("runtimes", name).module))
    and name not in ("ort_cuda", "ort_tensorrt")
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def able(name: str, store: Store) -> str:
    return bench.runtime_state(name, store.root / "scratch")["unavailable"]


def example(folder: Path) -> list[str]:
    """The command that runs the folder's example; what `npm install` would bring is there."""
    if (folder / "example.py").exists():
        return [sys.executable, "example.py"]
    (folder / "node_modules").symlink_to(web_kit.default_folder() / "node_modules")
    return ["node", "example.mjs"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    net = network.build(
        "resnet_cifar:depth=8", class_names=tuple("0123456789"), input_shape=(1, 8, 8), mean=(0.3,), std=(0.3,), seed=0
    ).eval()
    path = tmp_path_factory.mktemp("small") / "kleines Netz.onnx"
    export.export_onnx(net, path, recipe_digest="")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["float32", "int8"])
@pytest.mark.parametrize("name", GIVEN)
def test_every_runtime_gets_a_folder_that_works(name, stage, store, small, tmp_path):
    if reason := able(name, store):
        pytest.skip(reason)
    given, data = ((RUN,), "") if stage == "int8" else ((small,), "digits")
    found = files.open_any(given, store.root / "scratch")
    artifact = convert_file.pick(found, next(a.stage for a in found if a.precision == stage and a.stage != "teacher"))
    recipe = files.data_for(given, found, data)
    out = tmp_path / "für die App"
    (done,) = convert_file.convert_file(artifact, (name,), recipe, out, store)
    assert done.folder == out / name, done.offer.failure
    assert {"README.md", "golden.npz", "labels.json", "preprocessing.json"} <= {p.name for p in done.folder.iterdir()}
    ran = subprocess.run(example(done.folder), cwd=done.folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and "expected" in ran.stdout, ran.stdout + ran.stderr
    versions = json.loads((done.folder / "versions.json").read_text())
    assert versions["source"]["sha256"] == artifact.digest and versions["tools"]
    for entry in versions["files"]:
        assert (done.folder / entry["file"]).stat().st_size == entry["size_bytes"]
    if stage == "float32" and name != "ort_cpu":
        allowed = catalog.load("runtimes", name).module.TOLERANCE["float32"]
        assert done.offer.gate["difference_of_spread"] <= allowed and done.offer.gate["agreement_fraction"] == 1
    if stage == "int8":
        float_bytes = next(a.size_bytes for a in found if a.precision == "float32" and a.stage != "teacher")
        assert sum(entry["size_bytes"] for entry in versions["files"]) < 0.6 * float_bytes


@pytest.mark.slow
def test_the_command_says_what_it_made_and_what_it_could_not(store, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(store.root))
    if reason := able("mnn", store):
        pytest.skip(reason)
    wanted = ["convert", str(RUN), "--to", "mnn,ort_cuda", "--out", str(tmp_path)]
    done = CliRunner().invoke(group, wanted, catch_exceptions=True)
    assert "ok      mnn" in done.output and "same answer as" in done.output
    assert "failed  ort_cuda" in done.output or "ok      ort_cuda" in done.output
    again = CliRunner().invoke(group, ["convert", str(RUN), "--to", "mnn", "--out", str(tmp_path)])
    assert again.exit_code == 0 and f"python {tmp_path / 'mnn' / 'example.py'}" in again.output


@pytest.mark.slow
def test_bench_and_eval_convert_what_a_runtime_needs(store, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(store.root))
    if reason := able("mnn", store):
        pytest.skip(reason)
    file = str(RUN / "student.onnx")
    judged = CliRunner().invoke(group, ["eval", file, "--data", "digits", "--runtime", "mnn", "--json"])
    reference = CliRunner().invoke(group, ["eval", file, "--data", "digits", "--json"])
    rows = [json.loads(done.output[done.output.index("[") :])[0] for done in (judged, reference)]
    assert rows[0]["runtime"] == "mnn" and rows[0]["correct"] == rows[1]["correct"] and rows[0]["n"] == 359
    wanted = ["bench", file, "--synthetic", "--tier", "smoke", "--runtimes", "mnn,ort_cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(group, wanted)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "report.json").read_text())
    assert {m["runtime"] for m in document["measurements"] if not m["failure"]} == {"mnn", "ort_cpu"}


def test_a_runtime_that_takes_no_file_is_refused(store, tmp_path):
    found = files.open_any((RUN,), store.root / "scratch")
    with pytest.raises(UsageError, match="there is no file to give for torch_eager"):
        convert_file.convert_file(
            found[-1], ("torch_eager",), files.data_for((RUN,), found, ""), tmp_path, store
        )  # fmt: skip
    with pytest.raises(UsageError, match="unknown runtime `ncn`"):
        convert_file.convert_file(found[-1], ("ncn",), files.data_for((RUN,), found, ""), tmp_path, store)


def test_a_folder_of_the_users_is_not_overwritten(store, tmp_path):
    found = files.open_any((RUN,), store.root / "scratch")
    (tmp_path / "ort_cpu").mkdir()
    (tmp_path / "ort_cpu" / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match="was not made by `compress convert`"):
        convert_file.convert_file(found[-1], ("ort_cpu",), files.data_for((RUN,), found, ""), tmp_path, store)
    assert (tmp_path / "ort_cpu" / "notes.txt").read_text() == "mine"


def test_which_file_of_a_run():
    found = files.open_any((RUN,), Path("unused"))
    assert convert_file.pick(found, "").precision == "int8"
    assert convert_file.pick(found, "teacher").stage == "teacher"
    with pytest.raises(UsageError, match="there is no `pruned`; there are: teacher"):
        convert_file.pick(found, "pruned")
