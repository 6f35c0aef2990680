"""Which channels of a network hang together: found by a probe, not by reading its code or its graph.

A channel is followed by making it NaN: whatever only moves, adds, scales or pools channels hands the NaN on, and the
layers that mix channels show at which of their inputs it arrives. So residual sums, concatenations, splits, shuffles,
padding, squeeze-excite and depthwise convolutions are seen as they are, in any network. Many channels are followed at
once, each by the bits of its number. What mixes channels outside of a layer (normalisation over channels, attention)
gives itself away, since two channels arrive at one place; such channels are kept.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

ROWS = 64  # probes in one forward pass: bounds its memory

# layer path → its indices
Places = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Channels that can only go together: `made` are output channels of layers that mix, `passed` those of layers that
    treat each channel alone (BatchNorm, depthwise convolution), `taken` input channels of layers that mix.
    """

    made: Places
    passed: Places
    taken: Places


@dataclass(frozen=True, kw_only=True)
class Family:
    """Units that are made by the same layers, so that they can be compared; each is one step of their width."""

    layers: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def channels_per_unit(self) -> int:
        """Channels that a layer loses with one unit."""
        return max(len(places) for places in self.units[0].made.values())


def mixes(layer: nn.Module) -> bool:
    """Whether a layer with weights makes new channels of those it takes."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and not depthwise(layer))


def depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def passes(layer: nn.Module) -> bool:
    """Whether a layer with weights treats each channel alone."""
    return isinstance(layer, nn.BatchNorm2d) or depthwise(layer)


def families(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[list[Family], list[str]]:
    """What may be removed, in the order of the layers: neither the input's channels nor the answers are among it; and
    the layers whose channels something mixes that is no layer of the known kinds.
    """
    arrivals = _follow(network, input_shape)
    mixed = [one.layer for one in arrivals if _is_mixed(one) and not one.at_output]
    return list(_families(network, _units(network, arrivals))), mixed


@dataclass(frozen=True, kw_only=True)
class _Arrivals:
    """Of one followed layer: at each place, the channel that arrives at each input (−1 none, −2 more than one)."""

    layer: str
    at: dict[str, list[np.ndarray]]
    at_output: bool


_OUTPUT = ""


def _follow(network: nn.Module, input_shape: tuple[int, int, int]) -> list[_Arrivals]:
    network = copy.deepcopy(network).float().eval()
    modules = dict(network.named_modules())
    codes = {path: _code(_width(layer)) for path, layer in modules.items() if mixes(layer)}
    shapes = _output_shapes(network, input_shape)
    rows = 0  # of this pass
    marked: dict[str, slice] = {}  # layers that are followed in this pass → their rows
    # place → for each of its calls, which of its inputs were NaN in each row of this pass
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def note(path: str, value: Tensor, axis: int) -> None:
        others = [d for d in range(1, value.dim()) if d != axis % value.dim()]
        # the greatest of several is NaN where one is
        seen[path].append(torch.isnan(value.amax(others) if others else value).numpy())

    def forward(value: Tensor, path: str) -> Tensor:
        """Instead of the layer: of its arithmetic only the shape matters, and whether a channel is NaN."""
        axis, shape = _axis(modules[path]), shapes[path][len(seen[path])]
        note(path, value, axis)
        hit = seen[path][-1]
        if path in codes:
            hit = np.zeros((rows, len(codes[path][0])), bool)
            if path in marked:
                hit[marked[path]] = codes[path]
        return _spread(torch.zeros(hit.shape).masked_fill_(torch.from_numpy(hit), math.nan), shape, axis)

    for path, layer in modules.items():
        if mixes(layer) or passes(layer):
            layer.forward = partial(forward, path=path)
    found = []
    for together in _passes(codes):
        ends = np.cumsum([0, *(len(codes[path]) for path in together)]).tolist()
        marked = {path: slice(*ends[i : i + 2]) for i, path in enumerate(together)}
        rows = ends[-1]
        seen.clear()
        with torch.no_grad():
            note(_OUTPUT, network(torch.full((rows, *input_shape), 0.5)), 1)
        for path, own in marked.items():
            at = {
                place: [_decode(table[own], codes[path]) for table in of_calls if table[own].any()]
                for place, of_calls in seen.items()
            }
            found.append(_Arrivals(layer=path, at_output=bool(at.pop(_OUTPUT)), at=at))
    return found


def _passes(codes: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Layers that are followed in one forward pass, by the number of their rows."""
    together: list[str] = []
    for path, code in codes.items():
        if together and sum(len(codes[each]) for each in together) + len(code) > ROWS:
            yield together
            together = []
        together.append(path)
    if together:
        yield together


