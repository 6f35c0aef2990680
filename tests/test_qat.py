"""Quantization-aware training: the torch model is the file, training brings it nearer to the float one."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from test_quantize import answers, quantized, reader_of_digits, source, splits  # noqa: F401 (fixtures)
from torch import nn

from compress import catalog, emulate, export, network, qat, qdq
from compress.worker import to_inputs

KINDS = ["int8", "int8:weights=uint8", "int8:reduce_range=true", "int8:activations=int8,symmetric=true",
         "int8:keep_float=body.conv1", "int8:keep_float=body.layer2.0.conv1", "int8:per_channel=false"]  # fmt: skip


def begun(spec: str, source: Path, images: np.ndarray, folder: Path) -> tuple[Path, Path]:  # noqa: F811
    """(the float file whose weights are rounded, the int8 file)"""
    path, _ = quantized(spec, source, images, folder)
    entry = catalog.load("quantizers", spec)
    entry.module.prepare(entry.config, source, folder / "prepared.onnx", images)
    return folder / "prepared.onnx", path


def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(to_inputs(images))).numpy()


def exact(path: Path, images: np.ndarray) -> np.ndarray:
    return emulate.answers(onnx.load(path), images, saturates=False)[0]


@pytest.mark.parametrize("spec", KINDS)
def test_the_model_that_is_trained_is_the_file(spec: str, source, splits, tmp_path: Path) -> None:  # noqa: F811
    """Within 0.5 % of the logits' spread on average, and at most two steps of the logits' own int8 anywhere: a bias is
    rounded to a part of a step, and a tie may fall otherwise. (Before training 1 %: the largest of unsigned weights is
    a tie.)
    """
    images = splits.select.images[:64]
    prepared, path = begun(spec, source, splits.calibrate.images, tmp_path)
    student = qat.Trained(prepared, path)
    assert len(student.weights) == (7 if "keep_float" in spec else 8)
    before = exact(path, images)
    step = np.diff(np.unique(before)).min()
    assert np.abs(logits(student, images) - before).mean() < 0.01 * before.std()
    with torch.no_grad():  # some other weights: these too must be what is written
        generator = torch.Generator().manual_seed(0)
        for value in (*student.weights, *student.biases):
            value += 0.02 * torch.randn(value.shape, generator=generator) * value.abs().mean()
    student.write(path)
    got, expected = exact(path, images), logits(student, images)
    assert np.abs(got - before).mean() > 0.005 * before.std(), "nothing was written"
    assert np.abs(got - expected).mean() < 0.005 * expected.std()
    assert np.abs(got - expected).max() <= 2.01 * step


def test_training_brings_a_coarse_file_nearer_to_the_float_one(source, splits, tmp_path: Path) -> None:  # noqa: F811
    """Weights of one scale for all channels, and too few steps for them: what C1 of mobile networks comes down to."""
    images = splits.train.images
    prepared, path = begun("int8:per_channel=false", source, splits.calibrate.images, tmp_path)
    coarser(path, 16)
    student, teacher = qat.Trained(prepared, path), qat.float_answers(source)
    wanted = torch.from_numpy(logits(teacher, images))
    inputs, held_out = torch.from_numpy(to_inputs(images)), splits.select.images

    def error() -> float:
        return float(np.square(exact(path, held_out) - logits(teacher, held_out)).mean())

    before, optimizer = error(), torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    for number in range(60):
        index = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        nn.functional.mse_loss(student(inputs[index]), wanted[index]).backward()
        optimizer.step()
    student.write(path)
    assert error() < 0.5 * before


def coarser(path: Path, factor: int) -> None:
    """Rewrite the int8 file with weights on a grid that much wider."""
    model = onnx.load(path)
    for layer in qdq.quantized_layers(model):
        levels = numpy_helper.to_array(layer.weight).astype(np.int64)
        tensors = {t.name: t for t in model.graph.initializer}
        node = next(n for n in model.graph.node if layer.node.input[1] in n.output)
        layer.weight.CopyFrom(numpy_helper.from_array(np.rint(levels / factor).astype(np.int8), layer.weight.name))
        scale = numpy_helper.to_array(tensors[node.input[1]]) * np.float32(factor)
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scale, node.input[1]))
    onnx.save(model, path)


def test_every_weight_and_bias_gets_a_gradient(source, splits, tmp_path: Path) -> None:  # noqa: F811
    student = qat.Trained(*begun("int8", source, splits.calibrate.images, tmp_path))
    student(torch.from_numpy(to_inputs(splits.train.images[:32]))).square().sum().backward()
    assert len(student.biases) == 8
    for value in (*student.weights, *student.biases):
        assert value.grad is not None and torch.isfinite(value.grad).all() and value.grad.any()


def test_weights_of_one_sign_can_be_trained_to_the_other(splits, tmp_path: Path) -> None:  # noqa: F811
    """As of a filter that blurs: what integers a weight may take is the scheme's, not what it took at first."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10, bias=False))
    with torch.no_grad():
        body[0].weight.abs_().add_(0.01)
    split = splits.train
    contract = network.build(
        "mlp", class_names=split.class_names, input_shape=split.input_shape, mean=split.mean, std=split.std, seed=0
    ).contract
    export.export_onnx(network.Network(body.eval(), contract), tmp_path / "float.onnx", recipe_digest="")
    student = qat.Trained(*begun("int8", tmp_path / "float.onnx", splits.calibrate.images[:64], tmp_path))
    assert [(layer.low, layer.high) for layer in student.layers] == [(-127, 127)] * 2, "the linear one is a MatMul"
    student(torch.from_numpy(to_inputs(split.images[:8]))).square().sum().backward()
    with torch.no_grad():
        student.weights[0].neg_()
    student.write(tmp_path / "trained.onnx")
    levels = numpy_helper.to_array(qdq.quantized_layers(onnx.load(tmp_path / "trained.onnx"))[0].weight)
    assert levels.min() == -127 and levels.max() < 0


