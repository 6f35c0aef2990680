"""Rewrite the ncnn files of a float twin into ncnn's int8 form, with the integers and ranges of the QDQ file itself.

Nothing is calibrated and no image is read. What ncnn reads was taken from the sources in its sdist 1.0.20261020:
`src/modelbin.cpp` (tag, alignment), `load_model` of `src/layer/{convolution,convolutiondepthwise,innerproduct}.cpp`
(order of the arrays), `src/layer/quantize.cpp` (rounds half away from zero and clips to −127…127). Two facts cost
accuracy against the QDQ file: ncnn has no zero points, so a ReLU's output has 7 bits where uint8 has 8; and whatever
is no weighted layer (adds, pooling) is computed in float.

**Six bits.** ncnn runs a 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3) in integers: all of it in int32, or in
int16 without overflow, and what comes out is 576 times the sum before it is divided (`convolution_3x3_winograd_int8.h`
of x86 and of arm). Sums in between may wrap around, since only the last must fit: a channel whose sum can pass
(2^31 − 1) / 576 = 3,728,270 gives wrong numbers (measured: 3,629,025 is exact, 3,774,186 is not). ncnn's own tool
(`ncnn2table`) therefore gives all such layers weights of ±31. Here only those channels get them whose integers can pass
that limit by some input; the others keep ours, which is exact, and ARM CPUs with the dot product instructions take no
Winograd at all. ±31 lowers the largest sum fourfold, which is enough for most layers and a guarantee for none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputRejected
from compress.float_twin import dequantize, quantize_range

_INT8_TAG = b"\x38\x4b\x0d\x00"  # 0x000D4B38, little-endian
_FLOAT_TAG = b"\x00\x00\x00\x00"
# the keys of a layer's parameters: its output channels, whether it has a bias, the number of its weights
_KEYS = {"Convolution": ("0", "5", "6"), "ConvolutionDepthWise": ("0", "5", "6"), "InnerProduct": ("0", "1", "2")}
_SCALE_TERM = {"Convolution": "2", "ConvolutionDepthWise": "1", "InnerProduct": "2"}
_LARGEST = 127
_SIX_BITS = 31
_WINOGRAD_LIMIT = (2**31 - 1) // 576
_HINT = "make both ncnn files from float_twin of this very file, by pnnx with fp16=0"


@dataclass(frozen=True, kw_only=True)
class QdqLayer:
    """A layer with integer weights and integer input: `levels` int64 `[O,...]` with their zero point taken off, their
    `scale` float32 `[O]`, the same as float32 `weights`, its `bias` float32 or None, and the range of its input.
    """

    name: str
    levels: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray | None
    low: float
    high: float

    @property
    def input_scale(self) -> np.float32:
        """What ncnn multiplies the input by before it rounds."""
        return np.float32(_LARGEST / max(abs(self.low), abs(self.high)))


@dataclass(frozen=True, kw_only=True)
class NcnnLayer:
    """A line of a .param file, its parameters, and what the .bin file holds of it: raw bytes, and apart from them the
    float32 weights and bias of a weighted layer.
    """

    line: str
    kind: str
    name: str
    parameters: dict[str, str]
    raw: bytes
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None

    def number(self, key: str, default: int = 0) -> int:
        return int(self.parameters.get(key, default))


def quantize(model: Any, param: Path, weights: Path) -> dict[str, Any]:
    """Rewrite `param` and `weights`, which pnnx (`fp16=0`) made of `float_twin(model)`, in place into ncnn's int8 form.

    Layers are recognised by their weights. What `model` leaves in float stays so, and a grouped convolution other than
    depthwise does too, since ncnn has one scale for each of its groups. Returns `int8_layers`, `float_layers` and
    `six_bit_layers` (int8 ones with at least one channel of six bits). Raises InputRejected, and changes nothing, for
    a layer on either side without a counterpart or with several that differ, and for files that ncnn cannot run.
    """
    quantized, plain = qdq_layers(model)
    layers = read(param, weights)
    known: dict[bytes, list[QdqLayer]] = {}
    for layer in quantized:
        known.setdefault(layer.weights.tobytes(), []).append(layer)
    left, lines, parts = set(known), [], []
    facts = {"int8_layers": 0, "float_layers": 0, "six_bit_layers": 0}
    for one in layers:
        found = None if one.weights is None else _counterpart(one, known, plain)
        if found is not None:
            left.discard(found.weights.tobytes())
        if found is None or _grouped(one):
            facts["float_layers"] += one.weights is not None
            lines.append(one.line)
            parts.append(one.raw)
            continue
        data, six = _int8(one, found)
        facts["int8_layers"] += 1
        facts["six_bit_layers"] += six
        lines.append(f"{one.line} 8={_SCALE_TERM[one.kind]}")
        parts.append(data)
    if left:
        names = ", ".join(layer.name for key in left for layer in known[key])
        raise InputRejected(f"no layer of {param.name} has the weights of {names}", code="E-NCNN-FORM", hint=_HINT)
    head = param.read_text().splitlines()[:2]
    param.write_text("\n".join([*head, *lines]) + "\n")
    weights.write_bytes(b"".join(parts))
    return facts


def qdq_layers(model: Any) -> tuple[list[QdqLayer], set[bytes]]:
    """The layers of a QDQ file that run in integers, and the float32 weights `[O,...]`, as bytes, of those that do not.

    A layer whose weights only are integers counts among the latter. Raises InputRejected for scales along another axis
    than the outputs'.
    """
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found, plain = [], set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        outputs_first = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        source, bias = (_made_of(node, place, constants, makers) for place in (1, 2))
        if source is None:  # a product of two activations
            continue
        values = np.ascontiguousarray(source if outputs_first else source.T)
        maker, asked = makers.get(node.input[1]), _range(node, constants, makers)
        if maker is None or asked is None:
            plain.add(values.tobytes())
            continue
        levels, scale = _levels(maker, constants, axis=0 if outputs_first else 1)
        levels = np.ascontiguousarray(levels if outputs_first else levels.T)
        found.append(
            QdqLayer(name=node.name, levels=levels, scale=scale, weights=values, bias=bias, low=asked[0], high=asked[1])
        )
    return found, plain


def _made_of(node: Any, place: int, constants: dict[str, Any], makers: dict[str, Any]) -> np.ndarray | None:
    """The float32 constant that `node` reads at `place`, dequantized if need be; None without one."""
    name = node.input[place] if len(node.input) > place else ""
    maker = makers.get(name)
    if name in constants:
        return np.asarray(constants[name], np.float32)
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in constants:
        return dequantize(maker, constants)
    return None


def _range(node: Any, constants: dict[str, Any], makers: dict[str, Any]) -> tuple[float, float] | None:
    """The range of the QuantizeLinear in front of `node`; None without one."""
    pair = makers.get(node.input[0])
    if pair is None or pair.op_type != "DequantizeLinear":
        return None
    quantizer = makers.get(pair.input[0])
    if quantizer is None or quantizer.op_type != "QuantizeLinear":
        return None
    return quantize_range(quantizer, constants)


def _levels(maker: Any, constants: dict[str, Any], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(the integers int64 of a DequantizeLinear's constant less their zero point, their scale float32 an output)."""
    levels, scale = constants[maker.input[0]].astype(np.int64), constants[maker.input[1]].astype(np.float32)
    zero = constants[maker.input[2]].astype(np.int64) if len(maker.input) > 2 else np.zeros((), np.int64)
    along = next((a.i for a in maker.attribute if a.name == "axis"), 1) % levels.ndim
    if scale.size > 1 and along != axis:
        raise InputRejected(
            f"{maker.name} has scales along axis {along}", code="E-QDQ-FORM", hint="quantize along the output channels"
        )
    shape = [1] * levels.ndim
    shape[axis] = -1
    return levels - zero.reshape(shape), np.broadcast_to(scale.reshape(-1), levels.shape[axis]).copy()


