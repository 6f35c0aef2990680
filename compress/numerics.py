"""Weights that cost time or answers: numbers below the smallest normal one, and what is no number at all.

Many processors multiply subnormal numbers a hundred times slower than others; a pruned network whose BatchNorm was
folded may be full of them. `compress export` writes zeros in their place; a file from elsewhere is asked about here, in
the locked-up process of a conversion, of which this module is a kind of adapter.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# operator → the inputs that are no weights but divide by, or set the size of a level: zeros there would be no numbers
_DIVISORS = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Div": (1,), "Pow": (1,)}


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """The number of floating-point `weights` of the ONNX file `source`, of `subnormal` ones among them (in 32 and 64
    bits, in which processors compute), and of `not_finite` ones (NaN or infinite). Writes nothing.
    """
    import onnx

    found = {"weights": 0, "subnormal": 0, "not_finite": 0}
    for values in _weights(onnx.load(source).graph):
        found["weights"] += values.size
        if values.dtype in (np.float32, np.float64):
            size = np.abs(values)
            found["subnormal"] += int(((size > 0) & (size < np.finfo(values.dtype).tiny)).sum())
        found["not_finite"] += int((~np.isfinite(values.astype(np.float64))).sum())
    return found


def _weights(graph: Any) -> Iterator[np.ndarray]:
    from onnx import TensorProto, numpy_helper

    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    aside = {
        node.input[place] for node in graph.node for place in _DIVISORS.get(node.op_type, ()) if place < len(node.input)
    }
    constants = [(node.output[0], a.t) for node in graph.node if node.op_type == "Constant" for a in node.attribute]
    for name, tensor in [*((each.name, each) for each in graph.initializer), *constants]:
        if tensor.data_type in kinds and name not in aside:
            yield numpy_helper.to_array(tensor)


def sentences(file: str, found: dict[str, Any]) -> list[str]:
    """What a report warns of."""
    said = []
    if found["subnormal"]:
        said.append(
            f"{file}: {found['subnormal']:,} of {found['weights']:,} weights are subnormal numbers, which many "
            "processors multiply far slower than others: make them zero before exporting, as `compress export` does"
        )
    if found["not_finite"]:
        said.append(f"{file}: {found['not_finite']:,} of {found['weights']:,} weights are NaN or infinite")
    return said
