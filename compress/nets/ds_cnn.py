"""DS-CNN: equal depthwise separable convolutions after one ordinary one, small enough for a microcontroller.

Source: Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", section 4; the defaults are its small
network (64 channels), which MLPerf Tiny took over. Sound asked for a 10×4 stem; for images the stem is 3×3.
The paper strides the stem and the network ends in its map's average. Images are larger than its spectrograms: they are
halved until less than 8×8 are left, images under 16 pixels twice. The stem keeps its stride from 32 pixels on, then
halve the first block and the one past the middle, then the second and the last; 32 pixels become maps of 16, 8 and 4.
The strides are printed when a run starts.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from compress import fitting
from compress.config import knob

# sums over the layers: of 64 channels, 9 per channel and plane of the stem, then 9 + 64 per channel and block; each
# convolution is followed by a BatchNorm
PARAMETERS = {
    ("ds_cnn", 10, (3, 32, 32)): 64 * (9 * 3 + 2) + 4 * 64 * (9 + 2 + 64 + 2) + 65 * 10,
    ("ds_cnn:channels=16,blocks=2", 4, (1, 8, 8)): 16 * (9 + 2) + 2 * 16 * (9 + 2 + 16 + 2) + 17 * 4,
}

# sums over the layers: at 32 pixels the maps are of 16 (stem), 8, 8, 4 and 4
MACS = {
    ("ds_cnn", 10, (3, 32, 32)): 1_190_528,
}

CANDIDATES = ("ds_cnn", "ds_cnn:channels=128")

_SMALLEST = 4  # side of the last map


@dataclass(frozen=True, kw_only=True)
class Config:
    channels: int = knob(64, "channels of every layer", low=1, high=1024)
    blocks: int = knob(4, "depthwise separable convolutions", low=2, high=64)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def strides(blocks: int, size: int) -> dict[int | str, int]:
    """Stride of the stem and of each block for images of `size` pixels."""
    early = (0, blocks // 2)
    late = tuple(dict.fromkeys(block for block in (blocks - 1, 1) if block not in early))
    return fitting.strides(size, ("stem", *range(blocks)), (*late, "stem", *early), last=_SMALLEST, least=2)


def _convolution(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    stride, width = strides(config.blocks, min(input_shape[1:])), config.channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(*_convolution(input_shape[0], width, 3, stride["stem"]))
    for i in range(config.blocks):
        depthwise = _convolution(width, width, 3, stride[i], groups=width)
        layers[f"block{i}"] = nn.Sequential(*depthwise, *_convolution(width, width, 1))
    layers.update(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(config.dropout),
        linear=nn.Linear(width, num_classes),
    )
    return nn.Sequential(layers)


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(config.blocks, min(input_shape[1:])), input_shape)
