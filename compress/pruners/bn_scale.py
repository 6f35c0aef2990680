"""BatchNorm scale, "network slimming": a channel matters as much as the BatchNorm after it scales it.

    saliency(γ) = |γ|;  score(channel) = mean over its BatchNorms of |γ|
    the training before adds  sparsity · Σ |γ|  to the objective

Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", equation 1 (λ is
`sparsity`) and section 3: scores of all layers are compared as they are. Channels without a BatchNorm stay.
The paper trains with the penalty from the start; here it is a training of its own between distillation and pruning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.config import knob
from compress.types import Samples


@dataclass(frozen=True, kw_only=True)
class Config:
    sparsity: float = knob(1e-3, "weight of the penalty on the scales", low=0, high=1)
    epochs: int = knob(0, "epochs of training with the penalty; 0: as many as of recovery", low=0, high=100_000)


def saliency(config: Config, network: nn.Module, samples: Samples | None) -> dict[str, Tensor]:
    return {f"{name}.weight": norm.weight.detach().abs() for name, norm in _norms(network)}


def scores(config: Config, parts: list[Tensor]) -> list[Tensor]:
    unknown = float("inf")
    return [part.mean(0) if len(part) else torch.full((part.shape[1],), unknown, dtype=part.dtype) for part in parts]


def penalty(config: Config, network: nn.Module) -> Tensor:
    return config.sparsity * torch.stack([norm.weight.abs().sum() for _, norm in _norms(network)]).sum()


def _norms(network: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    modules = network.named_modules()
    return [(name, norm) for name, norm in modules if isinstance(norm, nn.BatchNorm2d) and norm.affine]
