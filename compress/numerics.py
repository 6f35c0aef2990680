"""Numbers that cost time or answers: those below the smallest normal one, and what is no number at all.

Many processors multiply subnormal numbers a hundred times slower than others; a pruned network whose BatchNorm was
folded may be full of them. `compress export` writes zeros in place of such weights; a file from elsewhere is looked
through here, weights and activations, in the locked-up process of a conversion, of which this module is a kind of
adapter.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# operator → the inputs that are no weights but divide by, or set the size of a level: zeros there would be no numbers
_DIVISORS = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Div": (1,), "Pow": (1,)}


SAMPLES = 32  # images whose activations are looked at
# what is told of: a softmax may well give a few
_TOLD_SHARE = 1e-4
_FLOATS = ("tensor(float16)", "tensor(float)", "tensor(double)")


def convert(source: Path, folder: Path, precision: str, images: Path | None = None) -> dict[str, Any]:
    """The number of floating-point `weights` of the ONNX file `source`, of `subnormal` ones among them (in 32 and 64
    bits, in which processors compute), and of `not_finite` ones (NaN or infinite); and of `images` (.npy, uint8
    `[N,H,W,C]`) the same of all `activations`, by ONNX Runtime on the CPU without its optimisations, with the name of
    the tensor that has `most` of each kind.
    """
    import onnx

    model = onnx.load(source)
    found: dict[str, Any] = {"weights": 0, "subnormal": 0, "not_finite": 0}
    for values in _weights(model.graph):
        found["weights"] += values.size
        subnormal, not_finite = _counted(values)
        found["subnormal"] += subnormal
        found["not_finite"] += not_finite
    if images:
        try:
            found["activations"] = _activations(model, folder, images)
        except MemoryError:  # which another time there may be enough of
            raise
        except Exception as error:  # what is known of the weights is told all the same
            said = (str(error).splitlines() or [""])[0]
            found["activations"] = {"failure": f"{type(error).__name__}: {said[:200]}"}
    return found


def _counted(values: np.ndarray) -> tuple[int, int]:
    """How many are subnormal, and how many no finite numbers."""
    subnormal = 0
    if values.dtype in (np.float32, np.float64):
        size = np.abs(values)
        subnormal = int(((size > 0) & (size < np.finfo(values.dtype).tiny)).sum())
    return subnormal, int((~np.isfinite(values.astype(np.float64))).sum())


def _activations(model: Any, folder: Path, images: Path) -> dict[str, Any]:
    import onnx
    import onnxruntime

    from compress.worker import to_inputs

    given = {each.name for each in model.graph.output}
    computed = [node for node in model.graph.node if node.op_type != "Constant"]
    names = [name for node in computed for name in node.output if name and name not in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = folder / "looked.onnx"
    onnx.save(model, path, save_as_external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    floats = [each.name for each in session.get_outputs() if each.type in _FLOATS]
    (wanted,) = session.get_inputs()
    count = wanted.shape[0] if isinstance(wanted.shape[0], int) else 1
    found, by_name = {"values": 0, "subnormal": 0, "not_finite": 0}, {name: [0, 0] for name in floats}
    samples = np.load(images)
    for begin in range(0, len(samples) if floats else 0, count):
        batch = samples[(begin + np.arange(count)) % len(samples)]
        answers = session.run(floats, {wanted.name: to_inputs(batch)})
        for name, values in zip(floats, answers, strict=True):
            found["values"] += values.size
            for kind, more in enumerate(_counted(np.asarray(values))):
                by_name[name][kind] += more
    for kind, key in enumerate(("subnormal", "not_finite")):
        found[key] = sum(counts[kind] for counts in by_name.values())
    most = {key: max(floats, key=lambda name: by_name[name][kind], default="")
            for kind, key in enumerate(("subnormal", "not_finite"))}  # fmt: skip
    return {**found, "most": most}


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
    activations = found.get("activations", {"values": 0, "subnormal": 0, "not_finite": 0})
    if "failure" in activations:
        return [*said, f"{file}: its activations could not be looked at: {activations['failure']}"]
    if activations["subnormal"] > _TOLD_SHARE * activations["values"]:
        said.append(
            f"{file}: {activations['subnormal'] / activations['values']:.2%} of its activations are subnormal numbers, "
            f"most of them in `{activations['most']['subnormal']}`: many processors are far slower with these"
        )
    if activations["not_finite"]:
        said.append(
            f"{file}: {activations['not_finite']:,} of {activations['values']:,} activations are NaN or infinite, most "
            f"of them in `{activations['most']['not_finite']}`"
        )
    return said
