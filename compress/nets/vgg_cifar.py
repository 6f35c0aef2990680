"""VGG for small images: five blocks of 3×3 convolutions with BatchNorm, average pooling, one linear layer.

Source: Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1
(A, B, D, E are 11, 13, 16, 19), as the distillation tables on CIFAR-100 use it: without the two hidden linear layers,
which the names still count, and with vgg8 of one convolution a block. The convolutions keep their biases, which
BatchNorm makes idle: the published counts include them, and parameter names are those of HobbitLong/RepDistiller's
checkpoints (block0…4, classifier).
Images are halved after the first two to four blocks, so that the last map of images of 16 pixels or more is at least
4×4: 32 pixels three times (the tables'), 64 four times, 8 and 16 twice.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from compress import fitting
from compress.config import knob
from compress.errors import UsageError

VARIANTS = {
    "vgg8": {"depth": 8},
    "vgg11": {"depth": 11},
    "vgg13": {"depth": 13},
    "vgg16": {"depth": 16},
    "vgg19": {"depth": 19},
}

# 3.965 and 9.462 million are the published counts
PARAMETERS = {
    ("vgg8", 100, (3, 32, 32)): 3_965_028,
    ("vgg13", 100, (3, 32, 32)): 9_462_180,
}

# 96.2 and 285 million are published
MACS = {
    ("vgg8", 100, (3, 32, 32)): 96_192_512,
    ("vgg13", 100, (3, 32, 32)): 284_936_192,
}

_CHANNELS = (64, 128, 256, 512, 512)
# depth → convolutions of each block
_BLOCKS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_SMALLEST = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    depth: int = knob(8, "the paper's layers: 8, 11, 13, 16 or 19; its 3 linear ones are 1 here", low=8, high=19)
    width: float = knob(1.0, "width multiplier of every layer but the last", low=0.05, high=8)


def halvings(size: int) -> int:
    """How often images of `size` pixels are halved.

    >>> [halvings(size) for size in (8, 16, 32, 64, 224)]
    [2, 2, 3, 4, 4]
    """
    return fitting.halvings(size, 4, last=4, least=2)


class VGG(nn.Module):
    def __init__(self, config: Config, num_classes: int, channels_in: int, halvings: int):
        super().__init__()
        self.halvings = halvings
        for i, (channels, convs) in enumerate(zip(_CHANNELS, _BLOCKS[config.depth], strict=True)):
            width = max(1, round(channels * config.width))
            layers: list[nn.Module] = []
            for _ in range(convs):
                layers += [nn.Conv2d(channels_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                nn.init.kaiming_normal_(layers[-3].weight, mode="fan_out")  # type: ignore[arg-type]
                channels_in = width
            self.add_module(f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(_CHANNELS)):
            x = self.get_submodule(f"block{i}")(x)
            if i < self.halvings:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    if config.depth not in _BLOCKS:
        raise UsageError(
            f"`depth` of a VGG must be one of {', '.join(map(str, _BLOCKS))}, got {config.depth}", code="E-KNOB-CHOICE"
        )
    if min(height, width) < _SMALLEST:
        raise UsageError(
            f"vgg needs images of {_SMALLEST}×{_SMALLEST} pixels at least, got {height}×{width}", code="E-NET-IMAGES"
        )
    return VGG(config, num_classes, channels, halvings(min(height, width)))


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return f"{halvings(min(input_shape[1:]))} halvings for {input_shape[1]}×{input_shape[2]} images"
