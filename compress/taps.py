"""Taps: read a network's inner signals by forward hooks, whatever the network is.

`probe` runs a network once and finds its stages (the last map at each resolution) and its pooled embedding. `Tapped`
is the network with hooks on the wanted places. `pair` matches the stages of two networks by stride, which list
positions do not do: a MobileNet's second stage is not a ResNet's.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, unknown
from compress.execution import Execution
from compress.types import Signals

PROBE_IMAGES = 2
FEW_STAGES = 3  # a network with fewer resolutions may be one of tokens
MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place to read: module path, map shape (C,H,W), stride against the input, position among the stages.

    `layout` is how the module gives its map: "maps" `[B,C,H,W]`, "channels_last" `[B,H,W,C]`, or "tokens" `[B,N,C]` of
    which the first `prefix` (a class token) are no positions.
    """

    path: str
    shape: tuple[int, int, int]
    stride: int
    order: int
    layout: str = "maps"
    prefix: int = 0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one forward pass showed: stages from shallow to deep, and the last linear layer (its input is `pooled`)."""

    stages: tuple[Tap, ...]
    classifier: str
    pooled_dim: int
    places: dict[str, Tap] = field(default_factory=dict)  # path → every module that puts out a map, `order` by call

    def by_stride(self) -> dict[int, Tap]:
        # of several taps of one stride the last one counts
        return {tap.stride: tap for tap in self.stages}


@dataclass(frozen=True)
class _Call:
    path: str
    shape: tuple[int, int, int]
    leaf: bool
    block: str  # the class of a module that has parts and keeps the shape of what it is given, else ""
    layout: str = "maps"
    prefix: int = 0


def probe(network: nn.Module, input_shape: tuple[int, int, int]) -> Probe:
    """Find the stages of `network` with one forward pass in eval mode."""
    calls: list[_Call] = []
    outputs: list[tuple[Tensor, int]] = []  # of each call, and its version: what changes later cannot be read
    linears: list[tuple[str, int]] = []
    handles = []
    square = input_shape[1] == input_shape[2]
    for path, module in network.named_modules():
        leaf = next(module.children(), None) is None

        def record(module: nn.Module, inputs: Any, output: Any, path: str = path, leaf: bool = leaf) -> None:
            # windows and position tables have another first axis
            found = (
                _as_shape(output.shape, square) if isinstance(output, Tensor) and len(output) == PROBE_IMAGES else None
            )
            if found:
                given = inputs[0].shape if inputs and isinstance(inputs[0], Tensor) else None
                block = not leaf and not isinstance(module, nn.Sequential) and given == output.shape
                calls.append(_Call(path, found[0], leaf, type(module).__name__ if block else "", *found[1:]))
                outputs.append((output, output._version))

        def record_linear(layer: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            if inputs[0].dim() == 2:
                linears.append((path, inputs[0].shape[1]))

        handles.append(module.register_forward_hook(record))
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(record_linear))
    training = network.training
    try:
        with torch.no_grad():
            parameter = next(network.parameters())
            network.eval()(torch.zeros(PROBE_IMAGES, *input_shape, device=parameter.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = "×".join(map(str, input_shape))
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"this network cannot take images of {size}: {reason}",
            code="E-NET-IMAGES",
            hint="take another network, or larger images",
        ) from error
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    classifier, pooled_dim = linears[-1] if linears else ("", 0)
    stages = tuple(_stages([call for call in calls if call.layout == "maps"], input_shape[-1]))
    if len(stages) < FEW_STAGES:
        stages = tuple(_blocks(calls, input_shape[-1])) or stages
    # a module that is called several times is read at its last call
    places = {
        call.path: _tap(call, order, input_shape[-1])
        for order, (call, (output, version)) in enumerate(zip(calls, outputs, strict=True))
        if call.path and output._version == version
    }
    return Probe(stages=stages, classifier=classifier, pooled_dim=pooled_dim, places=places)


def _tap(call: _Call, order: int, input_size: int) -> Tap:
    stride = max(1, round(input_size / call.shape[-1]))
    return Tap(path=call.path, shape=call.shape, stride=stride, order=order, layout=call.layout, prefix=call.prefix)


def _as_shape(shape: torch.Size, square: bool) -> tuple[tuple[int, int, int], str, int] | None:
    """(C,H,W), layout and prefix of a module's output, or None where it is no map of positions.

    Maps of `square` images are square, which tells `[B,H,W,C]` from `[B,C,H,W]`, windows from maps, and positions from
    class tokens.
    """
    if len(shape) == 4:
        a, b, c = shape[1:]
        if b == c or not square:
            return (a, b, c), "maps", 0
        return ((c, a, b), "channels_last", 0) if a == b else None
    if len(shape) == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            side = math.isqrt(max(0, shape[1] - prefix))
            if side > 1 and side * side == shape[1] - prefix:
                return (shape[2], side, side), "tokens", prefix
    return None


def _blocks(calls: list[_Call], input_size: int) -> Iterable[Tap]:
    """One tap a block of tokens: what takes and gives positions, beside a sibling of its class."""
    tokens = [call for call in calls if call.layout != "maps" and call.block]
    families = Counter((call.path.rpartition(".")[0], call.block) for call in tokens)
    blocks = [call for call in tokens if families[call.path.rpartition(".")[0], call.block] > 1]
    for order, call in enumerate(blocks):
        yield _tap(call, order, input_size)


def _stages(calls: list[_Call], input_size: int) -> Iterable[Tap]:
    """The end of each resolution: among the maps of one size, the latest whose lowest common ancestor with the layer
    that shrinks it next is shallowest. So a block's own expansion, which lies deeper inside the shrinking block than
    the previous block's output, is not taken for a stage. Side branches that shrink for a while (squeeze-excite) do
    not count: a size ends where no larger map comes after it.
    """
    sizes = [call.shape[-1] for call in calls]
    largest_after = sizes[:]
    for i in range(len(sizes) - 2, -1, -1):
        largest_after[i] = max(sizes[i], largest_after[i + 1])
    order = 0
    for size in sorted(set(largest_after) - {1}, reverse=True):
        last = max(i for i, s in enumerate(sizes) if s == size)
        shrinks = next((c.path for c in calls[last + 1 :] if c.leaf), "")
        candidates = [
            (-_common_depth(call.path, shrinks), i)
            for i, call in enumerate(calls)
            if call.shape[-1] == size and largest_after[i] == size and call.path
        ]
        if not candidates:
            continue
        yield _tap(calls[max(candidates)[1]], order, input_size)
        order += 1


def _common_depth(a: str, b: str) -> int:
    depth = 0
    for left, right in zip(a.split("."), b.split("."), strict=False):
        if left != right:
            break
        depth += 1
    return depth


Pairs = tuple[tuple[Tap, Tap], ...]
BY_STRIDE = ("stride",)


def pair(student: Probe, teacher: Probe, pairing: tuple[str, ...] = BY_STRIDE) -> Pairs:
    """(student tap, teacher tap), shallow to deep. `pairing` is ("stride",): stages of equal stride, and without any
    the deepest of each; ("index",): the first stages of both, the second ones and so on, whatever their strides, as in
    most published code; or texts `STUDENT_MODULE=TEACHER_MODULE`, by their paths.

    Raises UsageError for a path that is no map, and for pairs that share a stride or cross each other.
    """
    ways = {BY_STRIDE: _equal_strides, ("index",): _equal_positions}
    return ways[pairing](student, teacher) if pairing in ways else _named(student, teacher, pairing)


def _equal_strides(student: Probe, teacher: Probe) -> Pairs:
    theirs = teacher.by_stride()
    pairs = tuple((tap, theirs[stride]) for stride, tap in student.by_stride().items() if stride in theirs)
    if not pairs and student.stages and teacher.stages:
        pairs = ((student.stages[-1], teacher.stages[-1]),)
    return pairs


def _equal_positions(student: Probe, teacher: Probe) -> Pairs:
    return tuple(zip(student.by_stride().values(), teacher.by_stride().values(), strict=False))


def _named(student: Probe, teacher: Probe, pairing: tuple[str, ...]) -> Pairs:
    sides = (("student", student), ("teacher", teacher))
    pairs = []
    for text in pairing:
        found = []
        for path, (side, probed) in zip(text.split("="), sides, strict=True):
            if path not in probed.places:
                raise unknown(f"map of the {side}", path, list(probed.places), where="`pairing`")
            found.append(probed.places[path])
        pairs.append((found[0], found[1]))
    pairs.sort(key=lambda taps: taps[0].order)
    for number, (side, _) in enumerate(sides):
        strides = [taps[number].stride for taps in pairs]
        # signals are told apart by their strides
        twice = next((stride for stride in strides if strides.count(stride) > 1), 0)
        if twice:
            raise UsageError(
                f"`pairing` names stride {twice} of the {side} twice: one map a stride can be read", code="E-PAIRING"
            )
        if (orders := [taps[number].order for taps in pairs]) != sorted(orders):
            raise UsageError(
                "`pairing` crosses: a deeper map of one side is paired with a shallower one of the other",
                code="E-PAIRING",
            )
    return tuple(pairs)


def describe_pairs(pairs: Pairs) -> str:
    """One line that shows the pairing: a silent wrong pairing is the worst failure."""
    sides = [[f"{tap.path} {'×'.join(map(str, tap.shape))}" for tap in pair] for pair in pairs]
    strides = [" and ".join(map(str, dict.fromkeys(tap.stride for tap in pair))) for pair in pairs]
    return "; ".join(
        f"stride {stride}: student {ours} ↔ teacher {theirs}"
        for stride, (ours, theirs) in zip(strides, sides, strict=True)
    )


def _to_maps(output: Tensor, tap: Tap) -> Tensor:
    """A module's output as a map `[B,C,H,W]`, sharing its memory."""
    if tap.layout == "channels_last":
        return output.permute(0, 3, 1, 2)
    if tap.layout == "tokens":
        return output[:, tap.prefix :].transpose(1, 2).unflatten(2, tap.shape[1:])
    return output