def _spread(values: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """`[rows, channels]` at all places of `[rows, *shape]`, whose channels lie along `axis`."""
    alone = [1] * len(shape)
    alone[0 if axis == 1 else -1] = values.shape[1]
    return values.view(len(values), *alone).expand(len(values), *shape).contiguous()


def _output_shapes(network: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, list[torch.Size]]:
    """Shapes that each layer with weights gives for one image, call by call."""
    shapes: dict[str, list[torch.Size]] = defaultdict(list)
    handles = [
        layer.register_forward_hook(lambda m, i, output, path=path: shapes[path].append(output.shape[1:]))
        for path, layer in network.named_modules()
        if mixes(layer) or passes(layer)
    ]
    with torch.no_grad():
        network(torch.zeros(1, *input_shape))
    for handle in handles:
        handle.remove()
    return shapes


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _width(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def _code(width: int) -> np.ndarray:
    """bool `[rows, width]`: for each bit of the channels' numbers, those where it is 1, then those where it is 0."""
    bits = max(1, (width - 1).bit_length())
    ones = np.arange(width) >> np.arange(bits)[:, None] & 1 == 1
    return np.stack([ones, ~ones], axis=1).reshape(2 * bits, width)


_NOTHING, _SEVERAL = -1, -2


def _decode(hits: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The channel that arrives at each input, of `hits` bool `[rows, inputs]`."""
    ones, zeros = hits[0::2], hits[1::2]
    channel = (ones * (1 << np.arange(len(ones)))[:, None]).sum(0)
    channel = np.where((ones & zeros).any(0), _SEVERAL, channel)
    # a channel shows in one of the two rows of each bit; in fewer only where its number does not exist
    return np.where((ones | zeros).any(0), channel, _NOTHING)


def _units(network: nn.Module, arrivals: list[_Arrivals]) -> list[Unit]:
    """Channels joined by every place at which they meet, less those that must stay."""
    layers = dict(network.named_modules())
    widths = {one.layer: _width(layers[one.layer]) for one in arrivals}
    first = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    parent = list(range(sum(widths.values())))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    fixed: set[int] = set()
    meets: dict[tuple[str, int], list[int]] = defaultdict(list)
    for one in arrivals:
        everyone = range(first[one.layer], first[one.layer] + widths[one.layer])
        tables = [(place, table) for place, calls in one.at.items() for table in calls]
        if one.at_output or _is_mixed(one):
            fixed.update(everyone)
        for place, table in tables:
            for position in np.flatnonzero(table >= 0).tolist():
                meets[place, position].append(first[one.layer] + int(table[position]))
    for nodes in meets.values():
        for node in nodes[1:]:
            parent[root(node)] = root(nodes[0])
    stays = {root(node) for node in fixed}
    made, passed, taken = (defaultdict(lambda: defaultdict(list)) for _ in range(3))
    for layer, start in first.items():
        for channel in range(widths[layer]):
            made[root(start + channel)][layer].append(channel)
    for (place, position), nodes in meets.items():
        kind = taken if mixes(layers[place]) else passed
        kind[root(nodes[0])][place].append(position)
    return [
        Unit(made=_frozen(made[node]), passed=_frozen(passed[node]), taken=_frozen(taken[node]))
        for node in made
        if node not in stays and taken[node]
    ]


def _is_mixed(one: _Arrivals) -> bool:
    return any((table == _SEVERAL).any() for calls in one.at.values() for table in calls)


def _frozen(places: dict[str, list[int]]) -> Places:
    return {layer: tuple(sorted(positions)) for layer, positions in places.items()}


def _families(network: nn.Module, units: list[Unit]) -> Iterator[Family]:
    alike: dict[tuple[str, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        alike[tuple(unit.made)].append(unit)
    for layers, members in alike.items():
        for path in layers:
            members = _tied(members, path, network.get_submodule(path))
        takers = dict.fromkeys(path for unit in members for path in unit.taken)
        for path in takers:
            members = _balanced(members, path, network.get_submodule(path))
        if len(members) > 1:
            yield Family(layers=layers, units=tuple(members))


def _tied(units: list[Unit], path: str, layer: nn.Module) -> list[Unit]:
    """A grouped convolution loses the same channel of each of its groups: a shuffle after it keeps its order."""
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return units
    size = _width(layer) // groups
    alike: dict[tuple[int, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        alike[tuple(sorted({channel % size for channel in unit.made[path]}))].append(unit)
    joined = [joined_unit(members) for members in alike.values()]
    return [unit for unit in joined if np.ptp(_counts(unit.made[path], size, groups)) == 0]


def _balanced(units: list[Unit], path: str, layer: nn.Module) -> list[Unit]:
    """A grouped convolution must lose equally many inputs of each of its groups: one unit of each is joined to one.

    Units that lie in several groups, unevenly, are left out.
    """
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return units
    size = layer.in_channels // groups  # type: ignore[union-attr, operator]
    even, by_group = [], defaultdict(list)
    for unit in units:
        counts = _counts(unit.taken.get(path, ()), size, groups)
        if np.ptp(counts) == 0:
            even.append(unit)
        elif np.count_nonzero(counts) == 1:
            by_group[int(counts.argmax()), int(counts.max())].append(unit)
    for count in sorted({count for _, count in by_group}):
        rows = [by_group.get((group, count), []) for group in range(groups)]
        even += [joined_unit(members) for members in zip(*rows, strict=False)]
    return even


def _counts(positions: Iterable[int], size: int, groups: int) -> np.ndarray:
    return np.bincount(np.array([p // size for p in positions], dtype=int), minlength=groups)


def joined_unit(units: Iterable[Unit]) -> Unit:
    """One unit of several."""
    kinds: dict[str, dict[str, list[int]]] = {kind: defaultdict(list) for kind in ("made", "passed", "taken")}
    for unit in units:
        for kind, places in kinds.items():
            for path, positions in getattr(unit, kind).items():
                places[path] += positions
    return Unit(**{kind: _frozen(places) for kind, places in kinds.items()})
