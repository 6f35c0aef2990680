"""The float twin of QDQ files, and ncnn's int8 form of it. The ncnn files are written here, which needs no pnnx."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import float_twin, ncnn_int8
from compress.errors import InputRejected

CONV = "0=4 1=3 11=3 2=1 12=1 3=1 13=1 4=1 14=1 5=1 6=72"
DEPTHWISE = "0=4 1=3 11=3 2=1 12=1 3=1 13=1 4=1 14=1 5=0 6=36 7=4"
LINEAR = "0=3 1=1 2=768"


class Network:
    """Conv 3x3, depthwise 3x3, Gemm on images `[N,2,8,8]`, each behind a Q/DQ pair; layers in `plain` stay float."""

    def __init__(self, *, plain: tuple[str, ...] = (), uint8: bool = False, seed: int = 0):
        self.random, self.uint8 = np.random.default_rng(seed), uint8
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.biases: dict[str, np.ndarray] = {}
        self.layer("conv", "Conv", self.pair("x", 0.02, 120), (4, 2, 3, 3), "a", plain, pads=[1] * 4)
        self.layer("dw", "Conv", self.pair("a", 0.05, 0), (4, 1, 3, 3), "b", plain, bias=False, pads=[1] * 4, group=4)
        self.nodes.append(helper.make_node("Flatten", [self.pair("b", 0.02, 0)], ["f"], name="flatten"))
        self.layer("fc", "Gemm", self.pair("f", 0.02, 0), (3, 256), "c", plain, transB=1)
        self.pair("c", 0.2, 128)
        self.nodes[-1].output[0] = "y"

    def pair(self, name: str, scale: float, zero: int) -> str:
        self.constants |= {f"{name}/s": np.array(scale, np.float32), f"{name}/z": np.array(zero, np.uint8)}
        scaled = [f"{name}/s", f"{name}/z"]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *scaled], [f"{name}/q"], name=f"{name}/q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}/q", *scaled], [f"{name}/d"], name=f"{name}/d"))
        return f"{name}/d"

    def layer(
        self, name: str, kind: str, source: str, shape: tuple[int, ...], made: str, plain: tuple[str, ...],
        *, bias: bool = True, **attributes: Any,
    ) -> None:  # fmt: skip
        levels = self.random.integers(-127, 128, shape)
        levels.reshape(shape[0], -1)[:, 0] = 127
        scale = self.random.uniform(0.5, 2, shape[0]).astype(np.float32) * np.float32(0.004)
        self.weights[name] = levels
        inputs = [source, f"{name}/wd"]
        if name in plain:
            self.constants[f"{name}/wd"] = (self.random.normal(size=shape) * 0.1).astype(np.float32)
        else:
            stored = (levels + 128).astype(np.uint8) if self.uint8 else levels.astype(np.int8)
            zero = np.full(shape[0], 128 if self.uint8 else 0, stored.dtype)
            self.constants |= {f"{name}/w": stored, f"{name}/ws": scale, f"{name}/wz": zero}
            named = [f"{name}/w", f"{name}/ws", f"{name}/wz"]
            self.nodes.append(helper.make_node("DequantizeLinear", named, [f"{name}/wd"], name=f"{name}/wd", axis=0))
        if bias:
            self.constants |= {f"{name}/b": np.arange(shape[0], dtype=np.int32) * 50, f"{name}/bs": scale}
            named = [f"{name}/b", f"{name}/bs"]
            self.nodes.append(helper.make_node("DequantizeLinear", named, [f"{name}/bd"], name=f"{name}/bd", axis=0))
            inputs.append(f"{name}/bd")
        self.nodes.append(helper.make_node(kind, inputs, [made], name=name, **attributes))

    def model(self) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, (count, 2, 8, 8)).astype(np.float32)


def ncnn_files(folder: Path, twin: Any, *, names: tuple[str, ...] = ("conv", "dw", "fc")) -> tuple[Path, Path]:
    """The ncnn files of a `Network`'s twin, as pnnx writes them, without a bias where the ONNX node has none."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in twin.graph.initializer}
    kinds = {"conv": ("Convolution", CONV), "dw": ("ConvolutionDepthWise", DEPTHWISE), "fc": ("InnerProduct", LINEAR)}
    lines, data = ["Input in0 0 1 in0"], b""
    for number, name in enumerate(names):
        kind, parameters = kinds[name]
        made = "out0" if name == names[-1] else str(number + 1)
        relu = " 9=1" if kind != "InnerProduct" else ""
        lines.append(f"{kind} {name}_{number} 1 1 {number or 'in0'} {made} {parameters}{relu}")
        data += bytes(4) + constants[f"{name}/wd"].tobytes()
        data += constants[f"{name}/bd"].tobytes() if f"{name}/bd" in constants else b""
    param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    param.write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n")
    weights.write_bytes(data)
    return param, weights


