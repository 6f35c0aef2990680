"""A quantized ONNX file as the same network in plain float32, for converters that read no integers.

QuantizeLinear and DequantizeLinear go, integer constants become the float32 numbers that they stand for, and float16
becomes float32. What only the pairs did has to be written out again: onnxruntime's quantizer drops a Relu or Clip in
front of a QuantizeLinear, whose range implies it (`QDQRemovableActivation` in onnxruntime/quantization), and a network
without its activations is another network.
"""

from typing import Any

import numpy as np

from compress.errors import InputRejected

# what hands values on, or averages them: of numbers from 0 on, numbers from 0 on
_PASSES = (
    "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Pad",
    "ReduceMean", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_FROM_ZERO = ("HardSigmoid", "Relu", "Sigmoid", "Softmax")


def float_twin(model: Any) -> Any:
    """The network of `model` in float32: same names and shapes of inputs and outputs, no Q/DQ pair and no float16.

    A range that begins at 0 becomes a Clip to that range, unless the value cannot be negative anyway: then the range
    came from a Relu or ReLU6, and its upper end from ReLU6 or the calibration, which the file no longer tells apart.
    A range that reaches below 0 becomes nothing: those are linear, and only saturate. (A Clip that reached below 0
    would be lost; no network of this project has one.)

    A file with neither comes back as an exact copy. Raises InputRejected for pairs that this rule cannot undo.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    kinds = {node.op_type for node in twin.graph.node}
    quantized, halved = bool(kinds & {"QuantizeLinear", "DequantizeLinear"}), _has_halves(twin.graph)
    if not quantized and not halved:
        return twin
    if halved:
        _widen(twin)
    if quantized:
        _remove_pairs(twin.graph)
    del twin.graph.value_info[:]  # they told the types of values that have become others
    for entry in [e for e in twin.metadata_props if e.key == "compress.precision"]:
        twin.metadata_props.remove(entry)
    onnx.checker.check_model(twin)
    return twin


def convert(source: Any, folder: Any, precision: str) -> dict[str, Any]:
    """`model.onnx` in `folder`, the float twin of the file `source`. What an adapter's `convert` is."""
    import onnx

    onnx.save(float_twin(onnx.load(source)), folder / "model.onnx")
    return {"tools": {}, "notes": []}


def quantize_range(node: Any, constants: dict[str, np.ndarray]) -> tuple[float, float]:
    """(low, high) of what the QuantizeLinear `node` can express, in the units of its input.

    Raises InputRejected for a scale that is no constant or not one number.
    """
    if any(name not in constants for name in node.input[1:]) or constants[node.input[1]].size != 1:
        raise InputRejected(
            f"the QuantizeLinear {node.name} has no single constant scale",
            code="E-QDQ-FORM",
            hint="quantize per tensor",
        )
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    limits = np.iinfo(zero.dtype)
    scale, offset = float(constants[node.input[1]].item()), int(zero.item())
    return scale * (limits.min - offset), scale * (limits.max - offset)


def dequantize(node: Any, constants: dict[str, np.ndarray]) -> np.ndarray:
    """The float32 numbers that the DequantizeLinear `node` makes of its constant, of its shape, as onnxruntime does:
    the integers' difference exactly, then one product.
    """
    levels, scale = constants[node.input[0]], constants[node.input[1]].astype(np.float32)
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.int32)
    shape = [1] * levels.ndim
    if scale.size > 1:
        if any(a.name == "block_size" and a.i for a in node.attribute):
            raise InputRejected(
                f"the DequantizeLinear {node.name} has scales per block", code="E-QDQ-FORM", hint="quantize per channel"
            )
        shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = -1
    difference = levels.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * levels.ndim)
    product = difference.astype(np.float32) * scale.reshape(shape if scale.size > 1 else [1] * levels.ndim)
    return product.reshape(levels.shape)


def _remove_pairs(graph: Any) -> None:
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    aliases: dict[str, str] = {}
    from_zero: set[str] = set()
    nodes: list[Any] = []
    for node in _sorted(graph):
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
        source = node.input[0] if node.input else ""
        if node.op_type == "DequantizeLinear" and source in constants:
            graph.initializer.append(numpy_helper.from_array(dequantize(node, constants), node.output[0]))
        elif node.op_type == "DequantizeLinear":
            aliases[node.output[0]] = source
        elif node.op_type == "QuantizeLinear":
            low, high = quantize_range(node, constants)
            if low >= 0 and source not in from_zero:
                nodes += _clip(graph, node, low, high)
                source = nodes[-1].output[0]
                from_zero.add(source)
            aliases[node.output[0]] = source
        else:
            if _stays_from_zero(node, from_zero, constants):
                from_zero.update(node.output)
            nodes.append(node)
    _replace_nodes(graph, nodes)
    _restore_outputs(graph, aliases)
    _drop_unread(graph)


