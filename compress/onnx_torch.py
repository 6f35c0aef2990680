"""An ONNX graph run by torch, so that it can be differentiated: a float file, or a QDQ file as its pairs say.

Only the operators that image classifiers are made of; another is refused by name. A QuantizeLinear of activations
gives the rounded and clipped number itself, not its level, and the DequantizeLinear behind it passes that on; the
gradient goes straight through inside the range and not at all outside of it (Bengio et al. 2013).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.calibrate import image_input
from compress.errors import InputRejected

_HINT = "export the network without it"
_WINDOWED = ("Conv", "MaxPool", "AveragePool")
# operator → the first of its inputs that are settings: read as numbers (numpy), not computed with as tensors
_SETTINGS = {
    **dict.fromkeys(("Clip", "QuantizeLinear", "DequantizeLinear", "Pad", "ReduceMean"), 1),
    **dict.fromkeys(("Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"), 1),
}


def unreadable(model: Any) -> str:
    """Why the ONNX `model` cannot be run here, or ""."""
    try:
        Graph(model)
    except InputRejected as error:
        return error.message
    return ""


class Graph(nn.Module):
    """The graph of the ONNX `model`. `given` are names of values that `forward` gets instead of computing them."""

    def __init__(self, model: Any, given: tuple[str, ...] = ()):
        from onnx import numpy_helper

        super().__init__()
        graph = model.graph
        self.input, self.output = image_input(graph).name, graph.output[0].name
        values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self.nodes: list[_Node] = []
        for node in graph.node:
            if set(node.output) & set(given):
                continue
            one = _Node(node)
            if one.constant(values) and not self.keeps(one, values):
                inputs = [
                    values[name].numpy() if name and place >= one.settings else values.get(name)
                    for place, name in enumerate(node.input)
                ]
                values |= zip(node.output, one.outputs(inputs), strict=True)
            else:
                self.nodes.append(one)
        read = {name for node in self.nodes for name in node.inputs[: node.settings]}
        settings = {name for node in self.nodes for name in node.inputs[node.settings :]}
        self.settings = {name: values[name].numpy() for name in values if name in settings}
        self.names = tuple(name for name in values if name in read)
        for number, name in enumerate(self.names):
            self.register_buffer(str(number), values[name], persistent=False)
        last = {name: number for number, node in enumerate(self.nodes) for name in node.inputs}
        self.done_after: list[list[str]] = [[] for _ in self.nodes]
        for name, number in last.items():
            if name not in values and name != self.output and name not in given and name not in self.settings:
                self.done_after[number].append(name)

    def forward(self, images: Tensor, given: dict[str, Tensor] | None = None) -> Tensor:
        """Logits `[N,K]` of images float32 `[N,C,H,W]` in [0,1]."""
        values: dict[str, Any] = {name: self.get_buffer(str(number)) for number, name in enumerate(self.names)}
        values |= {**self.settings, **(given or {})}
        values[self.input] = images
        for node, done in zip(self.nodes, self.done_after, strict=True):
            inputs = [values[name] if name else None for name in node.inputs]
            values |= zip(node.names, self.run(node, inputs), strict=True)
            for name in done:  # a value that nobody reads any more would only fill memory
                del values[name]
        return values[self.output]

    def keeps(self, node: "_Node", values: dict[str, Tensor]) -> bool:
        """Whether a node of constants is computed at every call all the same; what another arithmetic overrides."""
        return False

    def run(self, node: "_Node", inputs: list[Any]) -> tuple[Tensor, ...]:
        """The outputs of one node; what another arithmetic overrides."""
        return node.outputs(inputs)


class _Node:
    """One node: its operator, attributes, and the names that it reads and gives."""

    def __init__(self, node: Any):
        from onnx import helper

        self.kind, self.inputs, self.names = node.op_type, list(node.input), list(node.output)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.settings = _SETTINGS.get(node.op_type, len(node.input))
        self.attributes |= {"num_outputs": len(node.output)} if node.op_type == "Split" else {}
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
            raise InputRejected(
                f"the operator {node.op_type} has no counterpart in torch here", code="E-ONNX-OPERATOR", hint=_HINT
            )
        if self.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise InputRejected(
                f"auto_pad={self.attributes['auto_pad'].decode()} is not read here", code="E-ONNX-OPERATOR", hint=_HINT
            )
        if node.op_type in _WINDOWED and len(self.attributes.get("kernel_shape", (1, 1))) != 2:
            raise InputRejected(
                f"{node.op_type} of other than two dimensions is not read here", code="E-ONNX-OPERATOR", hint=_HINT
            )

    def constant(self, values: dict[str, Tensor]) -> bool:
        return all(name in values for name in self.inputs if name)

    def outputs(self, inputs: list[Any]) -> tuple[Tensor, ...]:
        found = _OPERATORS[self.kind](self.attributes, *inputs)
        return found if isinstance(found, tuple) else (found,)


def window(attributes: dict[str, Any], x: Tensor, value: float) -> Tensor:
    """`x` padded as a Conv or a pooling says, since torch pads both sides alike."""
    pads = attributes.get("pads", [])
    half = len(pads) // 2
    if not any(pads):
        return x
    both = [side for i in reversed(range(half)) for side in (pads[i], pads[half + i])]
    return F.pad(x, both, value=value)


def _conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = (attributes.get(name, [1, 1]) for name in ("strides", "dilations"))
    groups, pads = attributes.get("group", 1), attributes.get("pads", [0] * 4)
    if pads[:2] == pads[2:]:
        return F.conv2d(x, weight, bias, strides, pads[:2], dilations, groups)
    return F.conv2d(window(attributes, x, 0.0), weight, bias, strides, 0, dilations, groups)


def _gemm(attributes: dict[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    return F.max_pool2d(
        window(attributes, x, -torch.inf), attributes["kernel_shape"], attributes.get("strides", [1, 1]),
        dilation=attributes.get("dilations", [1, 1]), ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    pads, counts = attributes.get("pads", [0] * 4), bool(attributes.get("count_include_pad", 0))
    if pads[:2] != pads[2:]:
        raise InputRejected(
            "an AveragePool with other pads on both sides is not read here",
            code="E-ONNX-OPERATOR",
            hint="export without",
        )
    return F.avg_pool2d(
        x, attributes["kernel_shape"], attributes.get("strides", [1, 1]), pads[:2],
        ceil_mode=bool(attributes.get("ceil_mode", 0)), count_include_pad=counts,
    )  # fmt: skip


def _quantize(attributes: dict[str, Any], x: Tensor, scale: Any, zero: Any = None) -> Tensor:
    if scale.size > 1:
        raise InputRejected(
            "activations with a scale per channel are not read here", code="E-QDQ-FORM", hint="take one scale a tensor"
        )
    limits = np.iinfo(np.uint8 if zero is None else zero.dtype)
    offset = 0 if zero is None else int(zero)
    return _Rounded.apply(x, float(scale), limits.min - offset, limits.max - offset)  # type: ignore[no-any-return]


class _Rounded(torch.autograd.Function):
    """`clip(round(x / scale), low, high) · scale`; torch's own of a tensor is not vectorised, and ten times slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low - 0.5) * scale, (high + 0.5) * scale
        return x.div(scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.ends), None, None, None


