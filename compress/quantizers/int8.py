"""Static int8: QuantizeLinear/DequantizeLinear pairs, per-channel weights, ranges from real train images.

    q = clip(round(x / scale) + zero_point)

Weights: int8, symmetric, one scale per output channel. Activations: uint8, asymmetric, one scale per tensor, min-max
over the calibration images. The engine is onnxruntime.quantization. U8S8 is the fast form on x86; on CPUs without VNNI
its products may saturate, which `reduce_range` (7-bit weights) avoids. The input's own normalisation stays in float:
images are exact in 8 bits, their normalised values are not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.config import knob
from compress.progress import counter

PRECISION = "int8"


@dataclass(frozen=True, kw_only=True)
class Config:
    per_channel: bool = knob(True, "one weight scale per output channel; per-tensor ruins depthwise layers")
    reduce_range: bool = knob(False, "7-bit weights, for x86 CPUs without VNNI")


class _Reader:
    """Feeds calibration images one small batch at a time, so that memory does not grow with their number."""

    def __init__(self, images: np.ndarray, batch_size: int = 16):
        self.images, self.batch_size, self.done = images, batch_size, 0
        self.show = counter("calibrating", "images")

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.show(self.done, len(self.images))
        chunk = self.images[self.done : self.done + self.batch_size]
        self.done += len(chunk)
        if len(chunk) == 0:
            return None
        return {"input": np.ascontiguousarray(chunk.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)}


def apply(config: Config, source: Path, target: Path, calibration: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Quantize the ONNX file `source` into `target`, calibrated on uint8 images `[N,H,W,C]`. Returns facts."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    consumers = [node for node in graph.node if "input" in node.input]
    normalisation = {node.name for node in consumers if node.op_type == "Mul"}
    normalisation |= {
        node.name for node in graph.node if node.op_type == "Add" and any(n.output[0] in node.input for n in consumers)
    }
    quantization.quantize_static(
        str(prepared),
        str(target),
        _Reader(calibration),  # type: ignore[arg-type]
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=sorted(normalisation),
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    source_model, quantized = onnx.load(source), onnx.load(target)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(source_model.metadata_props)
    onnx.save(quantized, target)
    return {
        "calibration_images": len(calibration),
        "float_nodes": sorted(normalisation),
        "quantize_nodes": sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node),
    }
