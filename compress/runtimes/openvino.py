"""OpenVINO on the CPU: reads the ONNX file itself, float or QDQ; for Intel's desktops, servers and boards."""

import sys
from importlib import util
from typing import Any

import numpy as np

REQUIRES = "openvino>=2026.4"
PACKAGES = ("openvino",)
FORMAT = "onnx"
# float32: sums in another order; bfloat16, which OpenVINO takes by itself where the CPU has it, is switched off below.
# int8: it fuses other operators than ONNX Runtime does, so it rounds in other places.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}

# by itself it would take one thread a core, whatever number is asked for
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_HYPER_THREADING": True,
}  # fmt: skip
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import sys

sys.modules["openvino_telemetry"] = None  # with it, importing openvino reports its use to the network
import openvino

# bfloat16, where the CPU has it, would be the default
settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
model = openvino.Core().compile_model(HERE / "model.onnx", "CPU", settings)
logits = model([image])[0]
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("openvino") else f"openvino is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it is part of this call."""
    return _openvino().__version__.partition("-")[0]  # the rest names a build


def _openvino() -> Any:
    """The library, without the part that reports each import to the network and leaves an identity in `~/intel`.

    There is no switch for that: `openvino.tools.ovc` sends an event as it is imported, unless a file of consent in the
    user's home says no. It has a stand-in of its own for where that part is not installed.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def open_session(path: str, threads: int) -> Any:
    """The model compiled for the CPU, in float32 where it is float. RuntimeError when it took another precision."""
    session = _openvino().Core().compile_model(path, "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads})
    got = session.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if got != "f32":
        raise RuntimeError(f"asked OpenVINO for f32, got {got}")
    return session


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return session([inputs])[0].copy()  # the array is the request's own memory, which the next call overwrites


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from the compiled model."""
    batch = session.input(0).get_partial_shape()[0]
    operators = [node.get_rt_info() for node in session.get_runtime_model().get_ordered_ops()]
    kinds = [str(info["runtimePrecision"].astype(str)) for info in operators if "runtimePrecision" in info]
    return {
        "device": session.get_property("EXECUTION_DEVICES"),
        "precision": session.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "operators_by_precision": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "intra_op_threads": session.get_property("INFERENCE_NUM_THREADS"),
        "streams": int(session.get_property("NUM_STREAMS")),
        "fixed_batch": batch.get_length() if batch.is_static else 0,
    }
