"""MobileOne: depthwise separable convolutions that are sums of branches while they train, and plain ones when shipped.

Source: Vasu et al. 2022, "MobileOne: An Improved One millisecond Mobile Backbone", section 3.2 and table 2. Each
convolution trains as `branches` convolutions (in the stem one), a 1×1 one beside a 3×3 one and, where shapes allow, the
identity, each with its own BatchNorm. All are linear, so that `Branches.merge` gives the one convolution that answers
alike; export calls it. s4 has squeeze-excitation in the later half of the third stage and in the last.
The paper halves 224 pixels five times; smaller images are halved less often, so that the last map is at least 2×2:
first stage 2 gives its stride up, then the stem, then stage 3, and so on. The strides are printed when a run starts.
Deviation: the BatchNorms beside an identity start at weight zero (Goyal et al. 2017), so that a new network is as deep
as its layers without one. From the usual ones its forty layers hardly start to learn in a short training.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import SqueezeExcitation

from compress import fitting
from compress.config import knob

VARIANTS = {
    "mobileone_s0": {"size": "s0"},
    "mobileone_s1": {"size": "s1"},
    "mobileone_s2": {"size": "s2"},
    "mobileone_s3": {"size": "s3"},
    "mobileone_s4": {"size": "s4"},
}

# timm's counts of the networks as they train
PARAMETERS = {
    ("mobileone_s0", 1000, (3, 224, 224)): 5_293_272,
    ("mobileone_s1", 1000, (3, 224, 224)): 4_825_192,
    ("mobileone_s2", 1000, (3, 224, 224)): 7_884_648,
    ("mobileone_s3", 1000, (3, 224, 224)): 10_170_600,
    ("mobileone_s4", 1000, (3, 224, 224)): 14_951_248,
}

# as they train, by our sum (timm: 1.1 billion for s0); merged, they have the paper's 275, 825, 1299, 1896 and 2978
# million to 0.1 %
MACS = {
    ("mobileone_s0", 1000, (3, 224, 224)): 1_051_935_232,
    ("mobileone_s1", 1000, (3, 224, 224)): 830_062_080,
    ("mobileone_s2", 1000, (3, 224, 224)): 1_304_027_392,
    ("mobileone_s3", 1000, (3, 224, 224)): 1_902_112_768,
    ("mobileone_s4", 1000, (3, 224, 224)): 2_986_802_432,
}

CANDIDATES = ("mobileone_s0:width=0.5", "mobileone_s0", "mobileone_s1")

# channels and blocks of the stages of table 2
_STAGES = ((64, 2), (128, 8), (256, 10), (512, 1))
_STEM = 64
# width of each stage, branches of each convolution
_SIZES = {
    "s0": ((0.75, 1.0, 1.0, 2.0), 4),
    "s1": ((1.5, 1.5, 2.0, 2.5), 1),
    "s2": ((1.5, 2.0, 2.5, 4.0), 1),
    "s3": ((2.0, 2.5, 3.0, 4.0), 1),
    "s4": ((3.0, 3.5, 3.5, 4.0), 1),
}
# blocks at the end of each stage of s4 that have squeeze-excitation, and by what it squeezes
_SQUEEZED, _SQUEEZE = (0, 0, 5, 1), 16
# what the paper strides, in the order in which small images give it up
_STRIDED = (0, "stem", 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Config:
    size: str = knob("s0", "the paper's network", choices=tuple(_SIZES))
    width: float = knob(1.0, "multiplier of the paper's widths", low=0.05, high=4)
    branches: int = knob(0, "convolutions that train in place of one; 0: the paper's number", low=0, high=16)
    dropout: float = knob(0.0, "dropout before the classifier", low=0, high=0.9)


def _normed(channels_in: int, channels: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


def _kernel(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with its BatchNorm, as it is in eval mode."""
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias  # type: ignore[arg-type]
    )  # fmt: skip


