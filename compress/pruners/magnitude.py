"""Magnitude: a channel matters as much as the norm of its weights, over all the layers that it is coupled to.

    saliency(w) = |w|^p
    score(channel) = mean over its weights of Σ |w|^p, divided by the mean score of its layers

Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (p = 1), over coupled layers as in Fang et al. 2023,
"DepGraph". Dividing by the layers' mean makes them comparable, which a global ratio needs.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from compress.config import knob
from compress.types import Samples


@dataclass(frozen=True, kw_only=True)
class Config:
    p: int = knob(2, "which norm: 1 or 2", low=1, high=2)


def saliency(config: Config, network: nn.Module, samples: Samples | None) -> dict[str, Tensor]:
    weights = {name: value for name, value in network.named_parameters() if name.endswith("weight")}
    return {name: value.detach().abs() ** config.p for name, value in weights.items()}


def scores(config: Config, parts: list[Tensor]) -> list[Tensor]:
    means = [part.mean(0) for part in parts]
    return [mean / mean.mean().clamp(min=1e-300) for mean in means]
