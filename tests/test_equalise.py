"""Cross-layer equalisation: the same answers, channels nearer to each other, clipping kept where it works."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compress import calibrate, equalise, export, network, qdq
from compress.worker import to_inputs


class Uneven(nn.Module):
    """Convolutions whose channels differ by a factor of a hundred, with a depthwise and a grouped one among them."""

    def __init__(self, activation: type[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), activation(), nn.Conv2d(8, 8, 3, padding=1, groups=8), activation(),
            nn.Conv2d(8, 16, 1), activation(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3, groups=2), activation(),
        )  # fmt: skip
        self.linear = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in self.body:
                if isinstance(module, nn.Conv2d):
                    shape = (len(module.weight), 1, 1, 1)
                    module.weight *= 10 ** (2 * torch.rand(shape, generator=generator) - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.body(x).mean((2, 3)))


def prepared(activation: type[nn.Module], folder: Path) -> Path:
    contract = network.build(
        "resnet8", class_names=("a", "b", "c"), input_shape=(1, 8, 8), mean=(0.5,), std=(0.2,), seed=0
    ).contract
    torch.manual_seed(0)
    export.export_onnx(network.Network(Uneven(activation).eval(), contract), folder / "m.onnx", recipe_digest="")
    qdq.prepare(folder / "m.onnx", folder / "prepared.onnx")
    return folder / "prepared.onnx"


def images(count: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)


def answers(path: Path, given: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": to_inputs(given)})[0]


def unevenness(path: Path) -> float:
    """Of every tensor between two convolutions: how much larger the largest channel is than the median one."""
    model = onnx.load(path)
    worst = []
    names = tuple(pair.tensor for pair in equalise.pairs(model))
    for values in calibrate.Outputs(path, names).of(images()):
        for name in names:
            peaks = np.abs(values[name]).max((0, 2, 3))
            worst.append(peaks.max() / max(np.median(peaks), 1e-9))
    return max(worst)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_answers_stay_and_channels_come_nearer(activation, tmp_path: Path) -> None:
    source, target = prepared(activation, tmp_path), tmp_path / "equal.onnx"
    facts = equalise.equalise(source, target, images())
    assert facts["pairs"] == 3 and facts["equalised"] == 3
    expected, got = answers(source, images()), answers(target, images())
    assert np.abs(expected - got).max() < 1e-4 * (expected.max() - expected.min())
    # images that it never saw
    other = 255 - images()
    expected, got = answers(source, other), answers(target, other)
    assert np.abs(expected - got).max() < 2e-2 * (expected.max() - expected.min())
    assert unevenness(target) < (0.6 if activation is nn.ReLU else 0.9) * unevenness(source)


def test_channels_that_are_clipped_keep_their_scale() -> None:
    seen, reading = np.array([6.0, 6.0, 0.5, 0.01, 0.0]), np.ones(5)
    found = equalise.scales(seen, reading, 6.0, depthwise=True)
    assert (found[:2] == 1).all() and found[4] == 1
    assert found[2:4] == pytest.approx(seen[2:4] * equalise.MARGIN / 6)
    dense = equalise.scales(seen, reading, 6.0, depthwise=False)
    assert (seen[2:4] / dense[2:4] <= 6 / equalise.MARGIN + 1e-9).all()


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.Sigmoid])
def test_what_a_scale_does_not_pass_through_is_left_alone(activation, tmp_path: Path) -> None:
    source = prepared(activation, tmp_path)
    facts = equalise.equalise(source, tmp_path / "equal.onnx", images())
    assert facts["pairs"] == 0 and np.array_equal(answers(source, images()), answers(tmp_path / "equal.onnx", images()))