def read(param: Path, weights: Path) -> list[NcnnLayer]:
    """The layers of a float ncnn network with what `weights` holds of each.

    Raises InputRejected for a file that is not float32, or that holds what is not known here.
    """
    lines, data = param.read_text().splitlines(), weights.read_bytes()
    if len(lines) < 2 or lines[0].strip() != "7767517":
        raise InputRejected(f"{param} is no ncnn .param file", code="E-NCNN-FORM", hint=_HINT)
    layers, start = [], 0
    for line in (text for text in lines[2:] if text.strip()):
        kind, name, inputs, outputs, *rest = line.split()
        parameters = dict(entry.split("=", 1) for entry in rest[int(inputs) + int(outputs) :])
        if "." in kind:
            raise InputRejected(
                f"pnnx left {kind} ({name}), which ncnn has not",
                code="E-NCNN-FORM",
                hint="export the network without it",
            )
        one = NcnnLayer(line=line.rstrip(), kind=kind, name=name, parameters=parameters, raw=b"")
        layers.append(_with_data(one, data, start))
        start += len(layers[-1].raw)
    if start != len(data):
        kinds = ", ".join(sorted({layer.kind for layer in layers} - set(_KEYS)))
        raise InputRejected(
            f"{weights} holds weights of a layer that is not read here, one of {kinds}", code="E-NCNN-FORM", hint=_HINT
        )
    return layers


