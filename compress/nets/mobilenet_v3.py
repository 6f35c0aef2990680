"""MobileNetV3: inverted residuals with squeeze-excitation and hard swish; torchvision's layers, with fitted strides.

Source: Howard et al. 2019, "Searching for MobileNetV3", tables 1 and 2. The paper halves 224 pixels five times; smaller
images are halved less often, so that the last map is at least 2×2: first the earliest strided block gives its stride
up, then the stem, then the next block, and so on. The strides are printed when a run starts.
Deviation: running statistics of BatchNorm move by torch's 0.1 a step. torchvision's 0.01 is for long trainings, and is
still at its initial values after a short one.
"""

from dataclasses import dataclass
from functools import partial

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from compress import fitting
from compress.config import knob

VARIANTS = {
    "mobilenet_v3_small": {"size": "small"},
    "mobilenet_v3_large": {"size": "large"},
}

# torchvision's own counts
PARAMETERS = {
    ("mobilenet_v3_small", 1000, (3, 224, 224)): 2_542_856,
    ("mobilenet_v3_large", 1000, (3, 224, 224)): 5_483_032,
}

# torchvision's own 57 and 217 million; the paper has 56 and 219
MACS = {
    ("mobilenet_v3_small", 1000, (3, 224, 224)): 56_510_400,
    ("mobilenet_v3_large", 1000, (3, 224, 224)): 216_589_760,
}

CANDIDATES = ("mobilenet_v3_small:width=0.5", "mobilenet_v3_small", "mobilenet_v3_large:width=0.5")

# kernel, expanded channels, channels, squeeze-excitation, activation of tables 1 and 2
_BLOCKS = {
    "small": (
        (3, 16, 16, True, "RE"), (3, 72, 24, False, "RE"), (3, 88, 24, False, "RE"), (5, 96, 40, True, "HS"),
        (5, 240, 40, True, "HS"), (5, 240, 40, True, "HS"), (5, 120, 48, True, "HS"), (5, 144, 48, True, "HS"),
        (5, 288, 96, True, "HS"), (5, 576, 96, True, "HS"), (5, 576, 96, True, "HS"),
    ),
    "large": (
        (3, 16, 16, False, "RE"), (3, 64, 24, False, "RE"), (3, 72, 24, False, "RE"), (5, 72, 40, True, "RE"),
        (5, 120, 40, True, "RE"), (5, 120, 40, True, "RE"), (3, 240, 80, False, "HS"), (3, 200, 80, False, "HS"),
        (3, 184, 80, False, "HS"), (3, 184, 80, False, "HS"), (3, 480, 112, True, "HS"), (3, 672, 112, True, "HS"),
        (5, 672, 160, True, "HS"), (5, 960, 160, True, "HS"), (5, 960, 160, True, "HS"),
    ),
}  # fmt: skip
_STEM = 16
_HIDDEN = {"small": 1024, "large": 1280}
# what the paper strides, in the order in which small images give it up
_STRIDED: dict[str, tuple[int | str, ...]] = {"small": (0, "stem", 1, 3, 8), "large": (1, "stem", 3, 6, 12)}


@dataclass(frozen=True, kw_only=True)
class Config:
    size: str = knob("small", "the paper's small or large network", choices=("small", "large"))
    width: float = knob(1.0, "width multiplier of every layer", low=0.05, high=4)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def strides(variant: str, size: int) -> dict[int | str, int]:
    """Stride of the stem and of each block of `variant` for images of `size` pixels."""
    return fitting.strides(size, ("stem", *range(len(_BLOCKS[variant]))), _STRIDED[variant])


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    stride = strides(config.size, min(input_shape[1:]))
    blocks, before = [], _STEM
    for i, (kernel, expanded, channels, squeeze, activation) in enumerate(_BLOCKS[config.size]):
        block = InvertedResidualConfig(
            before, kernel, expanded, channels, squeeze, activation, stride[i], 1, config.width
        )  # fmt: skip
        blocks.append(block)
        before = channels
    net = MobileNetV3(
        blocks,
        InvertedResidualConfig.adjust_channels(_HIDDEN[config.size], config.width),
        num_classes,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        dropout=config.dropout,
    )
    net.features[0][0] = fitting.first_layer(net.features[0][0], input_shape[0], stride["stem"])
    nn.init.kaiming_normal_(net.features[0][0].weight, mode="fan_out")
    return net


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(config.size, min(input_shape[1:])), input_shape)
