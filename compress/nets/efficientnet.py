"""EfficientNet-B0 and EfficientNet-Lite0: inverted residuals of balanced sizes; torchvision's layers, fitted strides.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1. Lite0 is
the authors' form for integer processors (github.com/tensorflow/tpu, efficientnet/lite): no squeeze-excitation, ReLU6
instead of swish. The paper halves 224 pixels five times; smaller images are halved less often, so that the last map is
at least 2×2: first stage 3 of table 1 gives its stride up, then the stem, then stage 4, and so on. The strides are
printed when a run starts. Stochastic depth and dropout (the paper's 0.2 each) are off unless asked for.
"""

from dataclasses import dataclass

from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import MBConvConfig
from torchvision.ops import SqueezeExcitation

from compress import fitting
from compress.config import knob

VARIANTS = {
    "efficientnet_b0": {"lite": False},
    "efficientnet_lite0": {"lite": True},
}

# B0: torchvision's own count; Lite0: timm's
PARAMETERS = {
    ("efficientnet_b0", 1000, (3, 224, 224)): 5_288_548,
    ("efficientnet_lite0", 1000, (3, 224, 224)): 4_652_008,
}

# B0: torchvision's own 386 million; Lite0, by our sum, lacks the squeeze-excitation alone
MACS = {
    ("efficientnet_b0", 1000, (3, 224, 224)): 385_814_752,
    ("efficientnet_lite0", 1000, (3, 224, 224)): 385_187_552,
}

CANDIDATES = ("efficientnet_lite0:width=0.5", "efficientnet_lite0")

# expansion, kernel, channels in, channels, blocks of table 1
_STAGES = (
    (1, 3, 32, 16, 1), (6, 3, 16, 24, 2), (6, 5, 24, 40, 2), (6, 3, 40, 80, 3),
    (6, 5, 80, 112, 3), (6, 5, 112, 192, 4), (6, 3, 192, 320, 1),
)  # fmt: skip
# what the paper strides, in the order in which small images give it up
_STRIDED = (1, "stem", 2, 3, 5)


@dataclass(frozen=True, kw_only=True)
class Config:
    lite: bool = knob(False, "the form for integer processors: no squeeze-excitation, ReLU6 instead of swish")
    width: float = knob(1.0, "width multiplier of every layer", low=0.05, high=4)
    depth: float = knob(1.0, "multiplier of the blocks of each stage", low=0.1, high=4)
    drop_path: float = knob(0.0, "stochastic depth of the last block; earlier ones have less", low=0, high=0.9)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def strides(size: int) -> dict[int | str, int]:
    """Stride of the stem and of each stage for images of `size` pixels."""
    return fitting.strides(size, ("stem", *range(len(_STAGES))), _STRIDED)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    stride = strides(min(input_shape[1:]))
    settings = [
        MBConvConfig(expansion, kernel, stride[i], before, channels, blocks, config.width, config.depth)
        for i, (expansion, kernel, before, channels, blocks) in enumerate(_STAGES)
    ]
    net = EfficientNet(settings, config.dropout, config.drop_path, num_classes)
    stem = fitting.first_layer(net.features[0][0], input_shape[0], stride["stem"])  # type: ignore[index]
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    net.features[0][0] = stem  # type: ignore[index, operator]
    if config.lite:
        _replace(net, SqueezeExcitation, nn.Identity)
        _replace(net, nn.SiLU, nn.ReLU6)
    return net


def _replace(net: nn.Module, kind: type[nn.Module], other: type[nn.Module]) -> None:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, other())


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(min(input_shape[1:])), input_shape)
