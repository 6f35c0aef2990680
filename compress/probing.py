"""What a runtime really does here: a tiny network converted for it, opened, asked, and its settings read back."""

from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, conversion
from compress.child import workspace
from compress.errors import CompressError
from compress.store import Store, file_digest
from compress.types import Artifact

SIZE, CHANNELS, CLASSES = 16, 3, 10
TOLERANCE_OF_SPREAD = 5e-3


def tiny_network(path: Path) -> Artifact:
    """Writes the ONNX file `[batch,3,16,16]` → 3x3 convolution → ReLU → mean → 10 logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    weights = {
        "w": draw.normal(0, 0.3, (8, CHANNELS, 3, 3)), "b": draw.normal(0, 0.1, 8),
        "head": draw.normal(0, 1, (CLASSES, 8)), "bias": np.zeros(CLASSES),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["logits"], transB=1),
    ]
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [taken], [given], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return Artifact(
        path=path, digest=file_digest(path), format="onnx", precision="float32", stage="probe",
        size_bytes=path.stat().st_size, parameters=0, macs=0, input_shape=(CHANNELS, SIZE, SIZE),
        class_names=tuple(map(str, range(CLASSES))),
    )  # fmt: skip


def settings(runtime: str, store: Store, threads: int) -> dict[str, Any]:
    """The settings in effect when `threads` are asked for. Raises CompressError where it cannot run, or errs."""
    images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    with workspace(store.root / "scratch") as work:
        artifact = tiny_network(work / "probe.onnx")
        expected = bench.answers(artifact, "ort_cpu", images, threads=1, scratch=work)
        made, _ = conversion.converted(store, artifact, runtime)
        got, facts = bench.answers_and_facts(made, runtime, images, threads=threads, scratch=work)
    difference = float(np.abs(got - expected).max() / np.ptp(expected))
    if not difference <= TOLERANCE_OF_SPREAD:
        raise CompressError(
            f"{runtime} answers wrongly: a difference of {difference:.1e} of the logits' spread",
            code="E-ANSWERS-DIFFER",
        )
    return facts["effective"]
