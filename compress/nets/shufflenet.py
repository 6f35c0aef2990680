"""ShuffleNetV2: channel split and shuffle; torchvision's layers, with a stem that suits the input.

Source: Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", table 5. The
paper's stem (stride-2 convolution, stride-2 pooling) is for 224 pixels: images under 64 pixels keep their size through
both, images under 160 pass the convolution at stride 1.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import ShuffleNetV2
from torchvision.models.shufflenetv2 import InvertedResidual

from compress import fitting
from compress.config import knob
from compress.errors import UsageError
from compress.shuffle import interleave

# torchvision's published counts, 1000 classes at 224 pixels
PARAMETERS = {
    ("shufflenet:width=0.5", 1000, (3, 224, 224)): 1_366_792,
    ("shufflenet:width=1", 1000, (3, 224, 224)): 2_278_604,
    ("shufflenet:width=1.5", 1000, (3, 224, 224)): 3_503_624,
    ("shufflenet:width=2", 1000, (3, 224, 224)): 7_393_996,
}

# torchvision's own 40, 145, 296 and 583 million
MACS = {
    ("shufflenet:width=0.5", 1000, (3, 224, 224)): 40_476_448,
    ("shufflenet:width=1", 1000, (3, 224, 224)): 144_907_992,
    ("shufflenet:width=1.5", 1000, (3, 224, 224)): 295_759_392,
    ("shufflenet:width=2", 1000, (3, 224, 224)): 583_253_464,
}
CANDIDATES = ("shufflenet:width=0.5", "shufflenet:width=1", "shufflenet:width=1.5", "shufflenet:width=2")

_CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(0.5, "width of the paper's table 5: 0.5, 1, 1.5 or 2", low=0.5, high=2)


class Unit(InvertedResidual):
    """torchvision's, with a shuffle that keeps the memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = x.chunk(2, dim=1) if self.stride == 1 else (self.branch1(x), x)
        return interleave(kept, self.branch2(taken))


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    if config.width not in _CHANNELS:
        raise UsageError(
            f"`width` of shufflenet must be one of 0.5, 1, 1.5, 2 (the paper's), got {config.width:g}",
            code="E-KNOB-CHOICE",
        )
    net = ShuffleNetV2([4, 8, 4], list(_CHANNELS[config.width]), num_classes, Unit)
    conv_stride, pool_stride = fitting.stem(min(input_shape[1:]))
    net.conv1[0] = fitting.first_layer(net.conv1[0], input_shape[0], conv_stride)
    if pool_stride == 1:
        net.maxpool = nn.Identity()
    return net


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_stem(input_shape)
