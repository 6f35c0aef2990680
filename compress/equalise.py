"""Cross-layer equalisation: channels of very different ranges in one tensor are brought nearer to each other.

A tensor has one scale for all of its channels, so small ones lose their bits to large ones. Between two convolutions
with nothing but ReLU, clipping or pooling in between, channel i of the first is divided by s_i and the second's weights
for it are multiplied by s_i, which changes no answer (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1). Weights have a scale for each output channel here, so what is
equalised is activations against weights, as Xiao et al. 2023 (SmoothQuant, equation 4, α = 0.5) do:

    s_i = (a_i / r_i)^(1/2)     a_i: largest activation of the channel, r_i: largest weight that reads it

and s_i = a_i where a depthwise convolution reads it, whose own scales make up for any s. Where activations are clipped
from above, s_i keeps every channel that was seen below the bound away from it (by `MARGIN`), and leaves the others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.calibrate import Outputs

PASSING = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")
MARGIN = 1.5  # so far below the bound channels stay that were never clipped on the calibration images
MOST = 1e4  # of a scale: what is far smaller than the rest is noise


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Names of two convolutions, of the tensor that the second reads, and the bound of the clipping between them."""

    first: str
    second: str
    tensor: str
    bound: float


def equalise(prepared: Path, target: Path, images: np.ndarray) -> dict[str, Any]:
    """Write the `prepared` float ONNX file to `target` with its pairs equalised over uint8 images `[N,H,W,C]`."""
    import onnx

    model = onnx.load(prepared)
    found = pairs(model)
    largest = _largest(prepared, tuple({pair.tensor for pair in found}), images) if found else {}
    nodes = {node.name: node for node in model.graph.node}
    changed = sum(_equalise(model, nodes, pair, largest[pair.tensor]) for pair in found)
    onnx.save(model, target)
    return {"pairs": len(found), "equalised": changed}


def pairs(model: Any) -> list[Pair]:
    """The pairs of convolutions in the graph that can share their scales."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    found = []
    for first in model.graph.node:
        if not _is_layer(first, constants):
            continue
        tensor, bound = first.output[0], float("inf")
        while tensor not in outputs and len(readers.get(tensor, [])) == 1:
            (reader,) = readers[tensor]
            if _is_layer(reader, constants) and reader.input[0] == tensor:
                found.append(Pair(first=first.name, second=reader.name, tensor=tensor, bound=bound))
                break
            if reader.op_type not in PASSING or reader.input[0] != tensor:
                break
            if reader.op_type == "Clip":
                ends = _ends(reader, constants)
                if ends is None or ends[0] != 0.0:  # a scale moves every bound but zero
                    break
                bound = min(bound, ends[1])
            tensor = reader.output[0]
    return found


def _is_layer(node: Any, constants: dict[str, Any]) -> bool:
    return node.op_type == "Conv" and all(name in constants for name in node.input[1:])


def _ends(clip: Any, constants: dict[str, Any]) -> tuple[float, float] | None:
    from onnx import numpy_helper

    ends = [-np.inf, np.inf]
    for place, name in enumerate(clip.input[1:3]):
        if name and name not in constants:
            return None
        if name:
            ends[place] = float(numpy_helper.to_array(constants[name]))
    return ends[0], ends[1]


def _largest(path: Path, names: tuple[str, ...], images: np.ndarray) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of these tensors."""
    found: dict[str, np.ndarray] = {}
    for values in Outputs(path, names).of(images):
        for name in names:
            value = np.abs(values[name]).max(axis=(0, *range(2, values[name].ndim)))
            found[name] = np.maximum(found.get(name, value), value)
    return found


def scales(seen: np.ndarray, reading: np.ndarray, bound: float, *, depthwise: bool) -> np.ndarray:
    """The s_i of one pair, float64 `[channels]`; 1 where a channel must stay as it is."""
    seen, reading = seen.astype(np.float64), reading.astype(np.float64)
    used = (seen > 0) & (reading > 0)
    wanted = np.ones_like(seen)
    wanted[used] = seen[used] if depthwise else np.sqrt(seen[used] / reading[used])
    if not used.any():
        return wanted
    wanted[used] /= np.exp(np.log(wanted[used]).mean())
    if np.isfinite(bound):
        free = used & (seen < bound / MARGIN)
        target = bound / MARGIN
        if depthwise:
            wanted[free] = seen[free] / target
        # made smaller, it would only be farther from those at the bound
        wanted[free] = np.clip(wanted[free], seen[free] / target, 1.0)
        wanted[used & ~free] = 1.0
    wanted[~used] = 1.0
    return np.clip(wanted, 1 / MOST, MOST)


def _equalise(model: Any, nodes: dict[str, Any], pair: Pair, seen: np.ndarray) -> bool:
    from onnx import numpy_helper

    first, second = nodes[pair.first], nodes[pair.second]
    made, read = (numpy_helper.to_array(_own(model, node, 1)) for node in (first, second))
    groups = next((a.i for a in second.attribute if a.name == "group"), 1)
    channels = made.shape[0]
    reading = _by_input(np.abs(read).reshape(read.shape[0], read.shape[1], -1).max(2), groups, channels)
    found = scales(seen, reading, pair.bound, depthwise=groups == channels)
    if (found == 1).all():
        return False
    _put(model, first.input[1], made / found[:, None, None, None])
    if len(first.input) > 2:
        _put(model, first.input[2], numpy_helper.to_array(_own(model, first, 2)) / found)
    # rows of a group read the channels of that group
    per_row = np.repeat(found.reshape(groups, -1), read.shape[0] // groups, axis=0)
    _put(model, second.input[1], read * per_row[:, :, None, None])
    return True


def _by_input(largest: np.ndarray, groups: int, channels: int) -> np.ndarray:
    """The largest weight that reads each input channel, of `[rows, channels of a group]`."""
    return largest.reshape(groups, -1, channels // groups).max(1).reshape(-1)


def _own(model: Any, node: Any, place: int) -> Any:
    """The node's constant input, after it got a copy of its own where others read it too."""
    name = node.input[place]
    tensor = next(t for t in model.graph.initializer if t.name == name)
    if sum(list(other.input).count(name) for other in model.graph.node) > 1:
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copy.name = f"{name}.of.{node.name}"
        model.graph.initializer.append(copy)
        node.input[place] = copy.name
        return copy
    return tensor


def _put(model: Any, name: str, value: np.ndarray) -> None:
    from onnx import numpy_helper

    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
