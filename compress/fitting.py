"""Fit a network made for large images to those that there are: which of its halvings it keeps, and its first layer.

A network that halves 224 pixels five times leaves nothing of 8. It names its strided places in the order in which small
images give them up; each loses just as many as its last map needs.
"""

import math
from collections.abc import Sequence

from torch import nn

Place = int | str

# sides in pixels from which the stem of an ImageNet network has its pooling, and its strided convolution too
_POOLED_FROM, _STRIDED_FROM = 64, 160


def halvings(size: int, most: int, *, last: int = 2, least: int = 0) -> int:
    """How often images of `size` pixels are halved: at most `most` times, and so that `last`×`last` are left; but
    `least` times whatever is left.

    >>> [halvings(size, 5) for size in (8, 16, 32, 64, 96, 224)]
    [2, 3, 4, 5, 5, 5]
    """
    return max(least, min(most, int(math.log2(max(size, last) / last))))


def strides(
    size: int, places: Sequence[Place], given_up: Sequence[Place], *, last: int = 2, least: int = 0
) -> dict[Place, int]:
    """Stride of each of `places` for images of `size` pixels: 2 at what is left of `given_up`, whose first go first.

    >>> strides(8, ("stem", 0, 1, 2), (0, "stem", 1, 2))
    {'stem': 1, 0: 1, 1: 2, 2: 2}
    """
    kept = given_up[len(given_up) - halvings(size, len(given_up), last=last, least=least) :]
    return {place: 2 if place in kept else 1 for place in places}


def describe_strides(stride: dict[Place, int], input_shape: tuple[int, int, int]) -> str:
    """The line that is printed of `strides`."""
    return f"strides {'-'.join(str(s) for s in stride.values())} for {input_shape[1]}×{input_shape[2]} images"


def stem(size: int) -> tuple[int, int]:
    """(stride of the first convolution, stride of the pooling) for images of `size` pixels, where the paper halves 224
    pixels by both: images under 64 pixels keep their size, images under 160 pass the convolution at stride 1.

    >>> [stem(size) for size in (32, 96, 224)]
    [(1, 1), (1, 2), (2, 2)]
    """
    return (1 if size < _STRIDED_FROM else 2), (1 if size < _POOLED_FROM else 2)


def describe_stem(input_shape: tuple[int, int, int]) -> str:
    """The line that is printed of `stem`."""
    conv_stride, pool_stride = stem(min(input_shape[1:]))
    return f"stem strides {conv_stride}-{pool_stride} for {input_shape[1]}×{input_shape[2]} images"


def first_layer(conv: nn.Conv2d, channels: int, stride: int | tuple[int, ...] = 0) -> nn.Conv2d:
    """A fresh convolution like `conv` for images of `channels` channels, at another stride if one is given."""
    return nn.Conv2d(
        channels, conv.out_channels, conv.kernel_size, stride or conv.stride, conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )  # fmt: skip


def rounded(channels: float, multiple: int = 8) -> int:
    """The multiple nearest to a scaled number of channels, up where down would lose more than a tenth of them: the
    rule of the MobileNet papers.

    >>> [rounded(channels) for channels in (3, 12, 19, 24)]
    [8, 16, 24, 24]
    """
    down = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return down if down >= 0.9 * channels else down + multiple