def _with_data(layer: NcnnLayer, data: bytes, start: int) -> NcnnLayer:
    """`layer` with its part of `data`, which begins at `start`."""
    if layer.kind == "MemoryData":
        size = 4 * int(np.prod([max(layer.number(key), 1) for key in ("0", "1", "11", "2")]))
        size += 4 if layer.number("21", 1) == 0 else 0
        return NcnnLayer(**{**vars(layer), "raw": data[start : start + size]})
    if layer.kind not in _KEYS:
        return layer
    channels, has_bias, count = (layer.number(key) for key in _KEYS[layer.kind])
    middle = start + 4 + 4 * count
    end = middle + (4 * channels if has_bias else 0)
    if data[start : start + 4] != _FLOAT_TAG or end > len(data) or layer.number("8"):
        raise InputRejected(f"the weights of {layer.name} are not float32", code="E-NCNN-FORM", hint=_HINT)
    bias = np.frombuffer(data[middle:end], "<f4") if has_bias else None
    stored = np.frombuffer(data[start + 4 : middle], "<f4")
    return NcnnLayer(**{**vars(layer), "raw": data[start:end], "weights": stored, "bias": bias})


def _counterpart(one: NcnnLayer, known: dict[bytes, list[QdqLayer]], plain: set[bytes]) -> QdqLayer | None:
    """The layer of the QDQ file with the weights of `one`, and its bias if several have them; None if it is float."""
    key = one.weights.tobytes()  # type: ignore[union-attr]
    found = known.get(key, [])
    if found and key in plain:
        raise InputRejected(
            f"{one.name} has the weights of a float layer and of {found[0].name}", code="E-NCNN-FORM", hint=_HINT
        )
    if not found and key not in plain:
        raise InputRejected(f"no layer of the ONNX file has the weights of {one.name}", code="E-NCNN-FORM", hint=_HINT)
    if len({_meaning(layer) for layer in found}) > 1:
        bias = None if one.bias is None else one.bias.tobytes()
        found = [layer for layer in found if (None if layer.bias is None else layer.bias.tobytes()) == bias]
    if key not in plain and len({_meaning(layer) for layer in found}) != 1:
        names = ", ".join(layer.name for layer in known[key])
        raise InputRejected(
            f"{one.name} may be any of {names}: equal weights, other ranges",
            code="E-NCNN-FORM",
            hint="keep them in float",
        )
    return found[0] if found else None


def _meaning(layer: QdqLayer) -> tuple[bytes, bytes, float, float]:
    return layer.levels.tobytes(), layer.scale.tobytes(), layer.low, layer.high


def _grouped(one: NcnnLayer) -> bool:
    """Whether it has fewer groups than output channels, and so, in ncnn, fewer scales than we have."""
    return one.kind == "ConvolutionDepthWise" and one.number("7", 1) != one.number("0")


def _int8(one: NcnnLayer, layer: QdqLayer) -> tuple[bytes, bool]:
    """(what the .bin file shall hold of a layer, whether a channel of it has six bits)."""
    flat = layer.levels.reshape(len(layer.scale), -1)
    levels, scale = flat.copy(), (1 / layer.scale.astype(np.float64)).astype(np.float32)
    wide = (flat.min(1) < -_LARGEST - 1) | (flat.max(1) > _LARGEST)  # of a zero point off the middle of uint8
    six = _may_overflow(flat, signed=layer.low < 0) if _winograd(one) else np.zeros(len(flat), bool)
    for channels, largest in ((wide, _LARGEST), (six, _SIX_BITS)):
        exact = layer.weights.reshape(flat.shape)[channels].astype(np.float64)
        scale[channels] = largest / np.maximum(np.abs(exact).max(1, initial=0), np.finfo(np.float32).tiny)
        levels[channels] = np.round(exact * scale[channels, None].astype(np.float64))
    padding = bytes(-levels.size % 4)
    bias = b"" if one.bias is None else one.bias.tobytes()
    ranges = scale.astype("<f4").tobytes() + layer.input_scale.astype("<f4").tobytes()
    return _INT8_TAG + levels.astype(np.int8).tobytes() + padding + bias + ranges, bool(six.any())


def _winograd(one: NcnnLayer) -> bool:
    """Whether ncnn may take the integer Winograd path; its rules about channels differ between CPUs."""
    sides = [("1", "11"), ("3", "13"), ("2", "12")]
    values = [(one.number(x, 1), one.number(y, one.number(x, 1))) for x, y in sides]
    return one.kind == "Convolution" and values == [(3, 3), (1, 1), (1, 1)]


def _may_overflow(levels: np.ndarray, *, signed: bool) -> np.ndarray:
    """bool `[O]`: whether some input can lead the sum of a channel beyond what Winograd's last step can hold.

    `levels` is `[O,I]`; inputs reach from 0, or from −127 if `signed`, to 127.
    """
    positive, negative = np.maximum(levels, 0).sum(1), np.maximum(-levels, 0).sum(1)
    most = positive + negative if signed else np.maximum(positive, negative)
    return most * _LARGEST > _WINOGRAD_LIMIT