def by_ncnn(param: Path, weights: Path, x: np.ndarray) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(weights)) == 0
    found = []
    for image in x:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image).clone())
        found.append(np.array(extractor.extract("out0")[1]))
    return np.stack(found)


@pytest.mark.parametrize("uint8", [False, True])
def test_the_twin_computes_the_same_without_pairs(uint8: bool) -> None:
    model = Network(uint8=uint8).model()
    twin = float_twin.float_twin(model)
    kinds = [node.op_type for node in twin.graph.node]
    assert kinds == ["Conv", "Clip", "Conv", "Clip", "Flatten", "Gemm"]
    assert [value.name for value in (*twin.graph.input, *twin.graph.output)] == ["x", "y"]
    assert twin.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    x = images()
    wanted, found = run(model, x), run(twin, x)
    assert np.abs(wanted).max() > 10
    assert np.abs(wanted - found).max() < 0.4  # two steps of the output, and what was rounded before
    for node in [node for node in twin.graph.node if node.op_type == "Clip"]:  # without these it is another network
        node.input[1] = ""
    assert np.abs(wanted - run(twin, x)).max() > 10


def test_a_float_file_comes_back_as_it_is_and_float16_becomes_float32() -> None:
    twin = float_twin.float_twin(Network().model())
    assert float_twin.float_twin(twin).SerializeToString() == twin.SerializeToString()
    half = onnx.ModelProto()
    half.CopyFrom(twin)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    half.graph.node[0].input[0], half.graph.node[-1].output[0] = "x16", "y16"
    half.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16))
    half.graph.node.append(helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT))
    wide = float_twin.float_twin(half)
    assert [node.op_type for node in wide.graph.node] == [node.op_type for node in twin.graph.node]
    assert {tensor.data_type for tensor in wide.graph.initializer} == {TensorProto.FLOAT}
    assert np.abs(run(wide, images()) - run(twin, images())).max() < 0.05


@pytest.mark.parametrize("uint8", [False, True])
def test_ncnn_gets_the_integers_and_ranges_of_the_file(tmp_path: Path, uint8: bool) -> None:
    network = Network(uint8=uint8)
    model = network.model()
    param, weights = ncnn_files(tmp_path, float_twin.float_twin(model))
    assert ncnn_int8.quantize(model, param, weights) == {"int8_layers": 3, "float_layers": 0, "six_bit_layers": 0}
    assert [line.split()[-1] for line in param.read_text().splitlines()[3:]] == ["8=2", "8=1", "8=2"]
    data, start = weights.read_bytes(), 0
    for name, size, bias, channels, largest in (
        ("conv", 72, 4, 4, 135 * 0.02), ("dw", 36, 0, 4, 255 * 0.05), ("fc", 768, 3, 3, 255 * 0.02),
    ):  # fmt: skip
        assert data[start : start + 4] == (0x000D4B38).to_bytes(4, "little")
        stored = np.frombuffer(data[start + 4 : start + 4 + size], np.int8)
        assert np.array_equal(stored, network.weights[name].ravel())
        start += 4 + size + 4 * bias
        scales = np.frombuffer(data[start : start + 4 * channels + 4], np.float32)
        assert np.allclose(scales[:-1], 1 / network.constants[f"{name}/ws"], rtol=1e-6)
        assert np.isclose(scales[-1], 127 / largest, rtol=1e-6)
        start += 4 * channels + 4
    assert start == len(data)


