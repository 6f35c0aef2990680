"""Set single weights to zero, where they are: shapes stay, files compress better. Recovery holds the zeros."""

import copy
import zlib
from pathlib import Path
from typing import Any

import torch

from compress import fuse
from compress.catalog import Entry
from compress.errors import CompressError
from compress.network import Network
from compress.types import Samples


def thin(network: Network, pruner: Entry, ratio: float, samples: Samples | None = None) -> Network:
    """A copy of `network` in which the pruner's masks are applied, about `ratio` of the weights that it looks at."""
    if fuse.has_branches(network):
        raise CompressError(
            f"`{network.contract.spec.partition(':')[0]}` is merged before export, which fills single zeros again",
            code="E-PRUNE-NETWORK",
            hint="take a pruner of channels, such as --pruner magnitude",
        )
    thinned = copy.deepcopy(network).cpu().eval()
    saliency = pruner.module.saliency(pruner.config, thinned, samples)
    if not saliency:
        raise CompressError(
            f"`{pruner.name}` finds no weights in `{network.contract.spec}` that it could set to zero",
            code="E-PRUNE-NETWORK",
        )
    parameters = dict(thinned.named_parameters())
    with torch.no_grad():
        for name, kept in pruner.module.masks(pruner.config, saliency, ratio).items():
            parameters[name].mul_(kept)
    return thinned


def zeros(network: Network) -> dict[str, Any]:
    """How many of the weights of layers (matrices and kernels) are zero."""
    weights = [value for value in network.parameters() if value.dim() > 1]
    return {"weights": sum(w.numel() for w in weights), "zero": int(sum((w == 0).sum() for w in weights))}


def compressed_bytes(path: Path) -> int:
    """Bytes of the file after deflate at its highest level, as a download or an app's package holds it."""
    return len(zlib.compress(path.read_bytes(), 9))
