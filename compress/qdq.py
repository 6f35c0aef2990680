"""Write QuantizeLinear/DequantizeLinear pairs into a float ONNX file, by onnxruntime.quantization.

    q = clip(round(x / scale) + zero_point)

Ranges of activations are given (see `calibrate`); weights are read from the file. The images' own normalisation stays
in float: images are exact in 8 bits, their normalised values are not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.calibrate import Ranges, image_input
from compress.errors import unknown

PRECISION_KEY = "compress.precision"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How numbers become integers. Activations are uint8 or int8, with a zero point unless `symmetric`. Weights are
    int8, symmetric, −127 to 127, or uint8 with a zero point; `reduce_range`: one bit less.
    """

    per_channel: bool = True
    weights: str = "int8"
    reduce_range: bool = False
    activations: str = "uint8"
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
    constants, value = {t.name for t in graph.initializer}, image_input(graph).name
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

    A layer is called as its weight is, which is the module's path in files of this project; by its number, where
    several read the same weight or the name could not be written in a list.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {t.name for t in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in constants] if node.op_type in WEIGHTED else []
        if weights:
            label = weights[0].removesuffix(".weight")
            plain = label not in found and not set(label) & set(",+ \t\n")
            found[label if plain else f"layer-{len(found) + 1}"] = node.name
    return found


def write(
    prepared: Path, target: Path, ranges: Ranges, scheme: Scheme, *, keep_float: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Quantize the `prepared` file into `target`; layers named in `keep_float` (see `layers`) stay as they are.

    Returns facts. Raises UsageError for a name that no layer has.
    """
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
        QuantType.QInt8 if scheme.activations == "int8" else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, known),
        [],
        left_out,
        list({*QDQRegistry, *QLinearOpsRegistry}),
        {"ActivationSymmetric": scheme.symmetric},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    quantized.producer_name = "onnx.quantize"
    _guard(quantized, {named[label] for label in keep_float})
    _drop_zeros(quantized)
    finish(quantized, target, "int8")
    return {
        "float_nodes": sorted(left_out),
        "quantize_nodes": sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node),
    }


# beyond any float that a layer meets, so that it clips nothing; at the ends of float32 a graph may drop it
_LARGEST = 3e38


def _guard(model: Any, names: set[str]) -> None:
    """Keeps these layers in float: where Dequantize, layer, Quantize follow each other, ONNX Runtime quantizes the
    layer's weight after all, by tensor and in full range. A Clip that clips nothing parts them.
    """
    from onnx import helper, numpy_helper

    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    ends = [numpy_helper.from_array(np.array(sign * _LARGEST, np.float32), f"guard.{sign:+d}") for sign in (-1, 1)]
    guarded = []
    for node in list(model.graph.node):
        if node.name in names and node.input[0] in dequantized:
            parted = f"{node.name}.guarded"
            guarded.append(
                helper.make_node("Clip", [node.input[0], *(t.name for t in ends)], [parted], f"{node.name}.guard")
            )
            model.graph.node.insert(list(model.graph.node).index(node), guarded[-1])
            node.input[0] = parted
    if guarded:
        model.graph.initializer.extend(ends)


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A quantized Conv, Gemm or MatMul: its node, its integer weight with scale and zero point along `axis`, from `low`
    to `high`; its int32 bias (None without one, or where others read it) and the scale of that.
    """

    node: Any
    weight: Any
    scale: np.ndarray
    zero: np.ndarray
    axis: int
    low: int
    high: int
    bias: Any
    bias_scale: np.ndarray | None


def quantized_layers(model: Any) -> list[QuantizedLayer]:
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
        scale, *zero = (numpy_helper.to_array(constants[name]) for name in maker.input[1:3])
        return constants[maker.input[0]], scale, (zero[0] if zero else np.zeros(1, np.int8))

    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight, scale, zero = stored(node, 1)
            bias, bias_scale, _ = stored(node, 2)
            if weight is None:
                continue
            low, high = _limits(numpy_helper.to_array(weight))
            found.append(
                QuantizedLayer(
                    node=node, weight=weight, scale=scale, zero=zero, low=low, high=high,
                    axis=0 if node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute) else 1,
                    bias=bias, bias_scale=bias_scale,
                )
            )  # fmt: skip
    return found


def _limits(levels: np.ndarray) -> tuple[int, int]:
    """The range of integers that a weight was rounded to. Of each channel the largest takes its end, so that half of
    the range means 7 bits.
    """
    if levels.dtype == np.uint8:
        return 0, 127 if levels.max() <= 127 else 255
    most = 64 if np.abs(levels.astype(np.int16)).max() <= 64 else 127
    return -most, most


def finish(model: Any, target: Path, precision: str) -> None:
    """Write the model to `target`, its precision among its metadata, and nothing of what libraries noted there."""
    import onnx

    for entry in [e for e in model.metadata_props if e.key.startswith("onnx.") or e.key == PRECISION_KEY]:
        model.metadata_props.remove(entry)
    model.metadata_props.add(key=PRECISION_KEY, value=precision)
    del model.graph.value_info[:]  # every reader infers shapes by itself
    onnx.save(model, target)


def _drop_zeros(model: Any) -> None:
    """Leave out the zero points of convolutions' weights and biases, which are zero unless given: one number a channel
    each. (Those of a Gemm stay: onnxruntime makes no int8 kernel of one without.)
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {name: node.op_type for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in constants:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]])
        if readers.get(node.output[0]) == "Conv" and zero.dtype in (np.int8, np.int32) and not zero.any():
            del node.input[2]
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in constants.values() if tensor.name not in read]:
        model.graph.initializer.remove(tensor)


def in_float(path: Path) -> dict[str, int]:
    """The operators that stayed in float, and how many of each, of a file that was written here: those that read no
    dequantized number, and kinds that have no int8 kernel, whatever they read.
    """
    import onnx
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    kernels = {*QDQRegistry, *QLinearOpsRegistry}
    graph = onnx.load(path).graph
    dequantized = {n for node in graph.node if node.op_type == "DequantizeLinear" for n in node.output}
    constants = {t.name for t in graph.initializer}
    kinds = [
        node.op_type
        for node in graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        and not (node.op_type in kernels and any(name in dequantized for name in node.input))
        and not node.name.endswith(".guard")
        and set(node.input) - constants
    ]
    names, counts = np.unique(kinds, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


INT8_KERNELS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def kernels(path: Path, scratch: Path) -> dict[str, int]:
    """What ONNX Runtime makes of a file on this CPU: `int8` and `float` layers, and `conversions`, the Quantize and
    Dequantize nodes that its fusion has left.
    """
    import onnx
    import onnxruntime

    optimised = scratch / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3  # it warns that such a file belongs to one machine, which is what it is here for
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(optimised).graph.node]
    return {
        "int8": sum(kind in INT8_KERNELS for kind in kinds),
        "float": sum(kind in FLOAT_KERNELS for kind in kinds),
        "conversions": sum(kind in ("QuantizeLinear", "DequantizeLinear") for kind in kinds),
    }


def notes(path: Path, scratch: Path) -> list[str]:
    """What a reader of the report should know of an int8 file: which kernels run it, and what stayed in float."""
    found = kernels(path, scratch)
    said = [
        f"{found['int8']} of {found['int8'] + found['float']} layers run as int8 kernels in ort_cpu, with "
        f"{found['conversions']} conversions between int8 and float"
    ]
    kinds = ", ".join(f"{count} {kind}" for kind, count in in_float(path).items())
    return [*said, f"stayed in float: {kinds}"] if kinds else said
