"""ONNX Runtime with TensorRT, which compiles the network for one GPU; no part of it may fall back to the CPU."""

import ctypes
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "onnxruntime-gpu[cuda,cudnn]>=1.24' 'tensorrt>=10"
FORMAT = "onnx"
# As for ort_cuda: TensorFloat-32 and half precision are off, so that only the order of sums differs.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8": 0.25}
START_ALLOWANCE_S = 900.0

_PROVIDER = "TensorrtExecutionProvider"
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import onnxruntime
import tensorrt  # loads the libraries, which pip put where no loader looks

onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["TensorrtExecutionProvider"])
assert session.get_providers()[0] == "TensorrtExecutionProvider", "it fell back"
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
    for module in ("onnxruntime", "tensorrt"):
        if util.find_spec(module) is None:
            return f"{module} is not installed: pip install '{REQUIRES}'"
    import onnxruntime

    if _PROVIDER not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no TensorRT provider: pip uninstall onnxruntime; pip install '{REQUIRES}'"
    return ""


def _no_device() -> str:
    """Asks the driver itself: the runtime lists its provider even where there is no GPU."""
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

    return f"{onnxruntime.__version__}, TensorRT {metadata.version('tensorrt')}"


def open_session(path: str, threads: int) -> Any:
    """A session on GPU 0. RuntimeError when TensorRT did not load; ONNX Runtime's own error when it refuses a node."""
    import onnxruntime
    import tensorrt  # noqa: F401  loads the libraries, which pip put where no loader looks

    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a node that TensorRT does not take would otherwise run on the CPU, under TensorRT's name
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_int8_enable": "1",  # allows it; only what the file quantizes is
        # compiling takes up to minutes: every visit of one measurement finds what the first one made
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(Path(path).parent),
    }
    session = onnxruntime.InferenceSession(path, options, providers=[(_PROVIDER, settings)])
    if session.get_providers()[0] != _PROVIDER:
        raise RuntimeError(f"asked for {_PROVIDER}, got {session.get_providers()[0]}; pip install '{REQUIRES}'")
    return session


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
        "fixed_batch": batch if isinstance(batch, int) else 0,
    }
