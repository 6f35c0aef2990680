"""Fold BatchNorm into the convolutions before it, for networks that are not trained any more.

The pairs are found by running the network: a BatchNorm whose input is a convolution's very output. The folded copy
must answer as the original does, else it is refused; so no knowledge of the architecture is needed.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compress.errors import CompressError

# float32 rounding of a few dozen layers stays far below this share of the logits' spread; a wrong pair exceeds it
TOLERANCE = 1e-3
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def fold_batchnorm(network: Any) -> Any:
    """A copy of a `Network` in eval mode with every BatchNorm2d that follows a Conv2d folded into it, and subnormal
    weights (which slow some processors tenfold) set to zero. Raises CompressError if the answers change.
    """
    folded = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(0)
    parameter = next(folded.parameters())
    sample = torch.rand(4, *network.contract.input_shape, generator=generator).to(parameter.device)
    with torch.no_grad():
        before = folded(sample)
        for conv_path, bn_path in _pairs(folded, sample):
            conv, bn = folded.get_submodule(conv_path), folded.get_submodule(bn_path)
            _replace(folded, conv_path, fuse_conv_bn_eval(conv, bn))
            _replace(folded, bn_path, nn.Identity())
        for value in folded.parameters():
            value[value.abs() < SMALLEST_NORMAL] = 0
        after = folded(sample)
    spread = (before.max() - before.min()).item() or 1.0
    difference = (before - after).abs().max().item() / spread
    if not difference <= TOLERANCE:
        raise CompressError(f"folding BatchNorm changed the logits by {difference:.2g} of their spread: refused")
    return folded


def _pairs(network: nn.Module, sample: Tensor) -> list[tuple[str, str]]:
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # alive until the end, so that no id is used twice
    found: list[tuple[str, str]] = []
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def remember(_: nn.Module, inputs: Any, output: Tensor, path: str = path) -> None:
                made_by[id(output)] = path
                kept.append(output)

            handles.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d):

            def match(_: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                if id(inputs[0]) in made_by:
                    found.append((made_by[id(inputs[0])], path))

            handles.append(module.register_forward_pre_hook(match))
    try:
        network(sample)
    finally:
        for handle in handles:
            handle.remove()
    # a convolution called twice or read by two BatchNorms, and a BatchNorm used twice, cannot be folded
    convs, bns = [conv for conv, _ in found], [bn for _, bn in found]
    return [(conv, bn) for conv, bn in found if convs.count(conv) == bns.count(bn) == 1]


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
