"""ONNX Runtime on the CPU: the reference runtime of the exported artifact."""

from importlib import metadata, util
from typing import Any

import numpy as np

REQUIRES = "onnxruntime>=1.21"
FORMAT = "onnx"
# Largest |difference| from torch's logits, as a share of their range (max - min over all images and classes).
# float32: the same sums in another order after fusion; 5e-4 of logits that span about 10 were seen. int8: rounding of
# weights and activations to 256 levels, layer upon layer; a wrong scale or channel order costs half the range or more.
TOLERANCE = {"float32": 1e-3, "float16": 0.02, "int8_weights": 0.1, "int8": 0.25}
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import onnxruntime

session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: image})[0]
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    if util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: pip install '{REQUIRES}'"
    if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            f"pip uninstall onnxruntime onnxruntime-gpu, then pip install '{REQUIRES}'"
        )
    return ""


def _installed(distribution: str) -> bool:
    # by name: reading what all distributions say of themselves takes longer than importing the runtime
    return next(iter(metadata.Distribution.discover(name=distribution)), None) is not None


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import onnxruntime

    return onnxruntime.__version__


def open_session(path: str, threads: int) -> Any:
    """A session on the CPU with exactly `threads` threads inside an operator and one across operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from the session."""
    options = session.get_session_options()
    batch = session.get_inputs()[0].shape[0]
    return {
        "providers": session.get_providers(),
        "intra_op_threads": options.intra_op_num_threads,
        "inter_op_threads": options.inter_op_num_threads,
        "optimisation": options.graph_optimization_level.name,
        "spinning": options.get_session_config_entry("session.intra_op.allow_spinning") == "1",
        "fixed_batch": batch if isinstance(batch, int) else 0,
    }


def describe(session: Any) -> dict[str, Any]:
    """The file's contract: names, shapes and types of inputs and outputs, and its metadata."""
    meta = session.get_modelmeta()
    return {
        "inputs": [{"name": v.name, "shape": list(v.shape), "type": v.type} for v in session.get_inputs()],
        "outputs": [{"name": v.name, "shape": list(v.shape), "type": v.type} for v in session.get_outputs()],
        "metadata": dict(meta.custom_metadata_map),
        "producer": meta.producer_name,
    }
