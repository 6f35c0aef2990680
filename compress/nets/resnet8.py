"""ResNet-8 of MLPerf Tiny: three residual blocks, for images of 32 pixels on microcontrollers.

Source: Banbury et al. 2021, "MLPerf Tiny Benchmark", and its reference model of image classification
(github.com/mlcommons/tiny): stages of 16, 32 and 64 channels, one block each, convolutions with bias. The shortcuts of
the blocks that halve are 1×1 convolutions without BatchNorm.
Deviation: at stride 2 the reference, made in TensorFlow, pads 3×3 convolutions below and to the right only, here all
sides are padded; so the same weights see the map moved by one pixel.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob

# the reference's 78,666 less the 480 running statistics, which TensorFlow counts
PARAMETERS = {("resnet8", 10, (3, 32, 32)): 78_186}

# the reference's 12.5 million
MACS = {
    ("resnet8", 10, (3, 32, 32)): 12_501_632,
}

CANDIDATES = ("resnet8",)

_CHANNELS = (16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(1.0, "width multiplier of every layer but the last", low=0.05, high=8)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, all with bias."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    before, *rest = (max(1, round(channels * config.width)) for channels in _CHANNELS)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], before, 3, 1, 1),
        bn1=nn.BatchNorm2d(before),
        relu=nn.ReLU(),
        layer1=Block(before, before, 1),
    )
    for i, channels in enumerate(rest, 2):
        layers[f"layer{i}"] = Block(before, channels, 2)
        before = channels
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(before, num_classes))
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return net
