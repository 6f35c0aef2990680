"""Residual networks for small images: depth 6n+2, three stages of n basic blocks.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2. `shortcut=A` is the paper's
(stride-2 subsampling, zero-padded channels, no weights); `B` is a 1×1 convolution. `stem` and `channels` give the wide
relatives that distillation papers call 8x4 and 32x4 (stem 32, stages 64/128/256, shortcut B).
Parameter names are those of the checkpoints of akamaster/pytorch_resnet_cifar10 (conv1, bn1, layer1…3, linear).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob
from compress.errors import UsageError

VARIANTS = {
    "resnet20": {"depth": 20},
    "resnet32": {"depth": 32},
    "resnet44": {"depth": 44},
    "resnet56": {"depth": 56},
    "resnet110": {"depth": 110},
    "resnet8x4": {"depth": 8, "stem": 32, "channels": 64, "shortcut": "B"},
    "resnet20x4": {"depth": 20, "stem": 32, "channels": 64, "shortcut": "B"},
    "resnet32x4": {"depth": 32, "stem": 32, "channels": 64, "shortcut": "B"},
}

# (variant, classes, input) → parameters; 269,722 and 853,018 are the published checkpoints' own counts
PARAMETERS = {
    ("resnet20", 10, (3, 32, 32)): 269_722,
    ("resnet56", 10, (3, 32, 32)): 853_018,
    ("resnet8x4", 100, (3, 32, 32)): 1_233_540,
    ("resnet32x4", 100, (3, 32, 32)): 7_433_860,
}

# 40.8 and 125.5 million are published (ResNet-20 and 56); the others are sums over the layers
MACS = {
    ("resnet20", 10, (3, 32, 32)): 40_551_040,
    ("resnet56", 10, (3, 32, 32)): 125_485_696,
    ("resnet8x4", 100, (3, 32, 32)): 177_071_104,
    ("resnet32x4", 100, (3, 32, 32)): 1_083_040_768,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    depth: int = knob(20, "number of weighted layers, 6n+2", low=8, high=1202)
    stem: int = knob(16, "channels of the first convolution", low=1, high=1024)
    channels: int = knob(16, "channels of the first stage; the next two double it", low=1, high=1024)
    shortcut: str = knob("A", "A: subsample and zero-pad; B: 1x1 convolution", choices=("A", "B"))


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.pad = stride, channels_out - channels_in
        self.shortcut = nn.Sequential()
        if shortcut == "B" and (stride != 1 or self.pad):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        # in place: a teacher answers a tenth faster
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if len(self.shortcut):
            x = self.shortcut(x)
        elif self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad // 2, self.pad - self.pad // 2))
        out += x
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    def __init__(self, config: Config, num_classes: int, channels_in: int):
        super().__init__()
        blocks = (config.depth - 2) // 6
        self.conv1 = nn.Conv2d(channels_in, config.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem)
        channels = config.stem
        for stage, stride in enumerate((1, 2, 2)):
            width = config.channels * 2**stage
            layers = [
                Block(channels if i == 0 else width, width, stride if i == 0 else 1, config.shortcut)
                for i in range(blocks)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            channels = width
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    if (config.depth - 2) % 6:
        raise UsageError(
            f"`depth` of a CIFAR ResNet must be 6n+2 (8, 14, 20, …), got {config.depth}", code="E-KNOB-CHOICE"
        )
    return ResNet(config, num_classes, input_shape[0])