class _Enough(Exception):
    """Raised by the deepest wanted hook to leave the rest of the forward pass undone."""


class Tapped:
    """A network read at the wanted stages: `tapped(inputs) → Signals`, all in float32.

    `taps` are the stages to deliver as `maps` (keyed by their own stride); with `logits=False` the pass stops at the
    deepest of them. `execution` is how to run it (layout, precision). Signals of a frozen network carry no graph,
    unless `inputs` asks for the images as a leaf: then the logits can be differentiated by them.
    """

    def __init__(
        self, network: nn.Module, probed: Probe, taps: Iterable[Tap], execution: Execution,
        *, logits: bool = True, pooled: bool = False, inputs: bool = False,
    ):  # fmt: skip
        self.network, self.execution, self.logits, self.inputs = network, execution, logits, inputs
        self._maps: dict[int, tuple[Tensor, int]] = {}
        self._pooled: Tensor | None = None
        self._handles = []
        wanted = sorted(taps, key=lambda tap: tap.order)
        for position, tap in enumerate(wanted):
            stop = not logits and position == len(wanted) - 1
            module = network.get_submodule(tap.path)
            self._handles.append(module.register_forward_hook(self._reader(tap, stop)))
        if pooled:
            if not probed.classifier:
                raise CompressError(
                    f"`{type(network).__name__}` has no linear layer, so no pooled embedding to read", code="E-NET-READ"
                )
            layer = network.get_submodule(probed.classifier)
            self._handles.append(layer.register_forward_pre_hook(self._read_pooled))

    def _reader(self, tap: Tap, stop: bool) -> Any:
        def read(_: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[tap.stride] = (_to_maps(output, tap), output._version)
            if stop:
                raise _Enough

        return read

    def _read_pooled(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._pooled = inputs[0]

    def __call__(self, inputs: Tensor) -> Signals:
        self._maps.clear()
        self._pooled = logits = None
        if self.inputs:
            inputs = inputs.detach().requires_grad_()
        with self.execution.context(inputs.device.type), torch.set_grad_enabled(self._wants_graph()):
            try:
                logits = self.network(self.execution.arrange(inputs))
            except _Enough:
                pass
        for stride, (value, version) in self._maps.items():
            if value._version != version:
                raise CompressError(
                    f"the map at stride {stride} was changed in place after it was read: tap a later layer",
                    code="E-NET-READ",
                )
        return Signals(
            logits=None if logits is None else logits.float(),
            pooled=None if self._pooled is None else self._pooled.float(),
            maps={stride: value.float() for stride, (value, _) in self._maps.items()},
            inputs=inputs if self.inputs else None,
        )

    def _wants_graph(self) -> bool:
        return self.inputs or (torch.is_grad_enabled() and not self.execution.frozen)

    def close(self) -> None:
        """Remove the hooks: they must not reach an export or a copy."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._maps.clear()
