"""ONNX Runtime's own .ort format, which its small builds for apps read; here in the ordinary build, on the CPU."""

from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "onnxruntime>=1.24"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
FORMAT = "ort"
# The same kernels as ort_cpu's on the same graph, but for fusions that suit one machine only.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}

# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import onnxruntime

session = onnxruntime.InferenceSession(HERE / "model.ort", providers=["CPUExecutionProvider"])
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


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """`model.ort` of the ONNX file, its graph optimised as far as is right on every machine: the last level would bake
    in memory layouts of this one.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    if _signed(source):  # made for ARM: else this machine's optimiser rewrites int8 to what suits x86
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return {"tools": {"onnxruntime": onnxruntime.__version__}, "notes": []}


def _signed(source: Path) -> bool:
    """Whether the file's activations are int8, by the zero points of its QuantizeLinear nodes."""
    import onnx

    graph = onnx.load(source).graph
    constants = {each.name for each in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    zeros = {node.input[2] for node in nodes if len(node.input) > 2}
    return any(each.name in zeros and each.data_type == onnx.TensorProto.INT8 for each in graph.initializer)


def open_session(path: str, threads: int, *, arena: bool = True) -> Any:
    """A session of `model.ort` in the folder `path`, with `threads` threads inside an operator and one across."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = arena
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(Path(path) / "model.ort"), options, providers=["CPUExecutionProvider"])


def open_without_arena(path: str, threads: int) -> Any:
    """As `open_session`, but what an inference frees goes back to the system, where the arena would keep it."""
    return open_session(path, threads, arena=False)


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
        "arena": options.enable_cpu_mem_arena,
        "fixed_batch": batch if isinstance(batch, int) else 0,
    }
