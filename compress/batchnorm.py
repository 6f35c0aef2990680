"""Estimate BatchNorm's statistics anew, for weights that have changed since they were gathered."""

import numpy as np
import torch
from torch import nn


def norms_of(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def reestimate(network: nn.Module, images: np.ndarray, *, batch_size: int = 128) -> int:
    """Set the running mean and variance of every BatchNorm to the plain average over uint8 images `[N,H,W,C]`.

    Everything else runs as in evaluation, so that no dropout disturbs the statistics. Returns the number of layers.
    """
    norms = norms_of(network)
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: every batch counts alike
        norm.train()
    # an incomplete batch would count as much as a full one
    full = max(1, len(images) // batch_size) * batch_size
    for start in range(0, min(full, len(images)), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
        network(batch.permute(0, 3, 1, 2).float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
    return len(norms)
