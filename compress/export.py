"""Export: a network as one ONNX file that carries its preprocessing, its class names and its origin.

Images in [0,1], float32 `[batch,C,H,W]`, go in as `input`; `logits` come out; the batch is dynamic. Beside the file
lies `<name>.golden.npz`: real images and the logits expected of them.
"""

import io
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.errors import CompressError, InputRejected
from compress.fuse import fold_batchnorm
from compress.images import PREPROCESSING
from compress.network import Network
from compress.store import digest, write_atomic

OPSET = 18
# float32 kernels that order their sums differently stay within this share of the logits' spread; a wrong
# normalisation or a lost layer is off by tenths
PARITY_TOLERANCE = 1e-3


def export_onnx(network: Network, path: Path, *, recipe_digest: str, opset: int = OPSET) -> None:
    """Write `network` to `path` through torch's dynamo exporter, BatchNorm folded, subnormal weights flushed."""
    # of channels-last weights the exporter would make transpositions
    folded = fold_batchnorm(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in folded.modules():
        # the exporter takes apart what works in place, for half of its time, and ends with the same graph
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    channels, height, width = network.contract.input_shape
    # two images: a batch of one would be taken for a constant
    example = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    model = program.model_proto  # type: ignore[union-attr]
    contract = network.contract
    metadata = {
        "compress.class_names": json.dumps(list(contract.class_names)),
        "compress.class_names_digest": digest(list(contract.class_names)),
        "compress.preprocessing": json.dumps({**PREPROCESSING, "size": [height, width], "channels": channels}),
        "compress.normalisation": json.dumps({"mean": contract.mean, "std": contract.std, "where": "in the graph"}),
        "compress.network": contract.spec,
        "compress.recipe_digest": recipe_digest,
    }
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "compress"
    _drop_local_paths(model)
    write_atomic(path, model.SerializeToString())


def prepend_normalisation(path: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Rewrite the ONNX file so that it takes images in [0,1] where it took (x − mean) / std."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    taken = graph.input[0]
    inner, shape = f"{taken.name}.normalised", (1, len(mean), 1, 1)
    for node in graph.node:
        node.input[:] = [inner if name == taken.name else name for name in node.input]
    for name, values in (("mean", mean), ("std", std)):
        graph.initializer.append(helper.make_tensor(f"compress.{name}", TensorProto.FLOAT, shape, values))
    graph.node.insert(0, helper.make_node("Div", [f"{inner}.centred", "compress.std"], [inner]))
    graph.node.insert(0, helper.make_node("Sub", [taken.name, "compress.mean"], [f"{inner}.centred"]))
    write_atomic(path, model.SerializeToString())


def prepend_resize(path: Path, size: tuple[int, int]) -> None:
    """Rewrite the ONNX file so that it takes images of (height, width) `size` and resizes them to its own, bilinear.

    As `torch.nn.functional.interpolate(…, mode="bilinear", antialias=True)`. Raises InputRejected where the file's
    operator set cannot do that.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}  # old files list these as inputs too
    taken = next(value for value in model.graph.input if value.name not in weights)
    own = [d.dim_value for d in taken.type.tensor_type.shape.dim[2:]]
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    smaller = any(a < b for a, b in zip(own, size, strict=True))
    if opset < (18 if smaller else 13):
        raise InputRejected(
            f"{path.name} takes images of {own[0]}×{own[1]} and has opset {opset}, which cannot "
            f"{'shrink images without aliasing (18 can)' if smaller else 'resize images by a scale alone (13 can)'}",
            code="E-ONNX-OPSET",
            hint="export it for images of that size, with the resizing inside",
        )
    scales = []
    for wanted, given in zip(own, size, strict=True):
        scale = np.float32(wanted / given)
        # the floor of size · scale is taken, at run time in single precision and by shape inference in double
        scales.append(scale if float(scale) * given >= wanted else np.nextafter(scale, np.float32(np.inf)))
    inner = f"{taken.name}.resized"
    for node in model.graph.node:
        node.input[:] = [inner if name == taken.name else name for name in node.input]
    model.graph.initializer.append(helper.make_tensor("compress.scales", TensorProto.FLOAT, [4], [1.0, 1.0, *scales]))
    options: dict[str, Any] = {"antialias": 1, "exclude_outside": 1} if smaller else {}
    model.graph.node.insert(
        0, helper.make_node("Resize", [taken.name, "", "compress.scales"], [inner], mode="linear", **options)
    )
    for dimension, value in zip(taken.type.tensor_type.shape.dim[2:], size, strict=True):
        dimension.dim_value = value
    write_atomic(path, model.SerializeToString())


def merge_members(members: list[Path], path: Path, *, recipe_digest: str) -> None:
    """Write one ONNX file that answers log 1/M Σ_m softmax(z_m) of the files `members`, which take the same input."""
    import onnx
    from onnx import TensorProto, compose, helper

    models = [compose.add_prefix(onnx.load(file), f"member{i}.") for i, file in enumerate(members, 1)]
    first, taken, given = models[0], onnx.load(members[0]).graph.input[0], onnx.load(members[0]).graph.output[0]
    nodes, logs = [], []
    for model in models:
        inner, answer = model.graph.input[0].name, model.graph.output[0].name
        for node in model.graph.node:
            node.input[:] = [taken.name if name == inner else name for name in node.input]
            nodes.append(node)
        logs.append(f"{answer}.log")
        nodes.append(helper.make_node("LogSoftmax", [answer], [f"{answer}.normalised"], axis=1))
        nodes.append(helper.make_node("Unsqueeze", [f"{answer}.normalised", "members.axis"], [logs[-1]]))
    nodes += [
        helper.make_node("Concat", logs, ["members.logs"], axis=2),
        helper.make_node("ReduceLogSumExp", ["members.logs", "members.axis"], ["members.sum"], keepdims=0),
        helper.make_node("Sub", ["members.sum", "members.count"], [given.name]),
    ]
    constants = [
        helper.make_tensor("members.axis", TensorProto.INT64, [1], [2]),
        helper.make_tensor("members.count", TensorProto.FLOAT, [], [math.log(len(members))]),
    ]
    weights = [tensor for model in models for tensor in model.graph.initializer]
    del first.graph.node[:], first.graph.initializer[:], first.graph.input[:], first.graph.output[:]
    first.graph.node.extend(nodes)
    first.graph.initializer.extend([*weights, *constants])
    first.graph.input.append(taken)
    first.graph.output.append(given)
    for model in models[1:]:
        first.graph.value_info.extend(model.graph.value_info)
        first.functions.extend(model.functions)
    for entry in first.metadata_props:
        if entry.key == "compress.network":
            entry.value = f"the mean of {len(members)} × {entry.value}"
        if entry.key == "compress.recipe_digest":
            entry.value = recipe_digest
    onnx.checker.check_model(first, full_check=True)
    write_atomic(path, first.SerializeToString())


def _drop_local_paths(model: Any) -> None:
    """The exporter notes stack traces with this machine's paths in every node: they must not ship."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    del model.graph.metadata_props[:]


def write_golden(path: Path, images: np.ndarray, logits: np.ndarray) -> None:
    """Golden samples: uint8 images `[N,H,W,C]` and the float32 logits `[N,K]` that the artifact gave for them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, logits=logits.astype(np.float32))
    write_atomic(path, buffer.getvalue())


def golden_path(artifact: Path) -> Path:
    return artifact.with_suffix(".golden.npz")


def compare(expected: np.ndarray, got: np.ndarray) -> dict[str, Any]:
    """Parity facts of two logit tables `[N,K]`. Raises CompressError when nothing was compared."""
    if len(expected) == 0 or expected.shape != got.shape:
        raise CompressError(
            f"nothing to compare: {expected.shape} logits against {got.shape}", code="E-ANSWERS-CHANGED"
        )
    spread = float(expected.max() - expected.min()) or 1.0
    difference = np.abs(expected - got)
    finite = bool(np.isfinite(got).all() and np.isfinite(expected).all())
    return {
        "images": len(expected),
        "top1_agreement_fraction": float((expected.argmax(1) == got.argmax(1)).mean()),
        "max_difference": float(difference.max()) if finite else None,
        "max_difference_of_spread": float(difference.max() / spread) if finite else None,
        "finite": finite,
    }


def check_parity(facts: dict[str, Any], what: str) -> None:
    """Raises CompressError when the exported file does not answer as the network does."""
    if not facts["finite"]:
        raise CompressError(
            f"{what}: logits of the network or of the exported file are not all finite numbers, over {facts['images']} "
            "images",
            code="E-ANSWERS-CHANGED",
            hint="train with a lower rate, or look for layers whose weights have become huge",
        )
    if facts["max_difference_of_spread"] > PARITY_TOLERANCE:
        raise CompressError(
            f"{what}: the exported file differs from the network by {facts['max_difference_of_spread']} of the "
            f"logits' spread over {facts['images']} images (allowed: {PARITY_TOLERANCE:g}); top-1 agrees on "
            f"{facts['top1_agreement_fraction']:.2%}",
            code="E-ANSWERS-CHANGED",
        )
