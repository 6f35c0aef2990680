"""`compress convert`: for every runtime that is here, a folder whose example runs and answers as the ONNX file does.

The files are of a small network, for some converters take a second a layer, and of a trained one, so that int8 means
something.
"""

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from compress import (
    arm64_verify,
    bench,
    catalog,
    convert_file,
    export,
    files,
    network,
    plan,
    recipe,
    runtime_files,
    web_kit,
)
from compress.cli.main import compress as group
from compress.errors import UsageError
from compress.store import Store

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
ARM_KIT = os.environ.get("COMPRESS_ARM64_KIT", "")
GIVEN = [
    name
    for name in catalog.names("runtimes")
    if {"SNIPPET", "SCRIPT"} & set(vars(catalog.load("runtimes", name).module))
    and name not in ("ort_cuda", "ort_tensorrt")
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """In a folder as users have them: all converters and runtimes are given such paths."""
    return Store(tmp_path_factory.mktemp("store größer"))


def example(folder: Path) -> list[str]:
    """The command that runs the folder's example; what `npm install` would bring is there."""
    if (folder / "example.py").exists():
        return [sys.executable, "example.py"]
    (folder / "node_modules").symlink_to(web_kit.default_folder() / "node_modules")
    return ["node", "example.mjs"]


@pytest.fixture(scope="module")
def small(tmp_path_factory, store) -> dict[str, Path]:
    """A float file, and the int8 and the half-precision file made of it."""
    splits = plan.load_data(recipe.Recipe(), store)
    net = network.build(
        "resnet_cifar:depth=8", class_names=splits.train.class_names, input_shape=(1, 8, 8), mean=(0.3,), std=(0.3,),
        seed=0,
    )  # fmt: skip
    images = torch.from_numpy(splits.train.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(splits.train.labels)
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.1, momentum=0.9)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).repeat(4).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("models größer")
    paths = {"float32": folder / "kleines Netz.onnx", "int8": folder / "kleines Netz.int8.onnx"}
    paths["float16"] = folder / "kleines Netz.half.onnx"
    export.export_onnx(net.eval(), paths["float32"], recipe_digest="")
    quantizer = catalog.load("quantizers", "int8")
    quantizer.module.apply(
        quantizer.config, paths["float32"], paths["int8"], splits.calibrate.images, tmp_path_factory.mktemp("s")
    )
    quantizer = catalog.load("quantizers", "float16")
    quantizer.module.apply(
        quantizer.config, paths["float32"], paths["float16"], splits.calibrate.images, tmp_path_factory.mktemp("h")
    )
    return paths


CASES = [(name, precision) for name in GIVEN for precision in ("float32", "int8")]
CASES += [("ncnn", "float16"), ("mnn", "float16")]


