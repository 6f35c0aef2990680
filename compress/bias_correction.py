"""Bias correction: rounding weights and activations moves the mean of a layer's outputs; its bias takes that back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the means
measured on calibration images (their appendix D): layer by layer in the order of the graph, each seeing what the
corrections before it have left,

    b ← b + E[y_float] − E[y_quantized]        for each channel, y before the activation

The quantized file is run in float, as its Quantize and Dequantize pairs say: no kernel's own saturation is corrected.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.calibrate import Outputs
from compress.progress import counter

IMAGES = 128  # a mean over these and over all places of a map


def correct(prepared: Path, quantized: Path, images: np.ndarray) -> dict[str, Any]:
    """Rewrite the int32 biases of the file `quantized`, which was written from the float file `prepared`, by the means
    over (at most `IMAGES` of) the uint8 images `[N,H,W,C]`. Returns facts.
    """
    import onnx

    images = images[:IMAGES]
    model, original = onnx.load(quantized), onnx.load(prepared)
    float_nodes = {node.name: node.output[0] for node in original.graph.node}
    due = [layer for layer in layers_of(model) if layer.bias is not None and layer.node.name in float_nodes]
    expected = _means(Outputs(prepared, tuple(float_nodes[layer.node.name] for layer in due)), images)
    show, moved = counter("correcting", "biases"), 0
    for number, layer in enumerate(due):
        name = layer.node.output[0]
        got = _means(Outputs(model, (name,)), images)[name]
        moved += _add(layer.bias, np.rint((expected[float_nodes[layer.node.name]] - got) / layer.bias_scale))
        show(number + 1, len(due))
    onnx.save(model, quantized)
    return {"corrected_biases": moved}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A quantized Conv or Gemm: its node, its integer weight with scale and zero point, its int32 bias (None without
    one, or where others read it) and the scale of that.
    """

    node: Any
    weight: Any
    scale: np.ndarray
    zero: np.ndarray
    bias: Any
    bias_scale: np.ndarray | None


def layers_of(model: Any) -> list[Layer]:
    """The layers of a QDQ graph whose weights are integers that nothing else reads, in the order of the graph."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    read = [name for node in model.graph.node for name in node.input]

    def stored(node: Any, place: int) -> tuple[Any, ...]:
        maker = makers.get(node.input[place]) if len(node.input) > place else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in constants:
            return None, None, None
        if read.count(maker.output[0]) > 1 or read.count(maker.input[0]) > 1:
            return None, None, None
        return constants[maker.input[0]], *(numpy_helper.to_array(constants[name]) for name in maker.input[1:3])

    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight, scale, zero = stored(node, 1)
            bias, bias_scale, _ = stored(node, 2)
            if weight is not None:
                found.append(Layer(node=node, weight=weight, scale=scale, zero=zero, bias=bias, bias_scale=bias_scale))
    return found


def _means(outputs: Outputs, images: np.ndarray) -> dict[str, np.ndarray]:
    """The mean of each named tensor's channels, float64."""
    sums: dict[str, np.ndarray] = {}
    for values in outputs.of(images):
        for name in outputs.names:
            value = values[name].astype(np.float64)
            mean = value.mean(axis=tuple(range(2, value.ndim))).sum(0) if value.ndim > 2 else value.sum(0)
            sums[name] = sums.get(name, 0.0) + mean
    return {name: total / len(images) for name, total in sums.items()}


def _add(tensor: Any, steps: np.ndarray) -> bool:
    from onnx import numpy_helper

    limits = np.iinfo(np.int32)
    wanted = np.clip(numpy_helper.to_array(tensor).astype(np.float64) + steps, limits.min, limits.max)
    tensor.CopyFrom(numpy_helper.from_array(wanted.astype(np.int32), tensor.name))
    return bool(steps.any())
