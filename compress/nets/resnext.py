"""ResNeXt: residual networks whose bottlenecks are split into equal, parallel paths: grouped convolutions.

Source: Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks". `cardinality` is the number of
paths, `width` that of channels of a path in the first stage (8x64d: 8 paths of 64). `form=cifar` is section 5.3: depth
9n+2, a 3×3 stem, three stages of n blocks with 256, 512 and 1024 channels. `form=imagenet` is table 1: torchvision's
ResNet of depth 50, 101 or 152, with a stem that suits the input: images under 64 pixels keep their size through the
stem, images under 160 pass its convolution at stride 1.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from compress import fitting
from compress.config import knob
from compress.errors import UsageError

VARIANTS = {
    "resnext29_32x4d": {"depth": 29, "cardinality": 32, "width": 4},
    "resnext29_8x64d": {"depth": 29, "cardinality": 8, "width": 64},
    "resnext29_16x64d": {"depth": 29, "cardinality": 16, "width": 64},
    "resnext50_32x4d": {"form": "imagenet", "depth": 50, "cardinality": 32, "width": 4},
    "resnext101_32x8d": {"form": "imagenet", "depth": 101, "cardinality": 32, "width": 8},
}

# the ImageNet networks: torchvision's own counts; 34.4 and 68.1 million (8x64d, 16x64d) are the paper's, table 7;
# 4,775,754 and 68,155,210 are pytorchcv's
PARAMETERS = {
    ("resnext29_32x4d", 10, (3, 32, 32)): 4_775_754,
    ("resnext29_8x64d", 10, (3, 32, 32)): 34_426_698,
    ("resnext29_16x64d", 10, (3, 32, 32)): 68_155_210,
    ("resnext50_32x4d", 1000, (3, 224, 224)): 25_028_904,
    ("resnext101_32x8d", 1000, (3, 224, 224)): 88_791_336,
}

# the ImageNet networks: torchvision's own 4.230 and 16.414 billion; pytorchcv's 781 million and
# 10.709 billion (32x4d, 16x64d) count BatchNorm and ReLU too
MACS = {
    ("resnext29_32x4d", 10, (3, 32, 32)): 774_055_936,
    ("resnext29_8x64d", 10, (3, 32, 32)): 5_387_266_048,
    ("resnext29_16x64d", 10, (3, 32, 32)): 10_688_866_304,
    ("resnext50_32x4d", 1000, (3, 224, 224)): 4_230_479_872,
    ("resnext101_32x8d", 1000, (3, 224, 224)): 16_414_015_488,
}

_BLOCKS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
_CIFAR_STAGES = (64, 128, 256)  # a fourth of their channels


@dataclass(frozen=True, kw_only=True)
class Config:
    form: str = knob("cifar", "cifar: three stages, no strided stem; imagenet: four", choices=("cifar", "imagenet"))
    depth: int = knob(29, "weighted layers: 9n+2 (cifar); 50, 101 or 152 (imagenet)", low=11, high=1001)
    cardinality: int = knob(32, "paths of each block", low=1, high=128)
    width: int = knob(4, "channels of a path in the first stage", low=1, high=128)


def _stage(channels_in: int, quarter: int, blocks: int, stride: int, config: Config) -> nn.Sequential:
    channels = Bottleneck.expansion * quarter
    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels, 1, stride, bias=False),
        nn.BatchNorm2d(channels),
    )
    paths = {"groups": config.cardinality, "base_width": config.width}
    layers = [Bottleneck(channels_in, quarter, stride, shortcut, **paths)]
    layers += [Bottleneck(channels, quarter, **paths) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


def _cifar(config: Config, num_classes: int, channels: int) -> nn.Module:
    before = _CIFAR_STAGES[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, before, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(before), relu=nn.ReLU(inplace=True)
    )
    for i, quarter in enumerate(_CIFAR_STAGES):
        layers[f"layer{i + 1}"] = _stage(before, quarter, (config.depth - 2) // 9, 1 if i == 0 else 2, config)
        before = Bottleneck.expansion * quarter
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(before, num_classes))
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net


def _imagenet(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    net = ResNet(
        Bottleneck, _BLOCKS[config.depth], num_classes, groups=config.cardinality, width_per_group=config.width
    )
    conv_stride, pool_stride = fitting.stem(min(input_shape[1:]))
    net.conv1 = fitting.first_layer(net.conv1, input_shape[0], conv_stride)
    nn.init.kaiming_normal_(net.conv1.weight)
    if pool_stride == 1:
        net.maxpool = nn.Identity()  # type: ignore[assignment]
    return net


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    if config.form == "cifar":
        if (config.depth - 2) % 9:
            raise UsageError(
                f"`depth` of a CIFAR ResNeXt must be 9n+2 (11, 20, 29, …), got {config.depth}", code="E-KNOB-CHOICE"
            )
        return _cifar(config, num_classes, input_shape[0])
    if config.depth not in _BLOCKS:
        listing = ", ".join(map(str, _BLOCKS))
        raise UsageError(
            f"`depth` of an ImageNet ResNeXt must be one of {listing}, got {config.depth}", code="E-KNOB-CHOICE"
        )
    return _imagenet(config, num_classes, input_shape)


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    if config.form == "cifar":
        return f"stem stride 1 for {input_shape[1]}×{input_shape[2]} images"
    return fitting.describe_stem(input_shape)