@pytest.fixture
def litert_in_a_kit(tmp_path, monkeypatch):
    """A kit, which tells another version of LiteRT's converter than the one that is installed here."""
    folder = tmp_path / "kit"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "litert_torch-0.9.9.dist-info").mkdir()
    (site / "litert_torch-0.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: litert-torch\nVersion: 0.9.9\n"
    )
    (folder / "kit.json").write_text('{"litert-torch": "0.9.9"}')
    monkeypatch.setenv("COMPRESS_LITERT_KIT", str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_runtime_gets_a_folder_that_works(name, precision, store, small, tmp_path, request):
    if (name, precision) == ("litert", "int8"):
        request.getfixturevalue("litert_in_a_kit")
    if reason := bench.runtime_state(name)["unavailable"]:
        pytest.skip(reason)
    (artifact,) = found = files.open_any((small[precision],), store.root / "scratch")
    assert artifact.precision == precision
    wanted = files.data_for((small[precision],), found, "digits")
    out = tmp_path / "für die App"
    (done,) = convert_file.convert_file(artifact, (name,), wanted, out, store)
    assert done.folder == out / name, done.offer.failure
    assert {"README.md", "golden.npz", "labels.json", "preprocessing.json"} <= {p.name for p in done.folder.iterdir()}
    if precision == "int8" or name != "executorch":  # whose example takes ten seconds to import the exporter
        ran = subprocess.run(example(done.folder), cwd=done.folder, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0 and "expected" in ran.stdout, ran.stdout + ran.stderr
    versions = json.loads((done.folder / "versions.json").read_text())
    assert versions["source"]["sha256"] == artifact.digest and versions["tools"]
    if name == "litert":
        assert (versions["tools"]["litert-torch"] == "0.9.9") == (precision == "int8")
    for entry in versions["files"]:
        assert (done.folder / entry["file"]).stat().st_size == entry["size_bytes"]
    if precision == "float32" and name != "ort_cpu":
        allowed = catalog.load("runtimes", name).module.TOLERANCE["float32"]
        assert done.offer.gate["difference_of_spread"] <= allowed and done.offer.gate["agreement_fraction"] == 1
    if precision == "int8" and name in ("litert", "executorch"):
        given = np.zeros((2, 8, 8, 1), np.uint8)
        _, said = bench.answers_and_facts(done.offer.artifact, name, given, threads=2, scratch=store.root / "scratch")
        effective = said["effective"]
        assert effective["asked_threads" if name == "litert" else "intra_op_threads"] == 2  # which LiteRT does not tell
        assert name == "executorch" or effective["delegates"] > 0
    if precision == "int8" and name in arm64_verify.RUNTIMES and ARM_KIT:
        ((_, said, well),) = arm64_verify.verify(done.folder, Path(ARM_KIT), store.root / "scratch")
        assert well, said
    if precision == "int8":
        float_bytes = small["float32"].stat().st_size
        assert sum(entry["size_bytes"] for entry in versions["files"]) < 0.6 * float_bytes


@pytest.mark.slow
def test_a_runtime_that_quantizes_by_itself_is_compared_with_the_network_in_float(store, small):
    """MNN computes int8 weights with float activations: the ONNX file's own rounding of these is no reference."""
    if reason := bench.runtime_state("mnn")["unavailable"]:
        pytest.skip(reason)
    (artifact,) = found = files.open_any((small["int8"],), store.root / "scratch")
    chosen = files.data_for((small["int8"],), found, "digits")
    job = plan.make(dataclasses.replace(chosen, teacher=(str(artifact.path),)), plan.load_data(chosen, store))
    offers = {name: runtime_files.offer(job, store, artifact, name) for name in ("mnn", "ort_mobile")}
    assert offers["mnn"].gate["reference"] == "the ONNX file in float" and not offers["mnn"].failure
    assert offers["ort_mobile"].gate["reference"] == "the ONNX file" and not offers["ort_mobile"].failure
    # with float activations it is closer to the float network than to what int8 makes of it
    assert offers["mnn"].gate["difference_of_spread"] < 0.02


@pytest.mark.slow
def test_the_command_says_what_it_made_and_what_it_could_not(store, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(store.root))
    if reason := bench.runtime_state("mnn")["unavailable"]:
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
    if reason := bench.runtime_state("mnn")["unavailable"]:
        pytest.skip(reason)
    file = str(RUN / "student.onnx")
    judged = CliRunner().invoke(group, ["eval", file, "--data", "digits", "--runtime", "mnn", "--json"])
    reference = CliRunner().invoke(group, ["eval", file, "--data", "digits", "--json"])
    rows = [json.loads(done.stdout)[0] for done in (judged, reference)]
    assert rows[0]["runtime"] == "mnn" and rows[0]["correct"] == rows[1]["correct"] and rows[0]["n"] == 359
    wanted = ["bench", file, "--synthetic", "--tier", "smoke", "--runtimes", "mnn,ort_cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(group, wanted)
    assert done.exit_code in (0, 4), done.output
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
