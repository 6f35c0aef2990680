"""MobileNetV1: depthwise separable convolutions, one after the other, without shortcuts.

Source: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
table 1; `width` is the paper's α (1, 0.75, 0.5, 0.25), other values round channels to multiples of 8. The paper halves
224 pixels five times; smaller images are halved less often, so that the last map is at least 2×2: first the second
block gives its stride up, then the stem, then the fourth block, and so on. The strides are printed when a run starts.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from compress import fitting
from compress.config import knob

# pytorchcv's counts; the paper rounds them to 4.2, 2.6, 1.3 and 0.5 million
PARAMETERS = {
    ("mobilenet_v1:width=1", 1000, (3, 224, 224)): 4_231_976,
    ("mobilenet_v1:width=0.75", 1000, (3, 224, 224)): 2_585_560,
    ("mobilenet_v1:width=0.5", 1000, (3, 224, 224)): 1_331_592,
    ("mobilenet_v1:width=0.25", 1000, (3, 224, 224)): 470_072,
}

# the paper's 569, 325, 149 and 41 million
MACS = {
    ("mobilenet_v1:width=1", 1000, (3, 224, 224)): 568_740_352,
    ("mobilenet_v1:width=0.75", 1000, (3, 224, 224)): 325_400_448,
    ("mobilenet_v1:width=0.5", 1000, (3, 224, 224)): 149_497_088,
    ("mobilenet_v1:width=0.25", 1000, (3, 224, 224)): 41_030_272,
}

CANDIDATES = ("mobilenet_v1:width=0.25", "mobilenet_v1:width=0.5")

# channels of the blocks of table 1
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
# what the paper strides, in the order in which small images give it up
_STRIDED = (1, "stem", 3, 5, 11)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(0.5, "width multiplier, the paper's α", low=0.05, high=4)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def strides(size: int) -> dict[int | str, int]:
    """Stride of the stem and of each block for images of `size` pixels."""
    return fitting.strides(size, ("stem", *range(len(_CHANNELS))), _STRIDED)


def _convolution(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    stride = strides(min(height, width))
    before = fitting.rounded(32 * config.width)
    blocks = [nn.Sequential(*_convolution(channels, before, 3, stride["stem"]))]
    for i, unscaled in enumerate(_CHANNELS):
        after = fitting.rounded(unscaled * config.width)
        depthwise = _convolution(before, before, 3, stride[i], groups=before)
        blocks.append(nn.Sequential(*depthwise, *_convolution(before, after, 1)))
        before = after
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*blocks),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(config.dropout),
            linear=nn.Linear(before, num_classes),
        )
    )


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(min(input_shape[1:])), input_shape)
