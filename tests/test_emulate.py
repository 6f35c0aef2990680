"""int8 as other CPUs compute it: against sums done by hand, and against the kernels of this machine."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_quantize import answers, quantized, source, splits  # noqa: F401 (fixtures)

from compress import emulate, environment

SATURATES = environment.int8_saturates(environment.capture())


def one_layer(
    weight: np.ndarray, *, zero: int = 0, signed: bool = False, pads: tuple[int, ...] = (0, 0, 0, 0), groups: int = 1
) -> onnx.ModelProto:
    """A file of one int8 convolution `[O,C,kh,kw]`: inputs in steps of 1/255, so levels are pixels plus `zero`."""
    outputs, channels = weight.shape[0], weight.shape[1] * groups
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y"], pads=pads, group=groups, kernel_shape=weight.shape[2:]),
        helper.make_node("QuantizeLinear", ["y", "sy", "zy"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "sy", "zy"], ["logits"]),
    ]  # fmt: skip
    step = np.float32(1 / 255)
    moved = np.int8(zero - emulate.SHIFT) if signed else np.uint8(zero)
    tensors = {
        "sx": step, "zx": moved, "w": weight.astype(np.int8), "sw": np.ones(outputs, np.float32),
        "zw": np.zeros(outputs, np.int8), "sy": np.float32(np.abs(weight).sum((1, 2, 3)).max() / 127),
        "zy": np.int8(0) if signed else np.uint8(128),
    }  # fmt: skip
    sizes = ["n", outputs, None, None]
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", channels, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def pixels(channels: int, value: int | None = None, count: int = 2) -> np.ndarray:
    if value is not None:
        return np.full((count, 4, 4, channels), value, np.uint8)
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)


@pytest.mark.parametrize("signed", [False, True])
def test_a_pair_of_full_products_is_clipped_to_sixteen_bits(signed: bool) -> None:
    """127·255 + 127·255 = 64,770 becomes 32,767: half of the sum is lost, as on every CPU without VNNI."""
    model = one_layer(np.full((1, 4, 1, 1), 127), signed=signed)
    assert emulate.can_saturate(model) and emulate.has_signed_activations(model) == signed
    exact, none = emulate.answers(model, pixels(4, 255), saturates=False)
    clipped, pairs = emulate.answers(model, pixels(4, 255), saturates=True)
    step = 4 / 127 * 127
    assert np.allclose(exact, 4 * 127, atol=step) and none == 0
    assert np.allclose(clipped, 2 * 32767 / 255, atol=step)
    assert pairs == 2 * 2 * 16  # images, pairs, places


@pytest.mark.parametrize(
    ("weights", "clips"),
    [
        ((127, -127), False),  # of two signs: the products cancel
        ((64, 64), False),  # 7 bits: 2 · 64 · 255 = 32,640
        ((64, 65), True),  # 129 · 255 = 32,895
        ((-64, -65), True),
        ((-64, -64), False),
    ],
)
def test_which_pairs_can_be_clipped(weights: tuple[int, int], clips: bool) -> None:
    _, pairs = emulate.answers(one_layer(np.array(weights).reshape(1, 2, 1, 1)), pixels(2, 255), saturates=True)
    assert bool(pairs) == clips


def test_depthwise_kernels_widen_before_they_multiply() -> None:
    model = one_layer(np.full((4, 1, 3, 3), 127), groups=4)
    _, pairs = emulate.answers(model, pixels(4, 255), saturates=True)
    assert pairs == 0


def test_neighbours_are_channels_of_one_place_of_the_kernel() -> None:
    """Two channels of one place are clipped together, two places of one channel are not."""
    beside, behind = np.zeros((1, 2, 1, 2)), np.zeros((1, 2, 1, 2))
    beside[0, 0, 0, :], behind[0, :, 0, 0] = 127, 127
    for weight, clips in ((beside, False), (behind, True)):
        _, pairs = emulate.answers(one_layer(weight), pixels(2, 255), saturates=True)
        assert bool(pairs) == clips


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "shape,groups,pads,zero",
    [
        ((8, 16, 1, 1), 1, (0, 0, 0, 0), 0),
        ((8, 3, 3, 3), 1, (1, 1, 1, 1), 0),
        ((8, 5, 2, 2), 1, (0, 0, 1, 1), 17),
        ((8, 4, 3, 3), 2, (1, 1, 1, 1), 17),
        ((8, 1, 3, 3), 8, (1, 1, 1, 1), 0),
        ((8, 1, 3, 3), 4, (1, 1, 1, 1), 0),  # two outputs a group: no depthwise kernel
        ((1, 1, 3, 3), 1, (1, 1, 1, 1), 0),  # one of all: a depthwise kernel
    ],
)
def test_one_layer_is_what_this_machines_kernels_make_of_it(shape, groups, pads, zero, signed, tmp_path: Path) -> None:
    weight = np.random.default_rng(1).integers(-127, 128, shape)
    model = one_layer(weight, groups=groups, pads=pads, zero=zero, signed=signed)
    onnx.save(model, tmp_path / "model.onnx")
    images = pixels(shape[1] * groups)
    expected = answers(tmp_path / "model.onnx", images)
    got, pairs = emulate.answers(model, images, saturates=SATURATES)
    step = np.abs(weight).sum((1, 2, 3)).max() / 127
    assert np.abs(got - expected).max() <= 1.01 * step  # a tie may be rounded the other way
    assert np.abs(got - expected).mean() < 0.05 * step
    assert SATURATES is False or bool(pairs) == (shape[1] > 1 or len(weight) > groups)


def test_matrix_products_clip_too_and_files_of_one_batch_size_are_read(tmp_path: Path) -> None:
    """As a linear layer without bias becomes one, in a file that takes a single image."""
    weight = np.random.default_rng(2).integers(-127, 128, (16, 6)).astype(np.int8)
    step = np.float32(np.abs(weight.astype(int)).sum(0).max() / 127)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["x"]),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "sx", "zx"], ["qf"]),
        helper.make_node("DequantizeLinear", ["qf", "sx", "zx"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "sy", "zy"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "sy", "zy"], ["logits"]),
    ]
    tensors = {
        "sx": np.float32(1 / 255), "zx": np.uint8(0), "w": weight, "sw": np.ones(6, np.float32),
        "zw": np.zeros(6, np.int8), "sy": step, "zy": np.uint8(128), "shape": np.array([1, 16], np.int64),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    assert emulate.can_saturate(model)
    images = pixels(1, count=20)
    expected = np.concatenate([answers(tmp_path / "model.onnx", images[i : i + 1]) for i in range(20)])
    got, _ = emulate.answers(model, images, saturates=SATURATES)
    assert got.shape == (20, 6) and np.abs(got - expected).max() <= 1.01 * step
    assert np.abs(got - expected).mean() < 0.05 * step
    assert emulate.answers(model, pixels(1, 255), saturates=True)[1] > 0


def test_a_whole_file_is_what_this_machines_kernels_make_of_it(source, splits, tmp_path: Path) -> None:  # noqa: F811
    path, _ = quantized("int8", source, splits.calibrate.images, tmp_path)
    images = splits.select.images[:64]
    expected, spread = answers(path, images), answers(source, images).std()
    here, _ = emulate.answers(onnx.load(path), images, saturates=SATURATES)
    other, _ = emulate.answers(onnx.load(path), images, saturates=not SATURATES)
    assert np.abs(here - expected).mean() < 0.005 * spread
    assert np.abs(other - expected).mean() > 4 * np.abs(here - expected).mean()


@pytest.mark.parametrize("knob", ["reduce_range=true", "weights=uint8"])
def test_weights_that_cannot_saturate_do_not(knob: str, source, splits, tmp_path: Path) -> None:  # noqa: F811
    path, _ = quantized(f"int8:{knob}", source, splits.calibrate.images, tmp_path)
    _, pairs = emulate.answers(onnx.load(path), splits.select.images[:32], saturates=True)
    assert pairs == 0
