"""LeNet and its wider relatives: two 5×5 convolutions with pooling, one hidden layer.

    lenet         C5@20 - MP2 - C5@50 - MP2 - FC500 - FC              teacher on MNIST
    lenet_cifar   C5@64 - MP2 - C5@128 - MP2 - FC1024 - FC            student on CIFAR-10
    lenet_svhn    C5(P2)@32 - MP3 - C5(P2)@64 - MP3 - FC1024 - FC     student on SVHN

Source: Sau and Balasubramanian 2016, "Deep Model Compression: Distilling Knowledge from Noisy Teachers", section 4; the
first is Caffe's LeNet (LeCun et al. 1998). `dropout` is the baseline that the paper compares with.
The notation leaves open, chosen here: ReLU after each layer but the last, every pooling has stride 2, and the second
stage of lenet_svhn has the padding of its first. 3×3 poolings are padded, so that they halve every size.
Valid convolutions need 20 pixels: smaller images (8×8 digits) get zero padding, which keeps their size.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from compress.config import knob
from compress.errors import UsageError

VARIANTS = {
    "lenet": {},
    "lenet_cifar": {"first": 64, "second": 128, "hidden": 1024},
    "lenet_svhn": {"first": 32, "second": 64, "hidden": 1024, "pool": 3, "padding": 2},
}

# 431,080 is the published count of Caffe's LeNet
PARAMETERS = {
    ("lenet", 10, (1, 28, 28)): 431_080,
    ("lenet_cifar", 10, (3, 32, 32)): 3_497_866,
    ("lenet_svhn", 10, (3, 32, 32)): 4_259_274,
}

# sums over the layers
MACS = {
    ("lenet", 10, (1, 28, 28)): 2_293_000,
    ("lenet_cifar", 10, (3, 32, 32)): 27_530_240,
    ("lenet_svhn", 10, (3, 32, 32)): 19_769_344,
}

_KERNEL = 5
_SAME = _KERNEL // 2


@dataclass(frozen=True, kw_only=True)
class Config:
    width: float = knob(1.0, "width multiplier of every layer but the last", low=0.05, high=8)
    first: int = knob(20, "channels of the first convolution", low=1, high=1024)
    second: int = knob(50, "channels of the second convolution", low=1, high=1024)
    hidden: int = knob(500, "units of the hidden layer", low=1, high=8192)
    pool: int = knob(2, "size of both max poolings: 2 or 3", low=2, high=3)
    padding: int = knob(-1, "zero padding of the convolutions; -1: none, and 2 for small images", low=-1, high=_SAME)
    dropout: float = knob(0.0, "dropout of the hidden layer", low=0, high=0.9)


def last_size(size: int, pool: int, padding: int) -> int:
    """Side of the last map for images of `size` pixels; 0: nothing is left of them.

    >>> last_size(28, pool=2, padding=0)
    4
    """
    for _ in range(2):
        size = size + 2 * padding - _KERNEL + 1
        size = max(0, size + (pool == 3)) // 2
    return size


def fitted_padding(config: Config, size: int) -> int:
    """The padding of the convolutions for images of `size` pixels: as asked for, or what leaves 2×2 at least."""
    if config.padding >= 0:
        return config.padding
    return 0 if last_size(size, config.pool, 0) >= 2 else _SAME


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    padding = fitted_padding(config, min(height, width))
    last = [last_size(side, config.pool, padding) for side in (height, width)]
    if min(last) < 1:
        raise UsageError(
            f"nothing is left of images of {height}×{width} after the two convolutions and poolings of LeNet "
            f"with padding={padding}",
            code="E-NET-IMAGES",
            hint="take larger images, another network, or padding=2",
        )
    first, second, hidden = (max(1, round(n * config.width)) for n in (config.first, config.second, config.hidden))
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, _KERNEL, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(config.pool, 2, padding=config.pool - 2),
            conv2=nn.Conv2d(first, second, _KERNEL, padding=padding),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(config.pool, 2, padding=config.pool - 2),
            flatten=nn.Flatten(),
            fc=nn.Linear(second * last[0] * last[1], hidden),
            relu3=nn.ReLU(),
            dropout=nn.Dropout(config.dropout),
            linear=nn.Linear(hidden, num_classes),
        )
    )
    for layer in (net.conv1, net.conv2, net.fc):
        # Caffe's fill; without BatchNorm, He's larger one kills the wide variants in their first steps
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type, union-attr]
    return net


def describe(config: Config, input_shape: tuple[int, int, int]) -> str:
    """One line on how the net was fitted to the input."""
    padding = fitted_padding(config, min(input_shape[1:]))
    return f"convolutions with zero padding {padding} for {input_shape[1]}×{input_shape[2]} images"
