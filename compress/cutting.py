"""Remove channels from a network, or mask them: two ways to the same answers, which is how a removal is proved.

Torch-Pruning's functions do the surgery on each layer; which indices go is `coupling`'s to say.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from compress.coupling import Family, Unit, depthwise, families, joined_unit
from compress.errors import CompressError

# of the answers' spread, in float64: removing what is zero only changes the order of sums
TOLERANCE = 1e-9


def remove(network: nn.Module, unit: Unit) -> None:
    """Remove the unit's channels in place."""
    import torch_pruning

    for path, channels in {**unit.made, **unit.passed}.items():
        layer = network.get_submodule(path)
        if depthwise(layer):
            torch_pruning.prune_depthwise_conv_out_channels(layer, list(channels))
        elif isinstance(layer, nn.BatchNorm2d):
            torch_pruning.prune_batchnorm_out_channels(layer, list(channels))
        elif isinstance(layer, nn.Conv2d):
            torch_pruning.prune_conv_out_channels(layer, list(channels))
        else:
            torch_pruning.prune_linear_out_channels(layer, list(channels))
    for path, channels in unit.taken.items():
        layer = network.get_submodule(path)
        if isinstance(layer, nn.Linear):
            torch_pruning.prune_linear_in_channels(layer, list(channels))
        elif layer.groups == 1:
            torch_pruning.prune_conv_in_channels(layer, list(channels))
        else:
            _remove_grouped_inputs(layer, channels)  # type: ignore[arg-type]


def _remove_grouped_inputs(layer: nn.Conv2d, channels: tuple[int, ...]) -> None:
    """As `prune_conv_in_channels`, which takes the same places of every group for granted."""
    size, gone = layer.in_channels // layer.groups, set(channels)
    rows = []
    for group, weight in enumerate(layer.weight.detach().chunk(layer.groups)):
        rows.append(weight[:, [i for i in range(size) if group * size + i not in gone]])
    layer.weight = nn.Parameter(torch.cat(rows))
    layer.in_channels -= len(gone)


@torch.no_grad()
def mask(network: nn.Module, unit: Unit) -> None:
    """Make the unit's channels zero in place: weights, biases, and BatchNorm's scale and shift."""
    for path, channels in {**unit.made, **unit.passed}.items():
        layer = network.get_submodule(path)
        for value in (layer.weight, layer.bias):
            if value is not None:
                value[list(channels)] = 0


def difference(network: nn.Module, unit: Unit, images: Tensor) -> float:
    """The largest difference between the answers of the masked and of the cut network to float `[B,C,H,W]`, in
    float64, as a share of their spread. Raises what the cut network raises.
    """
    # one copy for both: what is masked in it is what is removed from it then
    copied = copy.deepcopy(network).double().eval()
    mask(copied, unit)
    with torch.no_grad():
        expected = copied(images.double())
        remove(copied, unit)
        got = copied(images.double())
    if expected.shape != got.shape:
        raise CompressError(
            f"the answers changed their shape from {tuple(expected.shape)} to {tuple(got.shape)}",
            code="E-ANSWERS-CHANGED",
        )
    spread = (expected.max() - expected.min()).item() or 1.0
    return (expected - got).abs().max().item() / spread


def removable(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[list[Family], dict[str, str]]:
    """(families that can be removed, layer → why its channels stay) of a network for images of `input_shape`.

    Each family is tried: half of its channels removed must answer as half of them masked, with random weights. So a
    network whose channels are split or reshaped in a way that widths cannot follow loses none that matter to it. Raises
    CompressError where layers share a parameter.
    """
    every, once = (list(network.named_parameters(remove_duplicate=d)) for d in (False, True))
    if len(every) > len(once):
        names = {name for name, _ in once}
        shared = next(name for name, _ in every if name not in names)
        raise CompressError(
            f"`{shared}` is a parameter of two layers: removing channels of one would part them", code="E-PRUNE-NETWORK"
        )
    found, mixed = families(network, input_shape)
    stays = dict.fromkeys(mixed, "its channels are mixed outside of a layer")
    twin = _with_random_weights(network)
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    if found and not refusal(twin, joined_unit(unit for family in found for unit in _half(family)), images):
        return found, stays
    kept = []
    for family in found:
        if reason := refusal(twin, joined_unit(_half(family)), images):
            stays[family.layers[0]] = reason
        else:
            kept.append(family)
    if kept and (reason := refusal(twin, joined_unit(unit for family in kept for unit in _half(family)), images)):
        raise CompressError(
            f"the channels of this network cannot be removed together: {reason}", code="E-PRUNE-NETWORK"
        )
    return kept, stays


def _half(family: Family) -> list[Unit]:
    order = torch.randperm(len(family.units), generator=torch.Generator().manual_seed(len(family.units)))
    return [family.units[i] for i in order[: len(family.units) // 2]]


def refusal(network: nn.Module, unit: Unit, images: Tensor) -> str:
    """Why these channels cannot be removed, or ""."""
    try:
        share = difference(network, unit, images)
    except Exception as error:  # the forward pass of any network, with widths that it was not made for
        return str(error).partition("\n")[0] or type(error).__name__
    # not greater, since NaN is not either
    return "" if share <= TOLERANCE else f"removed is not masked: the answers differ by {share:.1g} of their spread"


def _with_random_weights(network: nn.Module) -> nn.Module:
    """A copy in which nothing is zero or one by initialisation, so that every channel matters."""
    twin: Any = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in twin.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float32)
            if value.dim() > 1:
                value.copy_((noise - 0.5) * (12 / value[0].numel()) ** 0.5)
            else:  # scales and variances are positive, shifts and means need not be
                value.copy_(noise + 0.5 if name.endswith(("weight", "running_var")) else noise - 0.5)
    return twin
