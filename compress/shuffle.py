"""Shuffles of channels that keep the memory layout.

The usual form (reshape, transpose, reshape) turns channels-last maps into contiguous ones, and every convolution after
it turns them back: on two cores a training step of ShuffleNetV2 took 12 % longer.
"""

from typing import Any

import torch
from torch import Tensor


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of maps `[B,C,H,W]` in the order in which each group gets its share of every group.

    >>> shuffle(torch.arange(6.0).view(1, 6, 1, 1), 2).flatten().int().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two maps `[B,C,H,W]` in turn, `[B,2C,H,W]`: their concatenation, shuffled in two groups.

    >>> interleave(torch.tensor([1.0, 2]).view(1, 2, 1, 1), torch.tensor([3.0, 4]).view(1, 2, 1, 1)).flatten().tolist()
    [1.0, 3.0, 2.0, 4.0]
    """
    if _is_channels_last(second) and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _Interleave.apply(first, second)
    return shuffle(torch.cat((first, second), dim=1), 2)


def _is_channels_last(x: Tensor) -> bool:
    # maps of one pixel or one channel are both, and stay what exporters and probes expect
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class _Interleave(torch.autograd.Function):
    """Two strided copies each way. Left to autograd, the gradients would be views of every second channel, which the
    operators before, ReLU's above all, take four times as long to read.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        batch, channels, height, width = first.shape
        out = first.new_empty((batch, height, width, channels, 2), dtype=torch.promote_types(first.dtype, second.dtype))
        out[..., 0] = first.permute(0, 2, 3, 1)
        out[..., 1] = second.permute(0, 2, 3, 1)
        return out.flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        pairs = gradient.permute(0, 2, 3, 1).unflatten(3, (-1, 2))
        return tuple(half.contiguous().permute(0, 3, 1, 2) for half in pairs.unbind(-1))
