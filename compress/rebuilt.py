"""An ONNX file as a torch module that `torch.export` takes, so that runtimes without an ONNX reader get the same
numbers: its float operators, or the integers, scales and zero points of a QDQ file as torch's own quantization writes
them (`quantized_decomposed`), which ExecuTorch and LiteRT turn into their int8 kernels.

ONNX Runtime's unsigned levels become signed ones, 128 lower, with zero points 128 lower: the numbers that they stand
for stay the same. A weight's zero point has to be 0 then, as these runtimes demand.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import InputRejected
from compress.onnx_torch import Graph

LOW, HIGH = -128, 127
HALF = 128  # between the levels of uint8 and those of int8


class Rebuilt(Graph):
    """The graph of the ONNX `model`. Weights are held as int8 levels or, where `float_weights`, as the numbers that
    these stand for, rounded to their levels at every call: LiteRT's converter knows quantized weights by that. It also
    brings what is joined to one scale in its own way, and refuses a graph that says how.

    Raises InputRejected for an operator that torch has no counterpart of here, named, and for weights whose levels are
    not symmetric.
    """

    def __init__(self, model: Any, *, float_weights: bool = False):
        # imported for what it registers: torch's operators of quantized tensors
        import torch.ao.quantization.fx._decomposed  # noqa: F401

        super().__init__(_apart(model if float_weights else _on_one_grid(model)))
        self.float_weights = float_weights
        self.per_channel: dict[str, int] = {}  # output of a DequantizeLinear → the number of its scales' buffer
        for node in self.nodes:
            if node.kind == "DequantizeLinear" and node.inputs[0] in self.names:
                self._hold_weight(node)

    def keeps(self, node: Any, values: dict[str, Tensor]) -> bool:
        """A weight keeps its levels; a bias of int32 is read as float, which these runtimes round again to the same."""
        return node.kind == "DequantizeLinear" and values[node.inputs[0]].dtype in (torch.int8, torch.uint8)

    def _hold_weight(self, node: Any) -> None:
        number, (scale, zero) = self.names.index(node.inputs[0]), self._scheme(node)
        levels = self.get_buffer(str(number)).to(torch.int16)
        if self.get_buffer(str(number)).dtype == torch.uint8:
            levels = levels - HALF
        if zero.any():
            raise InputRejected(
                f"the weight {node.inputs[0]} has zero points other than 0, which this runtime's kernels do not take",
                code="E-QDQ-FORM",
                hint="quantize it with `--quantize int8`, whose weights are symmetric",
            )
        if levels.dim() > 1 and scale.size == 1:
            scale = np.repeat(scale.reshape(1), levels.shape[self._axis(node)])
        shape = [1] * levels.dim()
        shape[self._axis(node)] = -1
        scales = torch.from_numpy(scale.astype(np.float32).reshape(-1).copy())
        held = levels.float() * scales.reshape(shape) if self.float_weights else levels.to(torch.int8)
        self.register_buffer(str(number), held, persistent=False)
        self.per_channel[node.names[0]] = number
        self.register_buffer(f"scale_{number}", scales, persistent=False)
        self.register_buffer(f"zero_{number}", torch.zeros(len(scales), dtype=torch.int64), persistent=False)

    @staticmethod
    def _axis(node: Any) -> int:
        return int(node.attributes.get("axis", 1))

    def _scheme(self, node: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear, for signed levels."""
        scale = self.settings[node.inputs[1]]
        if len(node.inputs) > 2 and node.inputs[2]:
            zero = self.settings[node.inputs[2]]
        else:  # ONNX: levels without a zero point are unsigned for activations, of the weight's type otherwise
            weight = node.inputs[0] in self.names and self.get_buffer(str(self.names.index(node.inputs[0])))
            signed = isinstance(weight, Tensor) and weight.dtype == torch.int8
            zero = np.zeros_like(scale, dtype=np.int8 if signed else np.uint8)
        return scale, zero.astype(np.int64) - (HALF if zero.dtype == np.uint8 else 0)

    def run(self, node: Any, inputs: list[Any]) -> tuple[Tensor, ...]:
        """The outputs of one node, in the operators that exporters know."""
        quantized = torch.ops.quantized_decomposed
        if node.kind == "Gemm" and node.attributes.get("transB") and not node.attributes.get("transA"):
            alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
            if alpha == beta == 1.0:
                return (nn.functional.linear(*inputs),)
        if node.names[0] in self.per_channel:
            number, axis = self.per_channel[node.names[0]], self._axis(node)
            scale, zero = self.get_buffer(f"scale_{number}"), self.get_buffer(f"zero_{number}")
            scheme = (scale, zero, axis, -HIGH, HIGH, torch.int8)
            levels = quantized.quantize_per_channel(inputs[0], *scheme) if self.float_weights else inputs[0]
            return (quantized.dequantize_per_channel(levels, *scheme),)
        if node.kind in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = self._scheme(node)
            if scale.size > 1:
                raise InputRejected(
                    "activations with a scale per channel are not read here", code="E-QDQ-FORM", hint="quantize it anew"
                )
            of = quantized.quantize_per_tensor if node.kind == "QuantizeLinear" else quantized.dequantize_per_tensor
            return (of(inputs[0], float(scale), int(zero), LOW, HIGH, torch.int8),)
        return super().run(node, inputs)


def _on_one_grid(model: Any) -> Any:
    """The model with the inputs of every Concat on the levels of its output, where a QuantizeLinear reads that and only
    that: the same integers, since rounding twice to the same levels is rounding once. XNNPACK joins no tensors of
    different scales.
    """
    import onnx
    from onnx import helper

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    readers: dict[str, list[Any]] = {}
    makers = {name: node for node in twin.graph.node for name in node.output}
    for node in twin.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[Any] = []
    for node in twin.graph.node:
        after = readers.get(node.output[0], [])
        if node.op_type == "Concat" and len(after) == 1 and after[0].op_type == "QuantizeLinear":
            scheme = list(after[0].input[1:])
            for place, name in enumerate(node.input):
                maker = makers.get(name)
                if maker is None or maker.op_type != "DequantizeLinear" or list(maker.input[1:]) == scheme:
                    continue
                levels, number = f"{node.output[0]}.levels.{place}", f"{node.output[0]}.number.{place}"
                nodes.append(helper.make_node("QuantizeLinear", [name, *scheme], [levels]))
                nodes.append(helper.make_node("DequantizeLinear", [levels, *scheme], [number]))
                node.input[place] = number
        nodes.append(node)
    return _with_nodes(twin, nodes)


def _with_nodes(model: Any, nodes: list[Any]) -> Any:
    """The model with these nodes, some of which may be its own."""
    import onnx

    kept = [onnx.NodeProto() for _ in nodes]
    for one, node in zip(kept, nodes, strict=True):
        one.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def _apart(model: Any) -> Any:
    """The model with a DequantizeLinear of its own for every reader, as torch's quantization writes it: partitioners
    follow the pairs of one operator at a time.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    makers = {node.output[0]: node for node in twin.graph.node if node.op_type == "DequantizeLinear"}
    taken: set[str] = set()
    nodes = []
    for node in twin.graph.node:
        for place, name in enumerate(node.input):
            if name not in makers:
                continue
            if name in taken:
                copy = onnx.NodeProto()
                copy.CopyFrom(makers[name])
                copy.output[0] = f"{name}.{len(nodes)}.{place}"
                nodes.append(copy)
                node.input[place] = copy.output[0]
            taken.add(name)
        nodes.append(node)
    return _with_nodes(twin, nodes)