class Branches(nn.Module):
    """A convolution as the sum of `branches` of its kind, of a 1×1 one, and of the identity, each with BatchNorm."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, groups: int, branches: int):
        super().__init__()
        self.convs = nn.ModuleList(_normed(channels_in, channels, kernel, stride, groups) for _ in range(branches))
        self.scale = _normed(channels_in, channels, 1, stride, groups) if kernel > 1 else None
        self.skip = nn.BatchNorm2d(channels) if channels_in == channels and stride == 1 else None
        if self.skip is not None:
            for branch in (*self.convs, *([self.scale] if self.scale is not None else [])):
                nn.init.zeros_(branch.bn.weight)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        out = self.convs[0](x)
        for conv in self.convs[1:]:
            out = out + conv(x)
        if self.scale is not None:
            out = out + self.scale(x)
        return out if self.skip is None else out + self.skip(x)

    @torch.no_grad()
    def merge(self) -> nn.Conv2d:
        """The one convolution that answers as all branches do in eval mode, whatever channels they were left with."""
        first: nn.Conv2d = self.convs[0].conv  # type: ignore[assignment]
        kernels = [_kernel(branch.conv, branch.bn) for branch in self.convs]  # type: ignore[arg-type]
        middle = first.kernel_size[0] // 2
        if self.scale is not None:
            weight, bias = _kernel(self.scale.conv, self.scale.bn)  # type: ignore[arg-type]
            kernels.append((F.pad(weight, [middle] * 4), bias))
        channels, per_group = first.weight.shape[:2]
        if self.skip is not None:
            identity = nn.Conv2d(channels, channels, first.kernel_size, groups=first.groups, bias=False)
            identity.weight = nn.Parameter(torch.zeros_like(first.weight))
            each = torch.arange(channels)
            identity.weight[each, each % per_group, middle, middle] = 1
            kernels.append(_kernel(identity, self.skip))
        merged = nn.Conv2d(
            per_group * first.groups, channels, first.kernel_size, first.stride, first.padding,
            groups=first.groups,
        )  # fmt: skip
        merged.weight = nn.Parameter(torch.stack([weight for weight, _ in kernels]).sum(0))
        merged.bias = nn.Parameter(torch.stack([bias for _, bias in kernels]).sum(0))
        return merged


def _convolution(
    channels_in: int, channels: int, kernel: int, stride: int, groups: int, branches: int, squeeze: bool = False
) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](conv=Branches(channels_in, channels, kernel, stride, groups, branches))
    if squeeze:
        layers["squeeze"] = SqueezeExcitation(channels, max(1, channels // _SQUEEZE))
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def strides(size: int) -> dict[int | str, int]:
    """Stride of the stem and of each stage for images of `size` pixels."""
    return fitting.strides(size, ("stem", *range(len(_STAGES))), _STRIDED)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    widths, branches = _SIZES[config.size]
    branches = config.branches or branches
    stride = strides(min(input_shape[1:]))
    before = fitting.rounded(_STEM * min(1.0, widths[0]) * config.width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = _convolution(input_shape[0], before, 3, stride["stem"], 1, 1)
    for i, (channels, blocks) in enumerate(_STAGES):
        after = fitting.rounded(channels * widths[i] * config.width)
        stage = []
        for block in range(blocks):
            squeeze = config.size == "s4" and block >= blocks - _SQUEEZED[i]
            step = stride[i] if block == 0 else 1
            stage.append(_convolution(before, before, 3, step, before, branches, squeeze))
            stage.append(_convolution(before, after, 1, 1, 1, branches, squeeze))
            before = after
        layers[f"stage{i}"] = nn.Sequential(*stage)
    layers.update(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(config.dropout),
        linear=nn.Linear(before, num_classes),
    )
    return nn.Sequential(layers)


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    return fitting.describe_strides(strides(min(input_shape[1:])), input_shape)
