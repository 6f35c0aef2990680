"""PyTorch on an NVIDIA GPU, the network run step by step as torch does by itself."""

import os
import time
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "torch>=2.10"
FORMAT = "torch"
# TensorFloat-32 is off: only the order of sums differs from the CPU's.
TOLERANCE = {"float32": 1e-3}


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    if not util.find_spec("torch"):
        return f"torch is not installed: pip install '{REQUIRES}'"
    import torch

    if torch.version.cuda is None:
        return f"this torch is built without CUDA: pip install '{REQUIRES}' gives the full build on Linux"
    return "" if torch.cuda.is_available() else f"torch sees no CUDA device; with one, pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it and the code that loads networks is part of this call."""
    import torch

    import_module("compress.network")
    return f"{torch.__version__}, CUDA {torch.version.cuda}"


def open_session(path: str, threads: int) -> Any:
    """The network that `compress.network.save` wrote into the folder `path`, on GPU 0, in evaluation mode.

    COMPRESS_PLUGINS names the Python files that define networks of the user's own, apart by `os.pathsep`.
    """
    import torch

    from compress.network import load

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plugins = tuple(map(Path, filter(None, os.environ.get("COMPRESS_PLUGINS", "").split(os.pathsep))))
    return load(Path(path), plugins).eval().to("cuda")


def _ask(session: Any, inputs: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Logits, and the ns of copying the images to the GPU, of running there, and of copying the logits back."""
    import torch

    times = [time.perf_counter_ns()]
    with torch.no_grad():
        images = torch.from_numpy(inputs).to("cuda")
        torch.cuda.synchronize()
        times.append(time.perf_counter_ns())
        logits = session(images).float()
        torch.cuda.synchronize()
        times.append(time.perf_counter_ns())
        answer = logits.cpu().numpy()
    times.append(time.perf_counter_ns())
    return answer, [after - before for before, after in zip(times, times[1:], strict=False)]


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return _ask(session, inputs)[0]


def timed(session: Any, inputs: np.ndarray) -> tuple[int, int]:
    """(ns of one inference, copies included; ns of the copies to the GPU and back)."""
    there, running, back = _ask(session, inputs)[1]
    return there + running + back, there + back


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from torch."""
    import torch

    return {
        "device": torch.cuda.get_device_name(next(session.parameters()).device),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "intra_op_threads": torch.get_num_threads(),
        "fixed_batch": 0,
    }
