"""Weights that cost time or answers: numbers below the smallest normal one, and what is no number at all.

Many processors multiply subnormal numbers a hundred times slower than others; a pruned network whose BatchNorm was
folded may be full of them. `compress export` writes zeros in their place; a file from elsewhere is asked about here, in
the locked-up process of a conversion, of which this module is a kind of adapter.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """The number of float32 and float64 `weights` of the ONNX file `source`, of `subnormal` ones among them, and of
    `not_finite` ones (NaN or infinite). Writes nothing.
    """
    import onnx

    found = {"weights": 0, "subnormal": 0, "not_finite": 0}
    for values in _weights(onnx.load(source).graph):
        size = np.abs(values)
        found["weights"] += values.size
        found["subnormal"] += int(((size > 0) & (size < np.finfo(values.dtype).tiny)).sum())
        found["not_finite"] += int((~np.isfinite(values)).sum())
    return found


def _weights(graph: Any) -> Iterator[np.ndarray]:
    from onnx import TensorProto, numpy_helper

    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value")
    for tensor in (*graph.initializer, *constants):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
            yield numpy_helper.to_array(tensor)


def sentences(file: str, found: dict[str, Any]) -> list[str]:
    """What a report warns of."""
    said = []
    if found["subnormal"]:
        said.append(
            f"{file}: {found['subnormal']:,} of {found['weights']:,} weights are subnormal numbers, which many "
            "processors multiply far slower than others; zeros in their place change no answer: `compress export` "
            "writes these"
        )
    if found["not_finite"]:
        said.append(f"{file}: {found['not_finite']:,} of {found['weights']:,} weights are NaN or infinite")
    return said
