"""Any torchvision classifier by name (`torchvision:resnet18`), with its last layer fitted to the classes.

Built without weights: nothing is downloaded. A checkpoint made for the same number of classes loads by
`--teacher-checkpoint`. Strides stay as torchvision has them, so very small images may be too small for a net.
"""

from dataclasses import dataclass

from torch import nn
from torchvision import models

from compress import fitting
from compress.config import knob
from compress.errors import UsageError, unknown

CANDIDATES = ()  # it stands for the networks of others, which are looked at by name

PARAMETERS = {("torchvision:resnet18", 1000, (3, 224, 224)): 11_689_512}

# torchvision's own 1.814 billion
MACS = {
    ("torchvision:resnet18", 1000, (3, 224, 224)): 1_814_073_344,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = knob("resnet18", "torchvision's name of the classifier")


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    names = models.list_models(module=models)
    if config.name not in names:
        raise unknown("torchvision classifier", config.name, names)
    # GoogLeNet and Inception return tuples in training unless told otherwise
    extra = {"aux_logits": False, "init_weights": True} if config.name in ("googlenet", "inception_v3") else {}
    net = models.get_model(config.name, weights=None, num_classes=num_classes, **extra)
    if input_shape[0] != 3:
        _fit_first_layer(net, input_shape[0])
    return net


def _fit_first_layer(net: nn.Module, channels: int) -> None:
    """Rebuild the first convolution, which torchvision makes for three channels."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3:
                break
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], fitting.first_layer(layer, channels))
            return
    raise UsageError(
        f"the first layer of {type(net).__name__} cannot be fitted to {channels} channel images", code="E-NET-IMAGES"
    )