def _stays_from_zero(node: Any, from_zero: set[str], constants: dict[str, np.ndarray]) -> bool:
    """Whether no output of `node` can be negative."""
    if node.op_type in _FROM_ZERO:
        return True
    if node.op_type == "Clip":
        low = constants.get(node.input[1]) if len(node.input) > 1 else None
        return low is not None and float(low.item()) >= 0
    read = node.input if node.op_type == "Concat" else node.input[:1]
    return node.op_type in _PASSES and all(name in from_zero for name in read)


def _clip(graph: Any, quantize: Any, low: float, high: float) -> list[Any]:
    """The Clip that the QuantizeLinear `quantize` implied, its ends among the graph's constants."""
    from onnx import helper, numpy_helper

    name = f"{quantize.output[0]}/range"
    ends = [f"{name}/low", f"{name}/high"]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), end) for value, end in zip((low, high), ends, strict=True)
    )
    return [helper.make_node("Clip", [quantize.input[0], *ends], [name], name=name)]


def _restore_outputs(graph: Any, aliases: dict[str, str]) -> None:
    """Give the graph's outputs their names back, where the pair that made them is gone."""
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        source = aliases.get(output.name)
        if source is None:
            continue
        if source not in makers or source in {o.name for o in graph.output}:
            graph.node.append(helper.make_node("Identity", [source], [output.name], name=f"{output.name}/copy"))
            continue
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == source:
                        names[place] = output.name


def _has_halves(graph: Any) -> bool:
    from onnx import TensorProto

    half = TensorProto.FLOAT16
    casts = [a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
    return half in casts or any(tensor.data_type == half for tensor in graph.initializer)


def _widen(model: Any) -> None:
    """float16 becomes float32, in place: constants, attributes, types of inputs and outputs; Casts between both go."""
    import onnx

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for values in (inferred.value_info, inferred.input, inferred.output)
        for value in values
        if value.type.tensor_type.elem_type in (half, single)
    }
    graph, nodes = model.graph, []
    aliases: dict[str, str] = {}
    for tensor in [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]:
        if tensor.data_type == half:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    floats |= {tensor.name for tensor in graph.initializer if tensor.data_type == single}
    for node in _sorted(graph):
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
        to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if to == half or (to == single and node.input[0] in floats):
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    _restore_outputs(graph, aliases)
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    _drop_unread(graph)


def _sorted(graph: Any) -> list[Any]:
    """The nodes, each behind those that it reads from: onnxruntime reads files in any order, and some were so written.

    Raises InputRejected for a graph with a cycle or a value that nothing makes.
    """
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    waiting, found = list(graph.node), []
    while waiting:
        left = []
        for node in waiting:
            if known.issuperset(node.input):
                found.append(node)
                known.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise InputRejected(
                f"nothing gives what the node {left[0].name} reads", code="E-ONNX-MALFORMED", hint="check the file"
            )
        waiting = left
    return found


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]  # `del` would empty the originals
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unread(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def strides_as_pooling(model: Any) -> Any:
    """`model` with every Slice that takes each n-th row or column (x[:, :, ::2]) written as a MaxPool of one pixel and
    that stride: the same numbers, in an operator that all runtimes have. ncnn has no slice with steps.

    Other Slices stay. Needs the axes 2 and 3 of images `[N,C,H,W]`.
    """
    import onnx
    from onnx import helper, numpy_helper

    found = onnx.ModelProto()
    found.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    for place, node in enumerate(found.graph.node):
        if node.op_type != "Slice" or len(node.input) < 5 or any(name not in constants for name in node.input[1:]):
            continue
        starts, ends, axes, steps = (constants[name].tolist() for name in node.input[1:5])
        whole = all(start == 0 for start in starts) and all(end >= 2**31 - 1 for end in ends)
        if not whole or not set(axes) <= {2, 3} or all(step == 1 for step in steps):
            continue
        by_axis = dict(zip(axes, steps, strict=True))
        pool = helper.make_node(
            "MaxPool", [node.input[0]], node.output, name=node.name, kernel_shape=[1, 1],
            strides=[by_axis.get(2, 1), by_axis.get(3, 1)],
        )  # fmt: skip
        found.graph.node[place].CopyFrom(pool)
    _drop_unread(found.graph)
    return found
