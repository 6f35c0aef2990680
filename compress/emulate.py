"""int8 as another CPU computes it: the logits of a QDQ file where sums of two products are clipped, or where none are.

x86 CPUs without VNNI multiply unsigned activations by signed weights with `vpmaddubsw`, which adds two neighbouring
products and clips the sum to 16 bits. onnxruntime's kernels (MLAS) take neighbours along the reduction in the order
kernel row, kernel column, channel, in matrix products and in convolutions but for depthwise ones. Signed activations it
makes unsigned, by adding 128, so they clip as well. The sum of a pair can
leave 16 bits only where both weights have one sign and |w₁| + |w₂| > 32767 / 255; the exact sums are made first (in
float32, as the file's pairs say), and what clipping takes from those pairs is then taken from them, in integers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress import onnx_torch, qdq
from compress.calibrate import image_input
from compress.progress import counter
from compress.worker import to_inputs

BATCH = 16
LEAST, MOST = -(2**15), 2**15 - 1
LARGEST_LEVEL = 255  # of an unsigned activation
SHIFT = 128  # from a signed level to the unsigned one that is computed with


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer whose products may saturate: levels of its weight `[G,O,K]` (K even, in the order of the reduction), the
    step of its sums `[G·O]`, scale and zero point of its input, and for each group the pairs that are at risk.
    """

    levels: Tensor
    step: Tensor
    scale: float
    zero: float
    risks: tuple[tuple[int, int, Tensor], ...]  # (group, pair, its outputs)


class Kernels(onnx_torch.Graph):
    """The graph of a QDQ `model` in the arithmetic of a CPU whose sums of two products are clipped."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.layers = _layers(model)
        self.clipped = 0  # pairs of products so far

    def run(self, node: Any, inputs: list[Any]) -> tuple[Tensor, ...]:
        outputs = super().run(node, inputs)
        layer = self.layers.get(node.names[0])
        if layer is None:
            return outputs
        levels = (inputs[0] / layer.scale).round() + layer.zero
        columns = _columns(node, levels, layer.zero, tuple(inputs[1].shape[2:]))
        lost = self._lost(layer, columns)
        if node.kind == "Conv":
            lost = lost.reshape(-1, len(outputs[0]), *outputs[0].shape[2:]).movedim(0, 1)
        else:
            lost = lost.T.reshape(outputs[0].shape)
        return (outputs[0] + lost,)

    def _lost(self, layer: _Layer, columns: Tensor) -> Tensor:
        """What clipping takes from the outputs `[O,N·…]`, for the levels `[G,K,N,…]` that each of these reduces."""
        groups, per_group, _ = layer.levels.shape
        lost = torch.zeros(groups * per_group, columns[0, 0].numel())
        for group, pair, which in layer.risks:
            weights = layer.levels[group, which, 2 * pair : 2 * pair + 2]
            sums = weights @ columns[group, 2 * pair : 2 * pair + 2].flatten(1)
            clipped = sums.clamp(LEAST, MOST) - sums
            self.clipped += int(clipped.count_nonzero())
            lost[group * per_group + which] += clipped
        return lost * layer.step[:, None]


def _columns(node: Any, levels: Tensor, zero: float, kernel: tuple[int, ...]) -> Tensor:
    """The levels `[G,K,N,…]` behind each output of a layer, K in the order of the reduction and even."""
    if node.kind != "Conv":
        columns = levels.reshape(-1, levels.shape[-1]).T[None]
    else:
        strides, dilations = (node.attributes.get(name, [1, 1]) for name in ("strides", "dilations"))
        groups = node.attributes.get("group", 1)
        padded = onnx_torch.window(node.attributes, levels, zero)
        found = F.unfold(padded, kernel, dilation=dilations, stride=strides)
        places = kernel[0] * kernel[1]
        found = found.reshape(len(levels), groups, -1, places, found.shape[-1])
        columns = found.permute(1, 3, 2, 0, 4).reshape(groups, -1, len(levels), found.shape[-1])
    odd = columns.shape[1] % 2
    return torch.cat([columns, torch.zeros_like(columns[:, :1])], 1) if odd else columns


def _layers(model: Any) -> dict[str, _Layer]:
    """The layers whose products may saturate, by the name of their output."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for quantized in qdq.quantized_layers(model):
        node, levels = quantized.node, numpy_helper.to_array(quantized.weight)
        source = makers.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear" or levels.dtype != np.int8:
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in source.input[1:3])
        if zero.dtype not in (np.uint8, np.int8):
            continue
        attributes = {a.name: a for a in node.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        if levels.ndim == 4:
            if levels.shape[1] == 1 and len(levels) == groups:  # depthwise kernels widen before they multiply
                continue
            levels = levels.transpose(0, 2, 3, 1).reshape(groups, len(levels) // groups, -1)
        else:
            levels = (levels if quantized.axis == 0 else levels.T)[None]
        if levels.shape[2] % 2:
            levels = np.pad(levels, ((0, 0), (0, 0), (0, 1)))
        layer = _Layer(
            levels=torch.from_numpy(levels.astype(np.float32)),
            step=torch.from_numpy(
                np.broadcast_to(float(scale) * quantized.scale, levels[..., 0].size).astype(np.float32)
            ),
            scale=float(scale),
            zero=float(zero) + (SHIFT if zero.dtype == np.int8 else 0),
            risks=_risks(levels.astype(np.int64)),
        )
        if layer.risks:
            found[node.output[0]] = layer
    return found


def _risks(levels: np.ndarray) -> tuple[tuple[int, int, Tensor], ...]:
    """The pairs of weights `[G,O,K]` whose products can together leave 16 bits: (group, pair, outputs)."""
    first, second = levels[..., 0::2], levels[..., 1::2]
    at_risk = (first * second > 0) & (np.abs(first) + np.abs(second) > MOST // LARGEST_LEVEL)
    return tuple(
        (int(group), int(pair), torch.from_numpy(np.flatnonzero(at_risk[group, :, pair])))
        for group, pair in np.argwhere(at_risk.any(1))
    )


def has_signed_activations(model: Any) -> bool:
    """Whether activations are int8: onnxruntime makes them unsigned on x86, and may leave some of their layers in float
    there.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    steps = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    return any(numpy_helper.to_array(constants[node.input[2]]).dtype == np.int8 for node in steps)


def can_saturate(model: Any) -> bool:
    """Whether a QDQ `model` has weights whose products with activations could leave 16 bits."""
    return bool(_layers(model))


def answers(model: Any, images: np.ndarray, *, saturates: bool) -> tuple[np.ndarray, int]:
    """Logits `[N,K]` of a QDQ `model` on uint8 images `[N,H,W,C]`, and how many pairs of products were clipped."""
    graph = Kernels(model) if saturates else onnx_torch.Graph(model)
    show, parts = counter("emulating", "images"), []
    fixed = image_input(model.graph).type.tensor_type.shape.dim[0].dim_value
    step = fixed or BATCH
    with torch.inference_mode():
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            if fixed:  # full batches, the last image repeated
                chunk = images[np.minimum(np.arange(start, start + step), len(images) - 1)]
            parts.append(graph(torch.from_numpy(to_inputs(chunk))).numpy())
            show(min(start + step, len(images)), len(images))
    return np.concatenate(parts)[: len(images)], graph.clipped if isinstance(graph, Kernels) else 0
