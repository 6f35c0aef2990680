"""Bias correction: rounding weights and activations moves the mean of a layer's outputs; its bias takes that back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the means
measured on calibration images (their appendix D): layer by layer in the order of the graph, each seeing what the
corrections before it have left,

    b ← b + E[y_float] − E[y_quantized]        for each channel, y before the activation

The quantized file is run in float, as its Quantize and Dequantize pairs say: no kernel's own saturation is corrected.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress import qdq
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
    due = [layer for layer in qdq.quantized_layers(model) if layer.bias is not None and layer.node.name in float_nodes]
    expected = _means(Outputs(prepared, tuple(float_nodes[layer.node.name] for layer in due)), images)
    show, moved = counter("correcting", "biases"), 0
    for number, layer in enumerate(due):
        name = layer.node.output[0]
        got = _means(Outputs(model, (name,)), images)[name]
        moved += _add(layer.bias, np.rint((expected[float_nodes[layer.node.name]] - got) / layer.bias_scale))
        show(number + 1, len(due))
    onnx.save(model, quantized)
    return {"corrected_biases": moved}


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
