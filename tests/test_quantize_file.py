"""`compress quantize`: files of the user's own, what is refused, and what is said of the rest."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from test_quantize import reader_of_digits

from compress import export, files, network, plan, qdq, quantize_file
from compress.cli.main import compress
from compress.errors import InputRejected, UsageError
from compress.recipe import Recipe
from compress.store import Store
from compress.types import Splits
from compress.worker import to_inputs


@pytest.fixture(scope="module")
def splits() -> Splits:
    torch.set_num_threads(1)
    return plan.load_data(Recipe(), Store(Path("/nonexistent")))


@pytest.fixture(scope="module")
def network_(splits: Splits, tmp_path_factory) -> network.Network:
    return reader_of_digits(splits, tmp_path_factory.mktemp("float"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Store:
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    return Store.default()


@pytest.fixture(scope="module")
def exported(network_, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export.export_onnx(network_, path, recipe_digest="abc")
    return path


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path / "model.onnx"))


@pytest.fixture
def foreign(network_, tmp_path: Path) -> Path:
    """A file that takes normalised images and says nothing of itself."""
    contract = dataclasses.replace(network_.contract, mean=(0.0,), std=(1.0,))
    export.export_onnx(network.Network(network_.body, contract), tmp_path / "foreign.onnx", recipe_digest="")
    found = onnx.load(tmp_path / "foreign.onnx")
    del found.metadata_props[:]
    onnx.save(found, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


def top1(path: Path, splits: Splits) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: to_inputs(splits.report.images)})[0]
    return float((logits.argmax(1) == splits.report.labels).mean())


def test_a_file_of_ones_own_is_quantized_and_judged(model: Path, splits: Splits, store: Store) -> None:
    done = CliRunner().invoke(compress, ["quantize", str(model), "--data", "digits", "--max-drop", "3"])
    assert "\nit pays: it is " in done.output or "\nit does not pay: it " in done.output
    print(done.output)
    assert done.exit_code == 0, done.exception
    target = model.with_suffix(".int8.onnx")
    assert target.stat().st_size < 0.6 * model.stat().st_size
    assert top1(target, splits) > top1(model, splits) - 0.04
    assert (model.parent / "model.int8.golden.npz").exists()
    assert "per-channel min-max" in done.output and "of 359 report images" in done.output
    kinds = qdq.in_float(target)
    assert f"in float: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}" in done.output
    assert "every CPU: measured" in done.output or ("VNNI" in done.output and "emulated, " in done.output)


def test_a_file_that_says_nothing_of_itself_needs_its_normalisation(foreign: Path, splits: Splits, store) -> None:
    arguments = ["quantize", str(foreign), "--data", "digits", "--quantize", "int8"]
    done = CliRunner().invoke(compress, arguments)
    assert isinstance(done.exception, UsageError) and "how its images are normalised" in str(done.exception)
    assert "--mean 0 --std 1" in done.exception.hint
    wrong = CliRunner().invoke(compress, [*arguments, "--mean", "3", "--std", "0.01"])
    assert isinstance(wrong.exception, InputRejected), "at chance it is not what the user means"
    mean, std = (f"{value[0]:.6f}" for value in (splits.train.mean, splits.train.std))
    done = CliRunner().invoke(compress, [*arguments, "--mean", mean, "--std", std])
    assert done.exit_code == 0, done.exception
    assert top1(foreign.with_suffix(".int8.onnx"), splits) > 0.8, "the normalisation is inside now"


def test_what_is_quantized_already_is_refused(model: Path, store: Store, tmp_path: Path) -> None:
    first = CliRunner().invoke(compress, ["quantize", str(model), "--data", "digits", "--quantize", "int8_weights"])
    assert first.exit_code == 0, first.exception
    again = model.with_suffix(".int8_weights.onnx")
    with pytest.raises(InputRejected, match="quantized already"):
        found = files.open_onnx(again, tmp_path)
        quantize_file.quantize_file(found, Recipe(quantize="int8"), model.parent / "x.onnx", store=store)
    assert not (model.parent / "x.onnx").exists()


def test_an_opset_without_scales_per_channel_is_refused(model: Path, store: Store, tmp_path: Path) -> None:
    old = onnx.load(model)
    del old.opset_import[:]
    old.opset_import.append(onnx.helper.make_opsetid("", 11))
    onnx.save(old, tmp_path / "old.onnx")
    found = dataclasses.replace(files.open_onnx(model, tmp_path), path=tmp_path / "old.onnx")
    with pytest.raises(InputRejected, match="opset 11; a scale for each channel of a weight needs 13"):
        quantize_file.quantize_file(found, Recipe(quantize="int8"), tmp_path / "x.onnx", store=store)


def test_a_file_cannot_be_trained(model: Path, store: Store) -> None:
    done = CliRunner().invoke(compress, ["quantize", str(model), "--data", "digits", "--quantize", "int8_qat"])
    assert isinstance(done.exception, UsageError) and "only a file" in str(done.exception)


def test_the_model_is_never_written_over(model: Path, store: Store) -> None:
    before = model.read_bytes()
    done = CliRunner().invoke(compress, ["quantize", str(model), "--data", "digits", "--out", str(model)])
    assert isinstance(done.exception, UsageError) and model.read_bytes() == before


def test_few_calibration_images_are_said_with_their_number(splits: Splits, capsys) -> None:
    job = plan.make(Recipe(quantize="int8", student="mlp", kd=("cross_entropy",)), splits)
    plan.warn_of_few_images(job)
    assert "warning" not in capsys.readouterr().err
    few = dataclasses.replace(
        splits.calibrate, images=splits.calibrate.images[:20], labels=np.asarray(splits.calibrate.labels[:20])
    )
    fewer = dataclasses.replace(job, splits=dataclasses.replace(splits, calibrate=few))
    plan.warn_of_few_images(fewer)
    assert "only 20 images" in capsys.readouterr().err
    plan.warn_of_few_images(plan.make(Recipe(quantize="float16", student="mlp", kd=("cross_entropy",)), fewer.splits))
    assert "warning" not in capsys.readouterr().err
