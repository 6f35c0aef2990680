"""ONNX Runtime on an NVIDIA GPU; refuses to run when the CPU would silently take over."""

import ctypes
import json
import tempfile
import time
from collections import Counter
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "onnxruntime-gpu[cuda,cudnn]>=1.24"
FORMAT = "onnx"
# As for ort_cpu; TensorFloat-32, which keeps 10 bits of the mantissa, is switched off below.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}

_PROVIDER = "CUDAExecutionProvider"
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import onnxruntime

onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CUDAExecutionProvider"])
assert session.get_providers()[0] == "CUDAExecutionProvider", "it fell back to the CPU"
logits = session.run(None, {session.get_inputs()[0].name: image})[0]
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    device = _no_device()
    if device:
        return f"no CUDA device: {device}; with one, pip install '{REQUIRES}'"
    if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            f"pip uninstall onnxruntime onnxruntime-gpu, then pip install '{REQUIRES}'"
        )
    if util.find_spec("onnxruntime") is None:
        return f"onnxruntime-gpu is not installed: pip install '{REQUIRES}'"
    import onnxruntime

    if _PROVIDER not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime has no CUDA provider: pip uninstall onnxruntime; pip install '{REQUIRES}'"
    return ""


def _no_device() -> str:
    """Asks the driver itself: the runtime lists its CUDA provider even where there is no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver library libcuda.so.1 is not on this machine"
    status, count = driver.cuInit(0), ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver answers with error {status}"
    return "" if count.value > 0 else "the NVIDIA driver shows no GPU"


def _installed(distribution: str) -> bool:
    # by name: reading what all distributions say of themselves takes longer than importing the runtime
    return next(iter(metadata.Distribution.discover(name=distribution)), None) is not None


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import onnxruntime

    return onnxruntime.__version__


def open_session(path: str, threads: int) -> Any:
    """A session on GPU 0. RuntimeError when the runtime fell back to the CPU."""
    return _open(path, threads, "")


def _open(path: str, threads: int, profile: str) -> Any:
    """The session; with `profile`, the beginning of a file's path, it notes what runs where."""
    import onnxruntime

    # Finds the CUDA and cuDNN libraries that pip installed; the loader does not look there by itself.
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = onnxruntime.InferenceSession(path, options, providers=[(_PROVIDER, {"device_id": "0", "use_tf32": "0"})])
    actual = session.get_providers()
    if actual[0] != _PROVIDER:
        raise RuntimeError(
            f"asked for {_PROVIDER}, got {actual[0]}: the CUDA or cuDNN libraries did not load; "
            f"pip install '{REQUIRES}'"
        )
    return session


def placement(path: str, threads: int, inputs: np.ndarray) -> dict[str, int]:
    """How many nodes run in which provider, from one profiled inference of a session of its own: a provider that the
    session names first may still leave nodes to the CPU. RuntimeError when it leaves all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = _open(path, threads, str(Path(folder, "profile")))
        session.run(None, {session.get_inputs()[0].name: inputs})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    places = {
        event["name"]: event["args"]["provider"] for event in events if "provider" in event.get("args", {})
    }  # fmt: skip
    nodes = dict(Counter(places.values()))
    if not nodes.get(_PROVIDER):
        raise RuntimeError(f"none of its {sum(nodes.values())} nodes runs in {_PROVIDER}: {nodes}")
    return nodes


def _ask(session: Any, inputs: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Logits, and the ns of copying the images to the GPU, of running there, and of copying the logits back.

    Inputs and outputs are bound to the GPU's memory: without that, ONNX Runtime copies inside `run`, unseen.
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    times = [time.perf_counter_ns()]
    binding.bind_ortvalue_input(session.get_inputs()[0].name, OrtValue.ortvalue_from_numpy(inputs, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)
    binding.synchronize_inputs()
    times.append(time.perf_counter_ns())
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    times.append(time.perf_counter_ns())
    logits = binding.copy_outputs_to_cpu()[0]
    times.append(time.perf_counter_ns())
    return logits, [after - before for before, after in zip(times, times[1:], strict=False)]


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return _ask(session, inputs)[0]


def timed(session: Any, inputs: np.ndarray) -> tuple[int, int]:
    """(ns of one inference, copies included; ns of the copies to the GPU and back)."""
    there, running, back = _ask(session, inputs)[1]
    return there + running + back, there + back


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from the session."""
    options = session.get_session_options()
    batch = session.get_inputs()[0].shape[0]
    return {
        "providers": session.get_providers(),
        "provider_options": session.get_provider_options().get(_PROVIDER, {}),
        "intra_op_threads": options.intra_op_num_threads,
        "inter_op_threads": options.inter_op_num_threads,
        "optimisation": options.graph_optimization_level.name,
        "fixed_batch": batch if isinstance(batch, int) else 0,
    }
