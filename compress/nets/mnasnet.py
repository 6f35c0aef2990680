"""MnasNet-B1: inverted residuals of searched sizes, without squeeze-excitation; torchvision's layers, fitted strides.

Source: Tan et al. 2018, "MnasNet: Platform-Aware Neural Architecture Search for Mobile", figure 7 and, of B1, table 1.
The paper halves 224 pixels five times; smaller images are halved less often, so that the last map is at least 2×2:
first the first stack gives its stride up, then the stem, then the second stack, and so on. The strides are printed when
a run starts.
Deviation: running statistics of BatchNorm move by torch's 0.1 a step. torchvision's 0.0003 is for the longest
trainings, and is still at its initial values after an ordinary one.
The layers stand in a module of our own, with torchvision's names: torchvision's refuses weights that come without the
version of its class, as safetensors do.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision import models

from compress import fitting
from compress.config import knob

# torchvision's own counts
PARAMETERS = {
    ("mnasnet:width=0.5", 1000, (3, 224, 224)): 2_218_512,
    ("mnasnet:width=1", 1000, (3, 224, 224)): 4_383_312,
}

# torchvision's own 104 and 314 million; the paper has 315 at width 1
MACS = {
    ("mnasnet:width=0.5", 1000, (3, 224, 224)): 104_455_968,
    ("mnasnet:width=1", 1000, (3, 224, 224)): 314_415_872,
}

CANDIDATES = ("mnasnet",)

# where torchvision's list of layers has its stacks
_STACKS = tuple(range(8, 14))
# what the paper strides, in the order in which small images give it up
_STRIDED = (8, "stem", 9, 10, 12)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(0.5, "width multiplier of every layer but the last", low=0.05, high=4)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


class MnasNet(nn.Module):
    def __init__(self, layers: nn.Module, classifier: nn.Module):
        super().__init__()
        self.layers, self.classifier = layers, classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean((2, 3)))


def strides(size: int) -> dict[int | str, int]:
    """Stride of the stem and of each stack for images of `size` pixels."""
    return fitting.strides(size, ("stem", *_STACKS), _STRIDED)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    stride = strides(min(input_shape[1:]))
    made = models.MNASNet(config.width, num_classes, dropout=config.dropout)
    layers: nn.Sequential = made.layers  # type: ignore[assignment]
    layers[0] = fitting.first_layer(layers[0], input_shape[0], stride["stem"])  # type: ignore[arg-type]
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out")  # type: ignore[arg-type]
    for stack in _STACKS:
        first = layers.get_submodule(f"{stack}.0.layers")
        depthwise = next(m for m in first.children() if isinstance(m, nn.Conv2d) and m.groups > 1)
        depthwise.stride = (stride[stack], stride[stack])
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return MnasNet(layers, made.classifier)


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(min(input_shape[1:])), input_shape)
