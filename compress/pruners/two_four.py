"""2:4: of every four weights in a row along the input channels, the two smaller become zero.

A half, in the pattern that sparse tensor cores take; runtimes on CPUs gain nothing by it.

    saliency(w) = |w|

Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3. Layers whose input channels (of a
group) are no multiple of four stay whole, and so do depthwise convolutions.
"""

import torch
from torch import Tensor, nn

from compress.errors import UsageError
from compress.types import Samples


def check(config: object, ratio: float, steps: int) -> None:
    if ratio != 0.5:
        raise UsageError(
            f"--prune {ratio:g}: `two_four` sets exactly half of the weights to zero",
            code="E-PRUNE-PRUNER",
            hint="--prune 0.5",
        )
    if steps > 1:
        raise UsageError("`two_four` has one step: a half", code="E-PRUNE-PRUNER", hint="leave prune_steps at 1")


def saliency(config: object, network: nn.Module, samples: Samples | None) -> dict[str, Tensor]:
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    fitting = {name: m for name, m in layers.items() if m.weight.shape[1] % 4 == 0}
    return {f"{name}.weight": layer.weight.detach().abs() for name, layer in fitting.items()}


def masks(config: object, saliency: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    kept = {}
    for name, value in saliency.items():
        fours = value.transpose(1, -1).unflatten(-1, (-1, 4))
        largest = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.topk(2, dim=-1).indices, True)
        kept[name] = largest.flatten(-2).transpose(1, -1)
    return kept
