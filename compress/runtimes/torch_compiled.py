"""PyTorch on the CPU, compiled by TorchInductor: what torch itself makes of the network, before any export."""

import os
import shutil
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "torch>=2.10"
FORMAT = "torch"
# Fused operators sum in another order.
TOLERANCE = {"float32": 1e-3}
# One C++ file for each fused group of operators: 140 s were seen for ResNet-20 on two busy cores.
START_ALLOWANCE_S = 900.0


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    if not util.find_spec("torch"):
        return f"torch is not installed: pip install '{REQUIRES}'"
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return f"TorchInductor needs a C++ compiler on the PATH, g++ say, beside pip install '{REQUIRES}'"
    return ""


def version() -> str:
    """Version of the library; importing it and the code that loads networks is part of this call."""
    import torch

    # Brings torchvision with it, whose import would otherwise be counted as loading the artifact.
    import_module("compress.network")
    return torch.__version__


def open_session(path: str, threads: int) -> Any:
    """The network that `compress.network.save` wrote into the folder `path`; the first images of each shape compile it.

    COMPRESS_PLUGINS names the Python files that define networks of the user's own, apart by `os.pathsep`.
    """
    # Beside the network, so that every visit of one measurement finds what the first one compiled.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(path).parent / "inductor")
    import torch

    from compress.network import load

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    plugins = tuple(map(Path, filter(None, os.environ.get("COMPRESS_PLUGINS", "").split(os.pathsep))))
    return torch.compile(load(Path(path), plugins).eval(), dynamic=False)


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
        "backend": "inductor",
        "intra_op_threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "fixed_batch": 1,  # any other batch would be compiled anew
    }
