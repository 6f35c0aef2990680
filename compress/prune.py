"""Prune: physically remove channels, with Torch-Pruning as the engine; the result reloads without pickle."""

import copy
import io
import math
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from compress import network as net
from compress import taps
from compress.catalog import Entry
from compress.errors import CompressError
from compress.network import Network

# at most this part of one layer's channels goes, so that a global ratio empties no layer
MOST_OF_A_LAYER = 0.8


def prune(network: Network, pruner: Entry, ratio: float, round_to: int = 8, plugins: tuple[Path, ...] = ()) -> Network:
    """A copy of `network` without the `ratio` (in (0,1)) least important channels, ranked over all layers together.

    Widths are rounded to multiples of `round_to`; the input and the classifier's outputs stay. Raises CompressError
    when the architecture cannot be pruned: its channel groups are not understood, or nothing became smaller.
    """
    pruned = copy.deepcopy(network).cpu().eval()
    probed = taps.probe(pruned, network.contract.input_shape)
    if not probed.classifier and not probed.stages:
        raise CompressError(
            f"`{network.contract.spec.partition(':')[0]}` has no channels to prune", hint="leave --prune away"
        )
    dense_shapes, dense_macs = net.shapes(pruned), net.count_macs(pruned)
    example = torch.rand(2, *network.contract.input_shape, generator=torch.Generator().manual_seed(0))
    refused = CompressError(
        f"`{network.contract.spec.partition(':')[0]}` cannot be pruned by `{pruner.name}`: its channel groups "
        "(split, shuffle) are not followed by the pruning engine",
        hint="leave --prune away, or take `--student mobilenet`; a smaller --width also removes channels",
    )
    try:
        # the engine prints warnings about layers that it leaves alone
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            engine = _engine()(
                pruned,
                example,
                importance=pruner.module.scores(pruner.config),
                global_pruning=True,
                pruning_ratio=ratio,
                round_to=round_to,
                ignored_layers=[pruned.get_submodule(probed.classifier)] if probed.classifier else [],
            )
            engine.step()
        with torch.no_grad():
            logits = pruned(example)
    except (ZeroDivisionError, RuntimeError, IndexError, ValueError, AssertionError, AttributeError) as error:
        raise refused from error
    if logits.shape[1] != len(network.contract.class_names):
        raise refused
    if net.count_macs(pruned) >= dense_macs:
        raise CompressError(
            f"pruning {ratio:.0%} of the channels of `{network.contract.spec}` removes nothing: its layers are so "
            f"narrow that rounding to multiples of {round_to} gives every channel back",
            hint="prune more, or take a smaller --width",
        )
    shapes = net.shapes(pruned)
    widths = {k: v for k, v in shapes.items() if v != dense_shapes[k]}
    for parameter in pruned.parameters():
        parameter.grad = None
    result = Network(pruned.body, replace(network.contract, widths={**network.contract.widths, **widths}))
    _check_reloads(result, example, plugins)
    return result


def _engine() -> type:
    """Torch-Pruning's engine with widths that end at a floor.

    Left alone, a layer that would lose all of its channels, which rounding down also brings about, keeps all of them:
    beyond some ratio the network grows again.
    """
    import torch_pruning

    class Engine(torch_pruning.pruner.BasePruner):
        def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
            kept = (current_channels - n_pruned) // round_to * round_to
            least = math.ceil(current_channels * (1 - MOST_OF_A_LAYER) / round_to) * round_to
            return max(0, current_channels - max(kept, least))

    return Engine


def _check_reloads(network: Network, example: torch.Tensor, plugins: tuple[Path, ...]) -> None:
    """The recorded widths must rebuild the very network: what cannot be reloaded must not be trained for an hour."""
    contract = network.contract
    fields = {k: getattr(contract, k) for k in ("spec", "class_names", "input_shape", "mean", "std")}
    twin = net.build(**fields, seed=0, plugins=plugins)
    net.reshape(twin, contract.widths)
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        same = torch.equal(twin.eval()(example), network.eval()(example))
    if not same:
        raise CompressError(f"the pruned `{contract.spec}` does not reload from its recorded widths")
