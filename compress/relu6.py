"""ReLU6 in place whose gradient is read from its result.

torch's own in place keeps a copy of what came in, as large as the map, for a gradient that the result tells as well:
8 % of a training step of MobileNetV2 on two cores. The numbers are the same, to the bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLU6(nn.ReLU6):
    def forward(self, x: Tensor) -> Tensor:
        # a leaf or a view of one is refused in place, by torch's own too; exporters read torch's own operators
        if self.inplace and x.grad_fn is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _FromResult.apply(x)  # type: ignore[no-any-return]
        return F.relu6(x, self.inplace)


def use_result(network: nn.Module) -> None:
    """Let every ReLU6 of torch that works in place be one of these."""
    for module in network.modules():
        if type(module) is nn.ReLU6 and module.inplace:
            module.__class__ = ReLU6


class _FromResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.clamp_(0.0, 6.0))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # nothing passes where the result is at either end, as where what came in was there or beyond
        return torch.ops.aten.hardtanh_backward(gradients[0], *ctx.saved_tensors, 0.0, 6.0)
