"""Unstructured: the smallest single weights become zero, of all layers together.

Files compress better; few runtimes run faster, so that this is for size.

    saliency(w) = |w|;  of all weights the smallest part `ratio` is zero, but of no layer more than 98 %

In several steps the part grows as  s_i = s (1 − (1 − i/n)³).
Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1 (the schedule), and Han et al. 2015, "Learning both
Weights and Connections". Depthwise convolutions, biases and BatchNorm stay whole, as in the former for MobileNet.
"""

import torch
from torch import Tensor, nn

from compress.types import Samples

MOST_OF_A_LAYER = 0.98


def saliency(config: object, network: nn.Module, samples: Samples | None) -> dict[str, Tensor]:
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    mixing = {name: m for name, m in layers.items() if isinstance(m, nn.Linear) or m.groups < m.in_channels}
    return {f"{name}.weight": layer.weight.detach().abs() for name, layer in mixing.items()}


def masks(config: object, saliency: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    everything = torch.cat([value.flatten() for value in saliency.values()]).sort().values
    limit = everything[min(len(everything) - 1, round(ratio * len(everything)))]
    kept = {}
    for name, value in saliency.items():
        own_limit = value.flatten().sort().values[int(MOST_OF_A_LAYER * (value.numel() - 1))]
        kept[name] = value >= torch.minimum(limit, own_limit)
    return kept


def ratio_at(ratio: float, step: int, steps: int) -> float:
    """The part that is zero after `step` (from 1) of `steps`.

    >>> [round(ratio_at(0.8, step, 4), 4) for step in (1, 2, 3, 4)]
    [0.4625, 0.7, 0.7875, 0.8]
    """
    return ratio * (1 - (1 - step / steps) ** 3)
