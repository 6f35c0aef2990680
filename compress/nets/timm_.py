"""Any classifier of timm by name (`timm:mobilenetv4_conv_small`), with its last layer fitted to the classes.

timm is optional: `pip install 'compress-to-onnx[timm]'`. Built without weights: nothing is downloaded. A checkpoint
made for the same number of classes loads by `--teacher-checkpoint`. Strides stay as timm has them, so very small images
may be too small for a net; networks of one fixed input size are built for that of the images.
"""

from dataclasses import dataclass

from torch import nn

from compress.config import knob
from compress.errors import UsageError, unknown

PACKAGES = ("timm",)

CANDIDATES = ()  # it stands for the networks of others, which are looked at by name

# timm's published counts
PARAMETERS = {
    ("timm:resnet18", 1000, (3, 224, 224)): 11_689_512,
    ("timm:mobilenetv1_100", 1000, (3, 224, 224)): 4_231_976,
}

# as torchvision's ResNet-18, and as `mobilenet_v1`
MACS = {
    ("timm:resnet18", 1000, (3, 224, 224)): 1_814_073_344,
    ("timm:mobilenetv1_100", 1000, (3, 224, 224)): 568_740_352,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = knob("resnet18", "timm's name of the classifier")


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UsageError(
            f"`timm:{config.name}` needs the package timm, which is not installed",
            code="E-PACKAGE-MISSING",
            hint="pip install 'compress-to-onnx[timm]'",
        ) from error
    names = timm.list_models()
    if config.name not in names:
        raise unknown("timm classifier", config.name, names)
    channels, height, width = input_shape
    settings = timm.get_pretrained_cfg(config.name)
    # names of other sources and tags of weights are no names: nothing here can reach the network
    extra = {"img_size": (height, width)} if settings is not None and settings.fixed_input_size else {}
    try:
        return timm.create_model(config.name, pretrained=False, in_chans=channels, num_classes=num_classes, **extra)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"timm cannot build `{config.name}` for {channels}-channel images of {height}×{width}: {reason}",
            code="E-NET-IMAGES",
            hint="take another network, or images of the size that it was made for",
        ) from error
