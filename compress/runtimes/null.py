"""No runtime at all: returns at once. What it takes is the measurement's own overhead."""

from typing import Any

import numpy as np

REQUIRES = "numpy>=1.26"
FORMAT = "onnx"
# It answers nothing, so there is nothing to compare.
TOLERANCE: dict[str, float] = {}


def unavailable() -> str:
    """Never: it needs nothing."""
    return ""


def version() -> str:
    """Its answer, of numpy."""
    return np.__version__


def open_session(path: str, threads: int) -> Any:
    """Nothing is opened."""
    return threads


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Zeros float32 `[B,1]`."""
    return np.zeros((len(inputs), 1), dtype=np.float32)


def effective(session: Any) -> dict[str, Any]:
    """The threads that were asked for and not used."""
    return {"intra_op_threads": session, "fixed_batch": 0}
