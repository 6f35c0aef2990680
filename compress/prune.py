"""Prune: physically remove the channels that matter least; the result reloads without pickle.

Which channels can go, and with which others, is measured on the network itself (`coupling`, `cutting`); a pruner says
how much each weight matters and how channels of different layers compare.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import cutting, fuse, randomness
from compress import network as net
from compress.catalog import Entry
from compress.coupling import Family, Unit, joined_unit
from compress.errors import CompressError, UsageError
from compress.network import Network
from compress.recipe import MOST_OF_A_LAYER
from compress.types import Samples

# halvings of the ratio in the search for a number of multiply-accumulates
SEARCH_STEPS = 12

# one tensor of indices into a family's units, for each family
Chosen = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Prunable:
    """A network in eval mode, the families of channels that may go, and why those of other layers may not."""

    network: Network
    families: tuple[Family, ...]
    stays: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ranking(Prunable):
    """How much each unit matters: `scores` float64 `[units]` for each family."""

    scores: tuple[Tensor, ...]


def prunable(network: Network) -> Prunable:
    """Raises UsageError where the network has no channels that can be removed."""
    network = copy.deepcopy(network).cpu().eval()
    families, stays = cutting.removable(network, network.contract.input_shape)
    if not families:
        name = network.contract.spec.partition(":")[0]
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(stays.items())[:2])
        raise UsageError(
            f"`{name}` has no channels to prune" + f" ({why})" * bool(why),
            code="E-PRUNE-IMPOSSIBLE",
            hint="leave --prune away",
        )
    return Prunable(network=network, families=tuple(families), stays=stays)


def rank(found: Prunable, pruner: Entry, samples: Samples | None = None) -> Ranking:
    """Score every channel that can be removed. `samples` are train images and labels, for pruners that ask for them."""
    saliency = pruner.module.saliency(pruner.config, found.network, samples)
    parts = [parts_of(found.network, family, saliency) for family in found.families]
    scores = pruner.module.scores(pruner.config, parts)
    if not any(torch.isfinite(s).all() for s in scores):
        raise UsageError(
            f"`{pruner.name}` finds nothing in `{found.network.contract.spec}` to rank its channels by",
            code="E-PRUNE-IMPOSSIBLE",
            hint="take --pruner magnitude",
        )
    return Ranking(network=found.network, families=found.families, stays=found.stays, scores=tuple(scores))


def parts_of(network: nn.Module, family: Family, saliency: dict[str, Tensor]) -> Tensor:
    """float64 `[weights, units]`: for each weight of a layer that the family touches, the saliency that goes with each
    unit, as rows (made and passed channels) or as columns (taken ones).
    """
    sums: dict[tuple[str, str], np.ndarray] = {}
    rows: dict[tuple[str, str], np.ndarray] = {}
    for number, unit in enumerate(family.units):
        for kind, places in (("rows", unit.made), ("rows", unit.passed), ("columns", unit.taken)):
            for path, channels in places.items():
                value = saliency.get(f"{path}.weight")
                if value is None:
                    continue
                key = (path, kind)
                if key not in sums:
                    sums[key] = _channel_sums(network, path, value.double(), kind).numpy()
                    rows[key] = np.zeros(len(family.units))
                rows[key][number] += sums[key][list(channels)].sum()
    return torch.from_numpy(np.stack(list(rows.values())) if rows else np.zeros((0, len(family.units))))


def _channel_sums(network: nn.Module, path: str, value: Tensor, kind: str) -> Tensor:
    if kind == "rows":
        return value.flatten(1).sum(1) if value.dim() > 1 else value
    groups = getattr(network.get_submodule(path), "groups", 1)
    return torch.cat([part.transpose(0, 1).flatten(1).sum(1) for part in value.chunk(groups)])


def choose(
    ranking: Ranking, ratio: float, *, scope: str = "global", round_to: int = 8, original: dict[str, int] | None = None
) -> Chosen:
    """What to remove for `ratio` (in (0,1)) of the removable channels: of all together, or of each layer (`uniform`).

    What stays of a layer is a multiple of `round_to`, the nearest one, and at least a fifth; layers narrower than that
    stay whole, and so do those without a finite score. Layers whose channels go many at once (of grouped convolutions)
    lose whole such units instead. `original` are channels by layer before earlier cuts: the fifth is of these.
    """
    lowest = _lowest(ranking, ratio)
    chosen = []
    for family, scores, low in zip(ranking.families, ranking.scores, lowest, strict=True):
        wanted = ratio * len(scores) if scope == "uniform" else low
        first = (original or {}).get(family.layers[0], len(scores) * family.channels_per_unit)
        count = _rounded(family, wanted, round_to, first) if torch.isfinite(scores).all() else 0
        chosen.append(scores.argsort(stable=True)[:count])
    return chosen


def _lowest(ranking: Ranking, ratio: float) -> list[int]:
    """How many units of each family are among the lowest `ratio` of all channels; equals go evenly from all."""
    scores = np.concatenate([s.numpy() for s in ranking.scores])
    family = np.repeat(np.arange(len(ranking.families)), [len(s) for s in ranking.scores])
    place = np.concatenate([s.argsort(stable=True).argsort().numpy() / len(s) for s in ranking.scores])
    channels = np.array([f.channels_per_unit for f in ranking.families])[family]
    order = np.lexsort((place, scores))
    order = order[np.isfinite(scores[order])]
    order = order[channels[order].cumsum() <= ratio * channels.sum() + 1e-9]
    return np.bincount(family[order], minlength=len(ranking.families)).tolist()


def _rounded(family: Family, wanted: float, round_to: int, original: int) -> int:
    """Units to remove, so that the number of channels that stay is rounded, and at least a fifth of `original`."""
    units = len(family.units)
    size = family.channels_per_unit
    # what grouped convolutions lose at once may be more than that already
    step = 1 if size >= round_to else round_to // math.gcd(round_to, size)
    least = max(step, math.ceil(original / size * (1 - MOST_OF_A_LAYER) / step - 1e-9) * step)
    if size > 1:  # with one channel a group it would be another kind of layer, a depthwise one
        least = max(least, 2)
    kept = max(least, math.floor((units - wanted) / step + 0.5) * step)
    return max(0, units - kept)


def joined(ranking: Ranking, chosen: Chosen) -> Unit:
    """All that was chosen as one unit."""
    return joined_unit(
        family.units[int(i)] for family, which in zip(ranking.families, chosen, strict=True) for i in which
    )


def without(ranking: Ranking, chosen: Chosen) -> Network:
    """A copy of the network without what was chosen; neither proved nor ready to be saved (see `cut`)."""
    smaller = copy.deepcopy(ranking.network)
    cutting.remove(smaller, joined(ranking, chosen))
    return smaller


def prune(
    network: Network, pruner: Entry, ratio: float, *, scope: str = "global", round_to: int = 8,
    samples: Samples | None = None, plugins: tuple[Path, ...] = (),
) -> Network:  # fmt: skip
    """A copy of `network` without the `ratio` (in (0,1)) of its removable channels that matter least.

    Raises UsageError when nothing can be removed, or nothing would become smaller.
    """
    ranking = rank(prunable(network), pruner, samples)
    return cut(ranking, choose(ranking, ratio, scope=scope, round_to=round_to), plugins=plugins, round_to=round_to)


def cut(ranking: Ranking, chosen: Chosen, *, round_to: int, plugins: tuple[Path, ...] = ()) -> Network:
    """The network without what was chosen, proved: it answers as the masked one does, and comes back from disk."""
    network, spec = ranking.network, ranking.network.contract.spec
    if not any(len(which) for which in chosen):
        widest = max(len(family.units) * family.channels_per_unit for family in ranking.families)
        raise UsageError(
            f"pruning `{spec}` this way removes nothing: its layers are so narrow (the widest that can be pruned has "
            f"{widest} channels) that rounding to multiples of {round_to} gives every channel back",
            code="E-PRUNE-UNREACHABLE",
            hint="prune more, take a smaller prune_round_to, or a smaller --width instead",
        )
    example = torch.rand(2, *network.contract.input_shape, generator=torch.Generator().manual_seed(0))
    refusal = cutting.refusal(network, joined(ranking, chosen), example)
    if refusal:
        raise UsageError(
            f"`{spec}` cannot be pruned this way: {refusal}",
            code="E-PRUNE-IMPOSSIBLE",
            hint="take another ratio, or prune_scope=uniform",
        )
    smaller = without(ranking, chosen)
    dense = net.shapes(network)
    widths = {name: shape for name, shape in net.shapes(smaller).items() if shape != dense[name]}
    for parameter in smaller.parameters():
        parameter.grad = None
    result = Network(smaller.body, replace(network.contract, widths={**network.contract.widths, **widths}))
    _check_reloads(result, example, plugins)
    return result


def macs(network: Network) -> int:
    """Multiply-accumulates of one image, of the network as it ships."""
    return net.count_macs(fuse.merge_branches(network) if fuse.has_branches(network) else network)


def ratio_for(cost: Callable[[Network], float], ranking: Ranking, share: float, **options: Any) -> float:
    """The smallest ratio whose network costs at most `share` of the dense one, by halving. `cost` falls with the ratio.

    Raises UsageError naming the best that was reached where no ratio does.
    """
    dense = cost(ranking.network)

    def share_at(ratio: float) -> float:
        return cost(without(ranking, choose(ranking, ratio, **options))) / dense

    low, high = 0.0, MOST_OF_A_LAYER
    if (best := share_at(high)) > share:
        raise UsageError(
            f"no ratio leaves {share:.0%} of the multiply-accumulates of `{ranking.network.contract.spec}`: the most "
            f"that can be removed leaves {best:.1%}",
            code="E-PRUNE-UNREACHABLE",
            hint=f"ask for more, for example --prune macs={math.ceil(best * 100) / 100:g}, or take a smaller student",
        )
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if share_at(middle) <= share else (middle, high)
    return high


def widths(ranking: Ranking, chosen: Chosen) -> list[dict[str, Any]]:
    """Facts for the report: each family's layers, its channels, and how many of them stay."""
    return [
        {
            "layers": list(family.layers),
            "channels": len(family.units) * family.channels_per_unit,
            "kept": (len(family.units) - len(which)) * family.channels_per_unit,
        }
        for family, which in zip(ranking.families, chosen, strict=True)
    ]


def samples_of(images: np.ndarray, labels: np.ndarray, count: int) -> Samples:
    """`count` labelled images (all, if fewer) in a fixed order that mixes the classes: folders come class by class."""
    order = randomness.permutation(randomness.derive("pruning samples"), len(labels))
    known = np.sort(order[labels[order] >= 0][:count])
    return Samples(images=images[known], labels=labels[known])


def _check_reloads(network: Network, example: Tensor, plugins: tuple[Path, ...]) -> None:
    """The recorded widths must rebuild the very network: what cannot be reloaded must not be trained for an hour."""
    contract = network.contract
    fields = {k: getattr(contract, k) for k in ("spec", "class_names", "input_shape", "mean", "std", "size")}
    twin = net.build(**fields, seed=0, plugins=plugins)
    net.reshape(twin, contract.widths)
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        same = torch.equal(twin.eval()(example), network.eval()(example))
    if not same:
        raise CompressError(
            f"the pruned `{contract.spec}` does not reload from its recorded widths", code="E-ANSWERS-CHANGED"
        )
