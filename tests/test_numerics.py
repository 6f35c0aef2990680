"""BT-12: weights that slow a processor down are told, and what `compress export` makes of them answers alike."""

import json
import time

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from compress import export, fuse, network, numerics
from compress.cli.main import compress as group


def a_file(path, weights: np.ndarray) -> None:
    """One layer on images of 4×4, its weights `[16,3]`; one value in a Constant, as some exporters write them."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["inner"]),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32(1e-40))),
        helper.make_node("Add", ["inner", "one"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 4, 4])
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    held = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.zeros(3, np.float32), "bias")]
    graph = helper.make_graph(nodes, "g", [given], [taken], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_weights_are_counted(tmp_path):
    weights = np.linspace(0, 1, 48, dtype=np.float32).reshape(16, 3)
    weights[0] = [0, np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny / 2]
    weights[1] = [np.nan, np.inf, 1e-39]
    a_file(tmp_path / "a.onnx", weights)
    found = numerics.convert(tmp_path / "a.onnx", tmp_path, "float32")
    assert found == {"weights": 52, "subnormal": 3, "not_finite": 2}
    model = onnx.load(
        tmp_path / "a.onnx"
    )  # sizes of levels and divisors are no weights; of halves what is no number is
    model.graph.node.append(helper.make_node("Div", ["logits", "scale"], ["scaled"]))
    halves = np.array([1e-7, np.inf], np.float16)
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(1e-40), "scale"), numpy_helper.from_array(halves, "halves")]
    )
    onnx.save(model, tmp_path / "b.onnx")
    more = numerics.convert(tmp_path / "b.onnx", tmp_path, "float32")
    assert more == {"weights": 54, "subnormal": 3, "not_finite": 3}
    said = numerics.sentences("a.onnx", found)
    assert "3 of 52 weights are subnormal" in said[0] and "2 of 52 weights are NaN" in said[1]
    assert numerics.sentences("a.onnx", found | {"subnormal": 0, "not_finite": 0}) == []


def test_activations_are_counted_where_the_images_are_asked(tmp_path):
    weights = np.zeros((16, 3), np.float32)
    weights[:, 0], weights[0, 1], weights[5, 2] = 1e-38, 3e38, 3e38  # a white image: 1.6e-37, 3e38, and then infinity
    weights[6, 2] = 3e38
    a_file(tmp_path / "a.onnx", weights)
    images = np.zeros((5, 4, 4, 1), np.uint8)
    images[0], images[1, 0, 0] = 255, 128  # the second: 0.5e-38, which is subnormal
    np.save(tmp_path / "images.npy", images)
    found = numerics.convert(tmp_path / "a.onnx", tmp_path, "float32", images=tmp_path / "images.npy")["activations"]
    assert found["values"] == 5 * (16 + 3 + 3)
    # the second image's product and two of its logits, and the Constant 1e-40 in the logits of the black ones
    assert found["subnormal"] == 3 + 3 * 3 and found["not_finite"] == 2
    assert found["most"]["not_finite"] in ("inner", "logits")
    nothing = {"weights": 9, "subnormal": 0, "not_finite": 0}
    said = numerics.sentences("a.onnx", nothing | {"activations": found})
    assert "of its activations are subnormal" in said[0] and "2 of 110 activations are NaN or infinite" in said[1]
    few = found | {"values": 10**6, "not_finite": 0}
    assert numerics.sentences("a.onnx", nothing | {"activations": few}) == []


def test_a_file_of_a_fixed_batch_is_asked_in_batches(tmp_path):
    a_file(tmp_path / "a.onnx", np.ones((16, 3), np.float32))
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "b.onnx")
    np.save(tmp_path / "images.npy", np.zeros((3, 4, 4, 1), np.uint8))
    found = numerics.convert(tmp_path / "b.onnx", tmp_path, "float32", images=tmp_path / "images.npy")
    assert found["activations"]["values"] == 2 * 2 * 22


def test_halves_that_overflow_are_found_and_what_cannot_run_is_said(tmp_path):
    a_file(tmp_path / "a.onnx", np.full((16, 3), 1e5, np.float32))
    model = onnx.load(tmp_path / "a.onnx")
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16))
    onnx.save(model, tmp_path / "b.onnx")
    np.save(tmp_path / "images.npy", np.full((1, 4, 4, 1), 255, np.uint8))
    found = numerics.convert(tmp_path / "b.onnx", tmp_path, "float16", images=tmp_path / "images.npy")
    assert found["activations"]["not_finite"] == 3 and found["activations"]["most"]["not_finite"] == "half"
    np.save(tmp_path / "images.npy", np.zeros((1, 5, 5, 1), np.uint8))
    other = numerics.convert(tmp_path / "b.onnx", tmp_path, "float16", images=tmp_path / "images.npy")
    assert other["weights"] == 52 and "could not be looked at" in numerics.sentences("b.onnx", other)[-1]


def test_bench_warns_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    a_file(tmp_path / "slow.onnx", np.full((16, 3), 1e-41, np.float32))
    done = CliRunner().invoke(group, ["bench", str(tmp_path / "slow.onnx"), "--synthetic", "--tier", "smoke", "--json"])
    assert done.exit_code in (0, 4), done.output
    of_weights, of_activations = json.loads(done.stdout)["warnings"]
    assert of_weights.startswith("slow.onnx: 49 of 52 weights are subnormal numbers")
    assert of_activations.startswith("slow.onnx: 27.27% of its activations are subnormal numbers, most of them in `")


def test_an_exported_file_has_none_and_answers_alike(tmp_path):
    net = network.build(
        "mlp:depth=1,hidden=16", class_names=("a", "b"), input_shape=(1, 4, 4), mean=(0.5,), std=(0.5,), seed=0
    ).eval()
    with torch.no_grad():
        for value in net.parameters():
            value[value.abs() < value.abs().median()] = 3e-39
    export.export_onnx(net, tmp_path / "net.onnx", recipe_digest="")
    assert numerics.convert(tmp_path / "net.onnx", tmp_path, "float32")["subnormal"] == 0
    images = torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        expected = net(images).numpy()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": images.numpy()})
    assert np.abs(got - expected).max() <= 1e-6 * np.ptp(expected)


def times_as_long(session, twin, given: np.ndarray, rounds: int = 301) -> float:
    """How many times as long `session` takes as `twin`: the median over rounds that ask both, in turn first."""
    ratios = []
    for number in range(rounds):
        took = {}
        for each in (session, twin) if number % 2 else (twin, session):
            begun = time.perf_counter_ns()
            each.run(None, {"input": given})
            took[each] = time.perf_counter_ns() - begun
        ratios.append(took[session] / took[twin])
    return float(np.median(ratios))


def test_flushed_weights_give_the_very_answers_at_the_speed_of_a_clean_twin(tmp_path, monkeypatch):
    """A third of the weights subnormal: beside the others they are below the last bit of every sum."""
    onnxruntime = pytest.importorskip("onnxruntime")
    nets = {
        name: network.build(
            "mlp:hidden=256", class_names=("a", "b"), input_shape=(1, 16, 16), mean=(0.5,), std=(0.5,), seed=0
        ).eval()
        for name in ("clean", "slow")
    }
    with torch.no_grad():
        for value in nets["slow"].parameters():
            value[value.abs() < value.abs().quantile(1 / 3)] = 3e-39
    export.export_onnx(nets["clean"], tmp_path / "clean.onnx", recipe_digest="")
    export.export_onnx(nets["slow"], tmp_path / "flushed.onnx", recipe_digest="")
    with monkeypatch.context() as patch:
        patch.setattr(fuse, "SMALLEST_NORMAL", 0.0)
        export.export_onnx(nets["slow"], tmp_path / "slow.onnx", recipe_digest="")
    counts = {
        name: numerics.convert(tmp_path / f"{name}.onnx", tmp_path, "float32")["subnormal"]
        for name in ("clean", "flushed", "slow")
    }
    assert counts["clean"] == counts["flushed"] == 0 < 40_000 < counts["slow"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    clean, flushed, slow = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in counts
    )
    given = np.random.default_rng(0).random((64, 1, 16, 16), dtype=np.float32)
    assert slow.run(None, {"input": given})[0].tobytes() == flushed.run(None, {"input": given})[0].tobytes()
    # not every processor is slower with them, so that of the file as it was nothing is asked
    print(f"not flushed {times_as_long(slow, clean, given, rounds=11):.2f} times as long")
    assert times_as_long(flushed, clean, given) == pytest.approx(1, abs=0.1)
