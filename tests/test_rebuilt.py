"""ONNX files as torch modules that torch.export takes: the same numbers, in operators that other runtimes know."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.errors import InputRejected
from compress.rebuilt import Rebuilt


def exported(module: Rebuilt, *shape: int) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (torch.zeros(shape),))


def quantized(path: Path, activations: type, weights: type, *, shared: bool = True) -> onnx.ModelProto:
    """A 1x1 convolution of 2 to 3 channels and its doubled sum, as a QDQ file; `shared`: one pair with two readers."""
    draw = np.random.default_rng(3)
    low = -128 if activations is np.int8 else 0
    levels = draw.integers(-127, 128, (3, 2, 1, 1))
    levels = (levels + 128).astype(np.uint8) if weights is np.uint8 else levels.astype(np.int8)
    constants = {
        "s": np.float32(1 / 255), "z": activations(low), "t": np.float32(0.02), "u": activations(low + 100),
        "w": levels, "ws": np.array([0.01, 0.02, 0.03], np.float32),
        "wz": np.full(3, 128 if weights is np.uint8 else 0, weights), "b": draw.integers(-900, 900, 3).astype(np.int32),
        "bs": np.array([0.01, 0.02, 0.03], np.float32) / np.float32(255), "bz": np.zeros(3, np.int32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bias"], axis=0),
        helper.make_node("Conv", ["x", "weight", "bias"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "t", "u"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "t", "u"], ["dy"]),
        helper.make_node("Add", ["dy", "dy"], ["twice"]),
        helper.make_node("Flatten", ["twice"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 2, 2])]
    answer = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 12])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", given, answer, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize("float_weights", [False, True])
@pytest.mark.parametrize("scheme", [(np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)], ids=str)
def test_an_int8_file_keeps_its_levels(scheme, float_weights, tmp_path):
    model = quantized(tmp_path / "model.onnx", *scheme)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no sums that saturate
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(0).random((1, 2, 2, 2), dtype=np.float32)
    expected = session.run(None, {"input": inputs})[0]
    program = exported(Rebuilt(model, float_weights=float_weights), 1, 2, 2, 2)
    got = program.module()(torch.from_numpy(inputs)).detach().numpy()
    assert np.abs(got - expected).max() <= 1e-5
    # what a wrong sign of the shift by 128 would cost
    assert np.ptp(expected) > 0.5
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("quantize_per_tensor" in t for t in targets) and any("dequantize_per_channel" in t for t in targets)
    assert any("quantized_decomposed.quantize_per_channel" in t for t in targets) is float_weights


def test_every_reader_has_a_pair_of_its_own(tmp_path):
    """What partitioners of graphs need: here both operands of the addition."""
    program = exported(Rebuilt(quantized(tmp_path / "m.onnx", np.uint8, np.int8)), 1, 2, 2, 2)
    (add,) = [node for node in program.graph.nodes if node.op == "call_function" and "add" in str(node.target)]
    assert add.args[0] is not add.args[1] and all("dequantize" in str(each.target) for each in add.args)


def joined(path: Path) -> onnx.ModelProto:
    """The concatenation of an image and its double, each in levels of its own, as a QDQ file."""
    constants = {
        "s": np.float32(1 / 255), "t": np.float32(0.003), "u": np.float32(0.009), "z": np.uint8(0), "o": np.uint8(7),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "t", "o"], ["qs"]),
        helper.make_node("DequantizeLinear", ["qs", "t", "o"], ["twice"]),
        helper.make_node("Concat", ["x", "twice"], ["both"], axis=1),
        helper.make_node("QuantizeLinear", ["both", "u", "z"], ["qb"]),
        helper.make_node("DequantizeLinear", ["qb", "u", "z"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 8, 8])]
    answer = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 8, 8])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", given, answer, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return model


def test_what_is_joined_has_one_scale_and_the_same_numbers(tmp_path):
    """XNNPACK opens no file that joins tensors of different scales."""
    model = joined(tmp_path / "m.onnx")
    program = exported(Rebuilt(model), 1, 2, 8, 8)
    (cat,) = [node for node in program.graph.nodes if node.op == "call_function" and "cat" in str(node.target)]
    schemes = {each.args[1:3] for each in cat.args[0]}
    (after,) = cat.users
    assert schemes == {after.args[1:3]} and all("dequantize" in str(each.target) for each in cat.args[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(0).random((1, 2, 8, 8), dtype=np.float32)
    got = program.module()(torch.from_numpy(inputs)).detach().numpy()
    assert np.abs(got - session.run(None, {"input": inputs})[0]).max() < 1e-6


def test_weights_that_are_not_symmetric_are_refused(tmp_path):
    model = quantized(tmp_path / "m.onnx", np.uint8, np.uint8)
    (zero,) = [t for t in model.graph.initializer if t.name == "wz"]
    zero.CopyFrom(numpy_helper.from_array(np.array([128, 127, 128], np.uint8), "wz"))
    with pytest.raises(InputRejected, match="the weight w has zero points other than 0"):
        Rebuilt(model)


def test_an_operator_without_a_counterpart_is_named():
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 2, 2])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 2, 2])
    graph = helper.make_graph([helper.make_node("Celu", ["input"], ["logits"])], "net", [taken], [given])
    with pytest.raises(InputRejected, match="the operator Celu has no counterpart"):
        Rebuilt(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