def test_ncnn_runs_what_is_written(tmp_path: Path) -> None:
    model = Network().model()
    param, weights = ncnn_files(tmp_path, float_twin.float_twin(model))
    plain = by_ncnn(param, weights, images())
    ncnn_int8.quantize(model, param, weights)
    found, wanted = by_ncnn(param, weights, images()), run(model, images())
    assert np.abs(wanted).max() > 10
    assert np.abs(found - wanted).max() < 0.6  # as of the twin, and ReLUs of 7 bits; 0.34 here
    assert np.abs(plain - wanted).max() > 1  # the float file has Relus where the ranges also end above


def test_a_float_layer_stays_float(tmp_path: Path) -> None:
    model = Network(plain=("dw",)).model()
    twin = float_twin.float_twin(model)
    param, weights = ncnn_files(tmp_path, twin)
    assert ncnn_int8.quantize(model, param, weights) == {"int8_layers": 2, "float_layers": 1, "six_bit_layers": 0}
    assert ["8=" in line for line in param.read_text().splitlines()[3:]] == [True, False, True]
    stored = next(numpy_helper.to_array(t) for t in twin.graph.initializer if t.name == "dw/wd")
    assert bytes(4) + stored.tobytes() in weights.read_bytes()


def test_layers_without_a_counterpart_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = Network().model()
    param, weights = ncnn_files(tmp_path, float_twin.float_twin(Network(seed=1).model()))
    before = param.read_bytes(), weights.read_bytes()
    with pytest.raises(InputRejected, match="no layer of the ONNX file has the weights of conv_0"):
        ncnn_int8.quantize(model, param, weights)
    assert (param.read_bytes(), weights.read_bytes()) == before
    ncnn_files(tmp_path, float_twin.float_twin(model), names=("conv", "fc"))
    with pytest.raises(InputRejected, match=r"no layer of model\.ncnn\.param has the weights of dw"):
        ncnn_int8.quantize(model, param, weights)
    weights.write_bytes(weights.read_bytes() + bytes(4))
    with pytest.raises(InputRejected, match="not read here"):
        ncnn_int8.quantize(model, param, weights)


def test_equal_weights_with_other_ranges_are_refused() -> None:
    def layer(name: str, high: float, bias: np.ndarray) -> ncnn_int8.QdqLayer:
        levels, ones = np.ones((2, 3), np.int64), np.ones(2, np.float32)
        return ncnn_int8.QdqLayer(
            name=name, levels=levels, scale=ones, weights=levels.astype(np.float32), bias=bias, low=0.0, high=high
        )

    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    asked = ncnn_int8.NcnnLayer(
        line="", kind="InnerProduct", name="fc", parameters={}, raw=b"", weights=np.ones(6, np.float32), bias=zero
    )
    key = asked.weights.tobytes()  # type: ignore[union-attr]
    with pytest.raises(InputRejected, match="fc may be any of first, second"):
        ncnn_int8._counterpart(asked, {key: [layer("first", 1.0, zero), layer("second", 2.0, zero)]}, set())
    told_apart = {key: [layer("first", 1.0, one), layer("second", 2.0, zero)]}
    found = ncnn_int8._counterpart(asked, told_apart, set())
    assert found is not None
    assert found.name == "second"


def test_only_channels_that_can_overflow_get_six_bits() -> None:
    levels = np.full((2, 2304), 127, np.int64)  # 256 channels of 3x3
    levels[1, 200:] = 0
    ones = np.ones(2, np.float32)
    layer = ncnn_int8.QdqLayer(
        name="conv", levels=levels, scale=ones, weights=levels.astype(np.float32), bias=None, low=0.0, high=1.0
    )
    parameters = {"0": "2", "1": "3", "3": "1", "2": "1"}
    one = ncnn_int8.NcnnLayer(line="", kind="Convolution", name="conv", parameters=parameters, raw=b"")
    data, six = ncnn_int8._int8(one, layer)
    assert six
    stored = np.frombuffer(data[4 : 4 + levels.size], np.int8).reshape(levels.shape)
    assert (stored[0].max(), stored[1].max()) == (31, 127)
    scales = np.frombuffer(data[4 + levels.size :], np.float32)
    assert np.allclose(scales, [31 / 127, 1, 127])
    strided = ncnn_int8.NcnnLayer(
        line="", kind="Convolution", name="conv", parameters={**parameters, "3": "2"}, raw=b""
    )
    assert not ncnn_int8._int8(strided, layer)[1]