STUDENTS = ["mobilenet:width=0.25", "mobilenet_v3_small:width=0.35", "shufflenet:width=0.5", "resnet_cifar:depth=8"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", STUDENTS)
def test_each_layer_of_a_trained_file_runs_as_an_int8_kernel(spec: str, splits, tmp_path: Path) -> None:  # noqa: F811
    """Hardswish, squeeze-and-excitation and channel shuffle among them; any batch size is taken."""
    split = splits.train
    net = network.build(
        spec, class_names=split.class_names, input_shape=split.input_shape, mean=split.mean, std=split.std, seed=0
    )
    export.export_onnx(net.eval(), tmp_path / "float.onnx", recipe_digest="")
    prepared, path = begun("int8", tmp_path / "float.onnx", splits.calibrate.images[:64], tmp_path)
    student = qat.Trained(prepared, path)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    student(torch.from_numpy(to_inputs(split.images[:32]))).square().mean().backward()
    optimizer.step()
    student.write(path)
    onnx.checker.check_model(str(path), full_check=True)
    layers = sum(node.op_type in ("Conv", "Gemm") for node in onnx.load(path).graph.node)
    assert qdq.kernels(path, tmp_path) | {"conversions": 0} == {"int8": layers, "float": 0, "conversions": 0}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        assert session.run(None, {"input": to_inputs(split.images[:count])})[0].shape == (count, 10)
    images = splits.select.images[:16]
    got, expected = exact(path, images), logits(student, images)
    assert np.abs(got - expected).mean() < 0.02 * expected.std()
    for layer in qdq.quantized_layers(onnx.load(path)):
        assert not layer.zero.any() and -127 <= layer.low and layer.high <= 127
        if layer.bias is None:  # several layers without a bias read one tensor of zeros
            continue
        bias = numpy_helper.to_array(layer.bias).astype(np.int64)
        levels = numpy_helper.to_array(layer.weight).astype(np.int64)
        reduced = np.abs(levels).reshape(len(levels), -1).sum(1) if layer.axis == 0 else np.abs(levels).sum(0)
        assert (np.abs(bias) + 255 * reduced < 2**31).all(), "a sum would leave 32 bits"


def test_answers_of_the_trained_file_are_still_right(source, splits, tmp_path: Path) -> None:  # noqa: F811
    prepared, path = begun("int8", source, splits.calibrate.images, tmp_path)
    student = qat.Trained(prepared, path)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for start in range(0, 256, 32):
        labels = torch.from_numpy(splits.train.labels[start : start + 32])
        optimizer.zero_grad()
        inputs = torch.from_numpy(to_inputs(splits.train.images[start : start + 32]))
        nn.functional.cross_entropy(student(inputs), labels).backward()
        optimizer.step()
    student.write(path)
    expected, got = answers(source, splits.select.images), answers(path, splits.select.images)
    assert (expected.argmax(1) == got.argmax(1)).mean() > 0.95
