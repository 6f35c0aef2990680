"""PyTorch on the CPU, as a network runs before any export: the baseline of the gain from deployment."""

import os
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "torch>=2.10"
FORMAT = "torch"
# Against torch itself: another number of threads or another batch size changes only the order of the sums.
TOLERANCE = {"float32": 1e-4}


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("torch") else f"torch is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it and the code that loads networks is part of this call."""
    import torch

    # Brings torchvision with it, whose import would otherwise be counted as loading the artifact.
    import_module("compress.network")
    return torch.__version__


def open_session(path: str, threads: int) -> Any:
    """The network that `compress.network.save` wrote into the folder `path`, in evaluation mode.

    COMPRESS_PLUGINS names the Python files that define networks of the user's own, apart by `os.pathsep`.
    """
    import torch

    from compress.network import load

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    plugins = tuple(map(Path, filter(None, os.environ.get("COMPRESS_PLUGINS", "").split(os.pathsep))))
    return load(Path(path), plugins).eval()


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    import torch

    with torch.no_grad():
        return session(torch.from_numpy(inputs)).float().numpy()


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from torch."""
    import torch

    return {
        "device": str(next(session.parameters()).device),
        "intra_op_threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "fixed_batch": 0,
    }
