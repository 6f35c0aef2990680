"""Half precision: weights and activations in float16, half of the bytes; for GPUs and phones, hardly for CPUs.

onnxruntime's own converter. Input and output stay float32, and so do the images' normalisation and what overflows
float16 in the converter's list. A weight beyond float16 is an error, not an infinity.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress import qdq
from compress.errors import CompressError

PRECISION = "float16"
CALIBRATES = False
FOR_BYTES = True


def apply(config: Any, source: Path, target: Path, calibration: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Write the ONNX file `source` in half precision to `target`; `calibration` is not looked at. Returns facts."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    prepared = scratch / "prepared.onnx"
    qdq.prepare(source, prepared)
    model = onnx.load(prepared)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if not largest <= float(np.finfo(np.float16).max):
                raise CompressError(
                    f"the weight {tensor.name} holds {largest:g}, which float16 cannot",
                    code="E-FLOAT16-RANGE",
                    hint="take --quantize int8",
                )
    kept = qdq.normalisation(prepared)
    halved = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept))
    sorted_ = ONNXModel(halved)
    sorted_.topological_sort()
    qdq.finish(sorted_.model, target, PRECISION)
    return {"calibration_images": 0, "float_nodes": sorted(kept)}
