"""Write QuantizeLinear/DequantizeLinear pairs into a float ONNX file, by onnxruntime.quantization.

    q = clip(round(x / scale) + zero_point)

Ranges of activations are given (see `calibrate`); weights are read from the file. The images' own normalisation stays
in float: images are exact in 8 bits, their normalised values are not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.calibrate import Ranges
from compress.errors import unknown

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How numbers become integers. Activations are unsigned with a zero point unless `symmetric`: then signed, zero
    point 0. Weights are int8, symmetric, −127 to 127, or uint8 with a zero point; `reduce_range`: one bit less.
    """

    per_channel: bool = True
    weights: str = "int8"
    reduce_range: bool = False
    symmetric: bool = False


def prepare(source: Path, target: Path) -> None:
    """The file with constants folded, shapes inferred and every node named: what everything here works on."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    model = onnx.load(target)
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type.lower()}_{number}"
            node.name = name if name not in taken else f"{name}_{len(taken)}"
            taken.add(node.name)
    onnx.save(model, target)


def normalisation(path: Path) -> tuple[str, ...]:
    """Names of the nodes that scale and shift the images: elementwise ones with a constant, before the first layer."""
    import onnx

    graph = onnx.load(path).graph
    constants, value = {t.name for t in graph.initializer}, graph.input[0].name
    names: list[str] = []
    while True:
        readers = [node for node in graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("Mul", "Add", "Sub", "Div"):
            return tuple(names)
        if not set(readers[0].input) - {value} <= constants:
            return tuple(names)
        names.append(readers[0].name)
        value = readers[0].output[0]


def layers(path: Path) -> dict[str, str]:
    """What each layer is called, in the order of the graph, and the name of its node.

    A layer is called as its weight is, which is the module's path in files of this project; as its node is, where
    several read the same weight.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {t.name for t in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in constants] if node.op_type in WEIGHTED else []
        if weights:
            label = weights[0].removesuffix(".weight")
            found[label if label not in found else node.name] = node.name
    return found


def write(
    prepared: Path, target: Path, ranges: Ranges, scheme: Scheme, *, keep_float: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Quantize the `prepared` file into `target`; layers named in `keep_float` (see `layers`) stay as they are.

    Returns facts. Raises UsageError for a name that no layer has.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = onnx.load(prepared)
    named = layers(prepared)
    for label in keep_float:
        if label not in named:
            raise unknown("layer", label, list(named), where=str(prepared.name))
    left_out = [*normalisation(prepared), *(named[label] for label in keep_float)]
    known = {name: tuple(np.array(end, np.float32) for end in found) for name, found in ranges.items()}
    quantizer = QDQQuantizer(
        model,
        scheme.per_channel,
        scheme.reduce_range,
        QuantType.QUInt8 if scheme.weights == "uint8" else QuantType.QInt8,
        QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, known),
        [],
        left_out,
        list({*QDQRegistry, *QLinearOpsRegistry}),
        {"ActivationSymmetric": scheme.symmetric},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    # what the library notes for itself is not of the file
    notes = [entry for entry in quantized.metadata_props if entry.key.startswith("onnx.")]
    for entry in notes:
        quantized.metadata_props.remove(entry)
    quantized.producer_name = "onnx.quantize"
    onnx.save(quantized, target)
    return {
        "float_nodes": sorted(left_out),
        "quantize_nodes": sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node),
    }
