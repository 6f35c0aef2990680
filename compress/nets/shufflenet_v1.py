"""ShuffleNetV1: grouped 1×1 convolutions, and a shuffle of channels between the groups.

Source: Zhang et al. 2017, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", section
3 and table 1. The first 1×1 convolution of stage 2 is not grouped, for its input is narrow; units of stride 2
concatenate an average-pooled shortcut. The paper's stem (stride-2 convolution, stride-2 pooling) is for 224 pixels:
images under 64 pixels keep their size through both, images under 160 pass the convolution at stride 1.
The paper does not say how narrow networks round. Here, as in the authors' code, the stem has 24 channels times the
width, at width 1.5 too 24, and what the groups do not divide is rounded up to a multiple of them: stem, units and their
bottlenecks.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import fitting
from compress.config import knob
from compress.errors import UsageError
from compress.shuffle import shuffle

# pytorchcv's counts; of width 1.5, the authors' 3.4 and 4.3 million; of 8 groups at 0.5, our own sum
PARAMETERS = {
    ("shufflenet_v1:groups=1,width=1", 1000, (3, 224, 224)): 1_531_936,
    ("shufflenet_v1:groups=2,width=1", 1000, (3, 224, 224)): 1_733_848,
    ("shufflenet_v1:groups=3,width=1", 1000, (3, 224, 224)): 1_865_728,
    ("shufflenet_v1:groups=4,width=1", 1000, (3, 224, 224)): 1_968_344,
    ("shufflenet_v1:groups=8,width=1", 1000, (3, 224, 224)): 2_434_768,
    ("shufflenet_v1:groups=3,width=0.5", 1000, (3, 224, 224)): 718_324,
    ("shufflenet_v1:groups=3,width=1.5", 1000, (3, 224, 224)): 3_442_168,
    ("shufflenet_v1:groups=8,width=1.5", 1000, (3, 224, 224)): 4_269_952,
    ("shufflenet_v1:groups=8,width=0.5", 1000, (3, 224, 224)): 1_011_448,
    ("shufflenet_v1:groups=1,width=0.25", 1000, (3, 224, 224)): 209_746,
    ("shufflenet_v1:groups=3,width=0.25", 1000, (3, 224, 224)): 305_902,
}

# the paper's 143, 140, 137, 133 and 137 million to 1 %, and at width 1.5 the authors' 292 and 290 million. The paper's
# 13 million at width 0.25, whose rounding it does not tell, are not met
MACS = {
    ("shufflenet_v1:groups=1,width=1", 1000, (3, 224, 224)): 143_078_976,
    ("shufflenet_v1:groups=2,width=1", 1000, (3, 224, 224)): 140_836_512,
    ("shufflenet_v1:groups=3,width=1", 1000, (3, 224, 224)): 137_460_672,
    ("shufflenet_v1:groups=4,width=1", 1000, (3, 224, 224)): 134_339_776,
    ("shufflenet_v1:groups=8,width=1", 1000, (3, 224, 224)): 138_365_952,
    ("shufflenet_v1:groups=3,width=0.5", 1000, (3, 224, 224)): 37_589_856,
    ("shufflenet_v1:groups=3,width=1.5", 1000, (3, 224, 224)): 292_443_552,
    ("shufflenet_v1:groups=8,width=1.5", 1000, (3, 224, 224)): 290_188_800,
    ("shufflenet_v1:groups=3,width=0.25", 1000, (3, 224, 224)): 11_009_808,
}

CANDIDATES = ("shufflenet_v1:width=0.25", "shufflenet_v1:width=0.5", "shufflenet_v1:width=1")

# groups → channels of stage 2 in table 1; the next two double it
_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_STEM = {0.25: 6, 0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
_UNITS = (4, 8, 4)


@dataclass(frozen=True, kw_only=True)
class Config:
    groups: int = knob(3, "groups of the 1×1 convolutions: 1, 2, 3, 4 or 8 (the paper's)", low=1, high=8)
    width: float = knob(0.5, "width multiplier: 0.25, 0.5, 1, 1.5 or 2", low=0.25, high=2)


def _up(channels: int, groups: int) -> int:
    return -(-channels // groups) * groups


class Unit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; added to what came in, or beside its average at stride 2."""

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int, first_groups: int):
        super().__init__()
        made = channels - channels_in if stride == 2 else channels
        inner = _up(channels // 4, groups)
        self.groups, self.stride = groups, stride
        self.conv1 = nn.Conv2d(channels_in, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1))


def _stage(channels_in: int, channels: int, units: int, groups: int, first_groups: int) -> nn.Sequential:
    layers = [Unit(channels_in, channels, 2, groups, first_groups)]
    layers += [Unit(channels, channels, 1, groups, groups) for _ in range(units - 1)]
    return nn.Sequential(*layers)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    for name, value, allowed in (("groups", config.groups, _CHANNELS), ("width", config.width, _STEM)):
        if value not in allowed:
            listing = ", ".join(f"{choice:g}" for choice in allowed)
            raise UsageError(
                f"`{name}` of shufflenet_v1 must be one of {listing} (the paper's), got {value:g}", code="E-KNOB-CHOICE"
            )
    conv_stride, pool_stride = fitting.stem(min(input_shape[1:]))
    groups = config.groups
    # the pooled shortcut takes its channels from what a unit has to make, which the groups must divide
    before = _up(_STEM[config.width], groups)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], before, 3, conv_stride, 1, bias=False),
        bn1=nn.BatchNorm2d(before),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, 2, 1) if pool_stride == 2 else nn.Identity(),
    )
    for i, units in enumerate(_UNITS):
        channels = round(_CHANNELS[groups] * config.width) * 2**i
        layers[f"stage{i + 2}"] = _stage(before, channels, units, groups, 1 if i == 0 else groups)
        before = channels
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(before, num_classes))
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_stem(input_shape)
