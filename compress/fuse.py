"""Merge branches into one layer and fold BatchNorm into the convolutions before it, once training is over.

A module with a method `merge() → nn.Module` says itself what answers as it does in eval mode. BatchNorm is paired by
running the network: with the convolution whose very output it takes. The copy must answer as the original does, else it
is refused; so no knowledge of the architecture is needed.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compress.errors import CompressError

# float32 rounding of a few dozen layers stays far below this share of the logits' spread; a wrong pair exceeds it
TOLERANCE = 1e-3
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def fold_batchnorm(network: Any) -> Any:
    """A copy of a `Network` in eval mode with its branches merged, every BatchNorm2d that follows a Conv2d folded into
    it, and subnormal weights (which slow some processors tenfold) set to zero. Raises CompressError if the answers
    change.
    """

    def fold(folded: Any, sample: Tensor) -> None:
        for conv_path, bn_path in _pairs(folded, sample):
            conv, bn = folded.get_submodule(conv_path), folded.get_submodule(bn_path)
            _replace(folded, conv_path, fuse_conv_bn_eval(conv, bn))
            # what the libraries' own kinds of BatchNorm do besides, such as an activation, are their parts
            rest = list(bn.children())
            _replace(folded, bn_path, nn.Sequential(*rest) if rest else nn.Identity())
        for value in (*folded.parameters(), *folded.buffers()):
            if value.is_floating_point():
                value[value.abs() < SMALLEST_NORMAL] = 0

    return _changed(merge_branches(network), fold, "folding BatchNorm")


def merge_branches(network: Any) -> Any:
    """A copy of a `Network` in eval mode with every module that has a method `merge` replaced by what that returns.

    Raises CompressError if the answers change.
    """
    paths: list[str] = []
    for path, module in network.named_modules():
        if _merges(module) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    if not paths:
        return copy.deepcopy(network).eval()

    def merge(merged: Any, sample: Tensor) -> None:
        for path in paths:
            _replace(merged, path, merged.get_submodule(path).merge().eval())

    return _changed(network, merge, "merging branches")


@torch.no_grad()
def _changed(network: Any, change: Callable[[Any, Tensor], None], what: str) -> Any:
    """A copy of the network in eval mode after `change`. Raises CompressError where its answers are others.

    A network may amplify the rounding of single precision on images unlike its own: what exceeds the tolerance is done
    once more in double precision, in which only a wrong change shows.
    """
    changed, sample = copy.deepcopy(network).eval(), _sample(network)
    before = changed(sample)
    change(changed, sample)
    difference = _difference(before, changed(sample))
    if not difference <= TOLERANCE:
        exact, sample = copy.deepcopy(network).eval().double(), sample.double()
        before = exact(sample)
        change(exact, sample)
        difference = _difference(before, exact(sample))
    if not difference <= TOLERANCE:
        raise CompressError(
            f"{what} changed the logits by {difference:.2g} of their spread: refused", code="E-ANSWERS-CHANGED"
        )
    return changed


def _difference(expected: Tensor, got: Tensor) -> float:
    """The largest, as a share of the logits' spread."""
    spread = (expected.max() - expected.min()).item() or 1.0
    return (expected - got).abs().max().item() / spread


def has_branches(network: nn.Module) -> bool:
    """Whether there is something to merge."""
    return any(_merges(module) for module in network.modules())


def _merges(module: nn.Module) -> bool:
    """Whether `module.merge()` can be called: other people's modules have methods of that name which take arguments."""
    method = getattr(module, "merge", None)
    if not inspect.ismethod(method):
        return False
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(method).parameters.values()
    )


def _sample(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, *network.contract.input_shape, generator=generator)
    return images.to(next(network.parameters()).device)


def _pairs(network: nn.Module, sample: Tensor) -> list[tuple[str, str]]:
    made_by: dict[tuple[int, int], str] = {}
    kept: list[Tensor] = []  # alive until the end, so that no id is used twice
    found: list[tuple[str, str]] = []
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def remember(_: nn.Module, inputs: Any, output: Tensor, path: str = path) -> None:
                made_by[id(output), output._version] = path
                kept.append(output)

            handles.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d):

            def match(_: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                # what was changed in place since is not the convolution's output any more
                maker = made_by.get((id(inputs[0]), inputs[0]._version))
                if maker:
                    found.append((maker, path))

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
