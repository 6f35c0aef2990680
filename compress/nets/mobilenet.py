"""MobileNetV2: inverted residuals with linear bottlenecks; torchvision's layers, with strides that suit the input.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2. The paper halves the
image five times, for 224 pixels. Smaller images are halved less often, so that the last map is at least 2×2:
32 pixels four times (stage 2 keeps its size), 16 three times, 8 twice. The strides are printed when a run starts.
"""

from dataclasses import dataclass

from torch import nn
from torchvision.models import MobileNetV2

from compress import fitting
from compress.config import knob

# (variant, classes, input) → parameters at the default width; 3,504,872 is torchvision's own count at width 1
PARAMETERS = {
    ("mobilenet:width=1", 1000, (3, 224, 224)): 3_504_872,
    ("mobilenet:width=0.5", 1000, (3, 224, 224)): 1_968_680,
}

# the paper's 300 and 97 million
MACS = {
    ("mobilenet:width=1", 1000, (3, 224, 224)): 300_774_272,
    ("mobilenet:width=0.5", 1000, (3, 224, 224)): 97_131_840,
}

CANDIDATES = (
    "mobilenet:width=0.25", "mobilenet:width=0.35", "mobilenet:width=0.5", "mobilenet:width=0.75", "mobilenet:width=1",
    "mobilenet:width=1.4",
)  # fmt: skip

# expansion, channels, blocks of table 2
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
# what the paper strides, in the order in which small images give it up: stage 2, the stem, stage 6, …; images that are
# halved twice only do without the last, since that leaves most layers with small maps
_STRIDED = (1, "stem", 5, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(0.5, "width multiplier of every layer but the last", low=0.05, high=4)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def strides(size: int) -> dict[int | str, int]:
    """Stride of the stem and of each stage for images of `size` pixels."""
    return fitting.strides(size, ("stem", *range(len(_STAGES))), _STRIDED)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    stride = strides(min(height, width))
    settings = [[t, c, n, stride[i]] for i, (t, c, n) in enumerate(_STAGES)]
    net = MobileNetV2(num_classes, config.width, settings, dropout=config.dropout)
    net.features[0][0] = fitting.first_layer(net.features[0][0], channels, stride["stem"])
    nn.init.kaiming_normal_(net.features[0][0].weight, mode="fan_out")
    return net


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(min(input_shape[1:])), input_shape)
