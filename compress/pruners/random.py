"""Random: channels go by lot. The control that every criterion has to beat.

Source: the baseline of Blalock et al. 2020, "What is the State of Neural Network Pruning?", section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.config import knob
from compress.types import Samples


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = knob(0, "which lot", low=0, high=2**31 - 1)


def saliency(config: Config, network: nn.Module, samples: Samples | None) -> dict[str, Tensor]:
    return {name: torch.ones_like(value) for name, value in network.named_parameters() if name.endswith("weight")}


def scores(config: Config, parts: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    return [torch.rand(part.shape[1], generator=generator, dtype=torch.float64) for part in parts]
