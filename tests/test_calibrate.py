"""Ranges of activations: right by hand-made distributions, the same in small batches as in one, never outside."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import calibrate
from compress.errors import InputRejected


def seen_of(values: np.ndarray) -> calibrate.Seen:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts, _ = np.histogram(values, bins=calibrate.BINS, range=(low, high))
    zeros, _ = np.histogram(values[values == 0], bins=calibrate.BINS, range=(low, high))
    return calibrate.Seen(extremes={"x": (low, high)}, counts={"x": counts}, zeros={"x": zeros})


def normal_with_outlier(count: int = 200_000) -> np.ndarray:
    return np.append(np.random.default_rng(0).normal(0, 1, count), 60.0)


def error(values: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of rounding to 8 bits, computed value by value."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    levels = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float((((levels - zero) * scale - values) ** 2).mean())


def test_minmax_is_what_was_seen() -> None:
    assert calibrate.ranges(seen_of(np.array([-2.0, 5.0])), "minmax", 0.9) == {"x": (-2.0, 5.0)}


def test_percentile_leaves_out_as_much_at_either_end() -> None:
    values = np.linspace(-10, 10, 100_001)
    low, high = calibrate.ranges(seen_of(values), "percentile", 0.98)["x"]
    assert low == pytest.approx(-9.8, abs=0.03) and high == pytest.approx(9.8, abs=0.03)


def test_least_squares_beats_minmax_where_there_is_an_outlier() -> None:
    values = normal_with_outlier()
    seen = seen_of(values)
    low, high = calibrate.ranges(seen, "mse", 1.0)["x"]
    tried = [error(values, low, share * seen.extremes["x"][1]) for share in calibrate.SHARES]
    assert error(values, low, high) <= 1.05 * min(tried)
    assert error(values, low, high) < 0.85 * error(values, *seen.extremes["x"])


def test_least_squares_keeps_the_whole_range_of_even_values() -> None:
    values = np.linspace(0, 6, 100_000)
    assert calibrate.ranges(seen_of(values), "mse", 1.0)["x"] == (0.0, 6.0)


def test_entropy_cuts_an_outlier_off_and_leaves_even_values() -> None:
    assert calibrate.ranges(seen_of(normal_with_outlier()), "entropy", 1.0)["x"][1] < 25
    assert calibrate.ranges(seen_of(np.linspace(0, 6, 100_000)), "entropy", 1.0)["x"][1] > 5.5


@pytest.mark.parametrize("rule", calibrate.RULES)
def test_behind_a_relu_no_rule_cuts_off_what_matters(rule: str) -> None:
    """Half of the values are exactly 0, which any range holds: it must not decide for the others."""
    values = np.maximum(np.random.default_rng(0).normal(0, 1, 200_000), 0)
    found = calibrate.ranges(seen_of(values), rule, 0.9999)["x"]
    assert (
        found[0] == 0 and found[1] > 3.4 and error(values, *found) < 1.6 * error(values, *seen_of(values).extremes["x"])
    )


@pytest.mark.parametrize("rule", calibrate.RULES)
def test_ranges_hold_zero_and_lie_inside_of_what_was_seen(rule: str) -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(5, 0.1, 999), rng.normal(-3, 1, 999), np.zeros(9), np.abs(rng.normal(0, 1, 999))):
        seen = seen_of(values)
        low, high = calibrate.ranges(seen, rule, 0.99)["x"]
        assert seen.extremes["x"][0] - 1e-9 <= low <= 0 <= high <= seen.extremes["x"][1] + 1e-9


def model(path, scale: float = 3.0) -> None:
    """input → · scale − 1 → Relu."""
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("scale", scale), ("one", 1.0))]
    nodes = [
        helper.make_node("Mul", ["input", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["logits"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 1, 8, 8]) for n in ("input", "logits")]
    graph = helper.make_graph(nodes, "graph", [values[0]], [values[1]], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def test_every_activation_is_seen_over_all_images_in_batches_and_at_once(tmp_path, monkeypatch) -> None:
    model(tmp_path / "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 1)).astype(np.uint8)
    images[-1] = 255
    found = calibrate.look(tmp_path / "m.onnx", images)
    assert set(found.extremes) == {"input", "scaled", "shifted", "logits"}
    assert found.extremes["shifted"] == pytest.approx((-1.0, 2.0)) and found.extremes["logits"] == (0.0, 2.0)
    values = images / 255 * 3 - 1
    expected, _ = np.histogram(values, bins=calibrate.BINS, range=(-1, 2))
    assert found.counts["shifted"].sum() == values.size
    # values on the edge of a bin may fall to either side
    assert np.abs(found.counts["shifted"].cumsum() - expected.cumsum()).max() <= 2 * 37
    # zeros are taken out of the very bin that they were counted in, wherever it lies
    assert all((found.counts[name] >= found.zeros[name]).all() for name in found.counts)
    assert found.zeros["logits"].sum() == (values <= 0).sum() and found.zeros["logits"][1:].sum() == 0
    monkeypatch.setattr(calibrate, "MOST_IN_A_BATCH", 5)
    again = calibrate.look(tmp_path / "m.onnx", images)
    assert again.extremes == found.extremes
    assert all(np.array_equal(again.counts[name], found.counts[name]) for name in found.counts)


def test_what_is_not_finite_is_named(tmp_path) -> None:
    model(tmp_path / "m.onnx", scale=float("inf"))
    with pytest.raises(InputRejected, match="`scaled` is not finite"):
        calibrate.look(tmp_path / "m.onnx", np.ones((2, 8, 8, 1), np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
def test_memory_does_not_grow_with_the_images(tmp_path) -> None:
    """16 against 256 images of 32×32: less than 1.2 times the peak."""
    code = """
import sys, pathlib, numpy as np
from compress import calibrate
path, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
images = np.memmap(path.with_suffix(".raw"), np.uint8, "r", shape=(256, 32, 32, 3))[:count]
calibrate.look(path, images)
status = pathlib.Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""
    from compress import export, network

    net = network.build(
        "resnet8", class_names=("a", "b"), input_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, seed=0
    )
    export.export_onnx(net, tmp_path / "m.onnx", recipe_digest="")
    np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3)).astype(np.uint8).tofile(tmp_path / "m.raw")
    peaks = []
    for count in (16, 256):
        line = [sys.executable, "-c", code, str(tmp_path / "m.onnx"), str(count)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    print(peaks)
    assert peaks[1] < 1.2 * peaks[0]