def _dequantize(attributes: dict[str, Any], x: Tensor, scale: Any, zero: Any = None) -> Tensor:
    if x.is_floating_point():  # of a QuantizeLinear above
        return x
    shape = [1] * x.dim()
    if scale.size > 1:
        shape[attributes.get("axis", 1)] = -1
    offset = 0.0 if zero is None else torch.from_numpy(zero.astype(np.float32).reshape(shape if zero.size > 1 else []))
    return (x.float() - offset) * torch.from_numpy(scale.reshape(shape if scale.size > 1 else []))


def _reduce_mean(attributes: dict[str, Any], x: Tensor, axes: Any = None) -> Tensor:
    dims = axes.tolist() if axes is not None else attributes.get("axes")
    return x.mean(dim=dims, keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(attributes: dict[str, Any], x: Tensor, shape: Any) -> Tensor:
    wanted = shape.tolist()
    return x.reshape(
        [x.shape[i] if size == 0 and not attributes.get("allowzero") else size for i, size in enumerate(wanted)]
    )


def _flatten(attributes: dict[str, Any], x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _split(attributes: dict[str, Any], x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return tuple(x.split(sizes.tolist(), axis))
    return tuple(x.chunk(attributes["num_outputs"], axis))


def _slice(attributes: dict[str, Any], x: Tensor, starts: Any, ends: Any, *rest: Any) -> Tensor:
    axes = rest[0].tolist() if rest else range(len(starts))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    index = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _pad(attributes: dict[str, Any], x: Tensor, pads: Any, value: Any = None, *axes: Any) -> Tensor:
    if axes or attributes.get("mode", b"constant") != b"constant":
        raise InputRejected(
            "only a Pad of all axes by a constant is read here", code="E-ONNX-OPERATOR", hint="export with such a one"
        )
    sides, half = pads.tolist(), x.dim()
    both = [side for i in reversed(range(half)) for side in (sides[i], sides[half + i])]
    return F.pad(x, both, value=0.0 if value is None else float(value))


def _squeeze(attributes: dict[str, Any], x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(attributes: dict[str, Any], x: Tensor, axes: Any) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _clip(attributes: dict[str, Any], x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    ends = [None if end is None else float(end) for end in (low, high)]
    return x if ends == [None, None] else x.clamp(*ends)


def _hard_sigmoid(attributes: dict[str, Any], x: Tensor) -> Tensor:
    return (attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)).clamp(0, 1)


def _softmax(attributes: dict[str, Any], x: Tensor) -> Tensor:
    return x.softmax(attributes.get("axis", -1))


def _arg_max(attributes: dict[str, Any], x: Tensor) -> Tensor:
    if attributes.get("select_last_index"):
        raise InputRejected("ArgMax that takes the last of equals is not read here", code="E-ONNX-OPERATOR", hint=_HINT)
    return x.argmax(attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))


def _gather(attributes: dict[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    counted = torch.where(indices < 0, indices + x.shape[axis], indices)  # ONNX counts from the end too
    chosen = x.index_select(axis, counted.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


_OPERATORS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda _, a, b: a + b,
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": lambda attributes, *x: torch.cat(x, attributes["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda _, a, b: a / b,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(dim=(2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: F.hardswish(x),
    "Identity": lambda _, x: x,
    "MatMul": lambda _, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda _, a, b: a * b,
    "Neg": lambda _, x: -x,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: torch.tanh(x),
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
