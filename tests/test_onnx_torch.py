"""ONNX graphs run by torch: each operator against onnxruntime, and the gradient through fake quantization."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress import onnx_torch
from compress.errors import InputRejected

MAP = (2, 4, 6, 5)


def of(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# operator → cases: the constants that it reads behind the input, and its attributes
CASES = {
    "Add": [([of(4, 1, 1)], {})],
    "ArgMax": [([], {"axis": 1, "keepdims": 0}), ([], {"axis": -1})],
    "AveragePool": [
        ([], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ([], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ([], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
    "Clip": [([np.float32(0), np.float32(0.5)], {}), ([np.float32(0)], {})],
    "Concat": [([of(*MAP)], {"axis": 1})],
    "Conv": [
        ([of(3, 4, 3, 3), of(3)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ([of(4, 1, 3, 3)], {"pads": [0, 0, 1, 1], "group": 4}),
        ([of(2, 4, 3, 3)], {"dilations": [2, 2]}),
    ],
    "DequantizeLinear": [],  # tested with QuantizeLinear
    "Div": [([of(4, 1, 1)], {})],
    "Flatten": [([], {}), ([], {"axis": 2}), ([], {"axis": -1})],
    "Gather": [([whole(2, -1, 0)], {"axis": 1}), ([np.array(1)], {"axis": 2}), ([whole(1)], {})],
    "Gemm": [([of(120, 7), of(7)], {}), ([of(7, 120), of(7)], {"transB": 1, "alpha": 0.5, "beta": 2.0})],
    "GlobalAveragePool": [([], {})],
    "HardSigmoid": [([], {"alpha": 1 / 6}), ([], {})],
    "HardSwish": [([], {})],
    "Identity": [([], {})],
    "MatMul": [([of(5, 3)], {})],
    "MaxPool": [
        ([], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ([], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ([], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    ],
    "Mul": [([of(4, 1, 1)], {})],
    "Neg": [([], {})],
    "Pad": [([whole(0, 1, 0, 0, 0, 2, 1, 0)], {}), ([whole(0, 0, 1, 1, 0, 0, 1, 1), np.float32(3)], {})],
    "QuantizeLinear": [],
    "ReduceMean": [([whole(2, 3)], {"keepdims": 0}), ([whole(-1, -2)], {})],
    "Relu": [([], {})],
    "Reshape": [([whole(0, 2, -1, 5)], {})],
    "Sigmoid": [([], {})],
    "Slice": [([whole(0, 1), whole(2**62, 5), whole(1, 2), whole(2, 1)], {}), ([whole(1), whole(2)], {})],
    "Softmax": [([], {"axis": 1}), ([], {})],
    "Split": [([whole(1, 3)], {"axis": 1}), ([], {"axis": 1, "num_outputs": 2})],
    "Squeeze": [([whole(0)], {})],
    "Sub": [([of(4, 1, 1)], {})],
    "Tanh": [([], {})],
    "Transpose": [([], {"perm": [0, 2, 3, 1]})],
    "Unsqueeze": [([whole(1, 3)], {})],
}  # fmt: skip


def model_of(nodes: list, tensors: dict[str, np.ndarray], outputs: int = 1) -> onnx.ModelProto:
    given = TensorProto.INT64 if nodes[-1].op_type == "ArgMax" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(f"y{i}", given, None) for i in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def expected(model: onnx.ModelProto, x: np.ndarray, name: str = "y0") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([name], {"x": x})[0]


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(onnx_torch._OPERATORS)


@pytest.mark.parametrize(
    "kind,constants,attributes", [(kind, *case) for kind, cases in CASES.items() for case in cases]
)  # fmt: skip
def test_an_operator_gives_what_onnxruntime_gives(kind: str, constants: list, attributes: dict) -> None:
    x = {"Gemm": of(2, 120), "Squeeze": of(1, 3), "MatMul": of(*MAP)}.get(kind, of(*MAP))
    tensors = {f"c{i}": value for i, value in enumerate(constants)}
    outputs = 2 if kind == "Split" else 1
    node = helper.make_node(kind, ["x", *tensors], [f"y{i}" for i in range(outputs)], **attributes)
    model = model_of([node], tensors, outputs)
    with torch.no_grad():
        got = onnx_torch.Graph(model)(torch.from_numpy(x)).numpy()
    assert np.allclose(got, expected(model, x), atol=1e-5)


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(100), np.int8(0), np.int8(-7)])
def test_a_quantized_value_is_rounded_and_clipped_and_its_gradient_goes_straight_through(zero) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y0"]),
    ]
    model = model_of(nodes, {"s": np.float32(0.01), "z": zero})
    x = torch.linspace(-4, 4, 1001, requires_grad=True)
    got = onnx_torch.Graph(model)(x)
    wanted = expected(model, x.detach().numpy())
    assert np.abs(got.detach().numpy() - wanted).max() < 0.0101  # ties
    assert np.abs(got.detach().numpy() - wanted).mean() < 1e-4
    got.sum().backward()
    inside = np.abs(wanted - x.detach().numpy()) < 0.0051
    assert (x.grad.numpy()[inside] == 1).mean() > 0.99 and not x.grad.numpy()[~inside].any()


def test_weights_in_integers_are_read_by_channel() -> None:
    weight, scale = np.arange(-6, 6, dtype=np.int8).reshape(3, 4, 1, 1), np.float32([0.1, 1, 10])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y0"]),
    ]
    model, x = model_of(nodes, {"w": weight, "s": scale, "z": np.zeros(3, np.int8)}), of(*MAP)
    assert np.allclose(onnx_torch.Graph(model)(torch.from_numpy(x)).numpy(), expected(model, x), atol=1e-4)


def test_what_is_given_is_not_computed() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y0"])]
    graph, x = onnx_torch.Graph(model_of(nodes, {}), given=("a",)), torch.from_numpy(of(*MAP))
    assert torch.equal(graph(x, {"a": 2 * x}), 3 * x)


@pytest.mark.parametrize(
    "node,says",
    [
        (helper.make_node("Erf", ["x"], ["y0"]), "operator Erf"),
        (helper.make_node("Relu", ["x"], ["y0"], domain="com.microsoft"), "operator Relu"),
    ],
)
def test_an_operator_that_is_not_known_is_refused_by_name(node, says: str) -> None:
    with pytest.raises(InputRejected, match=says):
        onnx_torch.Graph(model_of([node], {}))


@pytest.mark.parametrize("kind,more", [("Conv", ["w"]), ("AveragePool", []), ("MaxPool", [])])
def test_padding_that_is_worked_out_at_run_time_is_refused(kind: str, more: list[str]) -> None:
    node = helper.make_node(kind, ["x", *more], ["y0"], auto_pad="SAME_UPPER", kernel_shape=[3, 3])
    model = model_of([node], {"w": of(4, 4, 3, 3)})
    with pytest.raises(InputRejected, match="auto_pad=SAME_UPPER"):
        onnx_torch.Graph(model)
    assert "auto_pad" in onnx_torch.unreadable(model)


def test_a_split_into_equal_parts_says_so_by_its_outputs() -> None:
    node, x = helper.make_node("Split", ["x"], ["y0", "y1"], axis=1), of(*MAP)
    model = model_of([node], {}, 2)
    model.opset_import[0].version = 13
    assert np.array_equal(onnx_torch.Graph(model)(torch.from_numpy(x)).numpy(), x[:, :2])


def test_one_dimensional_convolutions_are_refused() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y0"], kernel_shape=[3])
    assert "two dimensions" in onnx_torch.unreadable(model_of([node], {"w": of(4, 4, 3)}))
