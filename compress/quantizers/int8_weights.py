"""Weights only: int8 with a scale per output channel, computed in float. For the size of the file, not for speed.

    w ≈ scale · q,   scale = max |w| / 127 of each output channel,   q in −127 … 127

Each kernel and matrix is stored in 8 bits and read through DequantizeLinear; activations, biases and every operator
stay float32, so nothing has to be calibrated.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress import qdq

PRECISION = "int8_weights"
CALIBRATES = False
FOR_BYTES = True
LEVELS = 127


def apply(config: Any, source: Path, target: Path, calibration: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Write the ONNX file `source` with 8-bit weights to `target`; `calibration` is not looked at. Returns facts."""
    import onnx
    from onnx import helper, numpy_helper

    prepared = scratch / "prepared.onnx"
    qdq.prepare(source, prepared)
    model = onnx.load(prepared)
    axes = _channel_axes(model)
    nodes = []
    for tensor in [t for t in model.graph.initializer if t.name in axes]:
        value, axis = numpy_helper.to_array(tensor), axes[tensor.name]
        others = tuple(i for i in range(value.ndim) if i != axis)
        scale = np.maximum(np.abs(value).max(others), np.finfo(np.float32).tiny * LEVELS) / LEVELS
        shape = [-1 if i == axis else 1 for i in range(value.ndim)]
        levels = np.rint(value / scale.reshape(shape)).astype(np.int8)
        names = [f"{tensor.name}.{part}" for part in ("int8", "scale", "zero")]
        model.graph.initializer.remove(tensor)
        arrays = (levels, scale.astype(np.float32), np.zeros(len(scale), np.int8))
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True))
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], name=f"{tensor.name}.float", axis=axis))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    qdq.finish(model, target, PRECISION)
    return {"calibration_images": 0, "quantized_weights": len(nodes)}


def _channel_axes(model: Any) -> dict[str, int]:
    """The axis of output channels of each weight that layers read, and only layers that agree on it."""
    constants = {t.name: len(t.dims) for t in model.graph.initializer}
    axes: dict[str, int] = {}
    refused: set[str] = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if constants.get(name, 0) < 2:
                continue
            axis = _axis(node, place, constants[name])
            if axis is None or axes.setdefault(name, axis) != axis:
                refused.add(name)
    return {name: axis for name, axis in axes.items() if name not in refused}


def _axis(node: Any, place: int, dimensions: int) -> int | None:
    if node.op_type == "Conv" and place == 1:
        return 0
    if node.op_type == "Gemm" and place == 1:
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "MatMul" and place == 1:
        return dimensions - 1
    return None
