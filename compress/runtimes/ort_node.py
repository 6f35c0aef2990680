"""ONNX Runtime Web in Node: the same WebAssembly as in a browser, for servers and desktop apps in JavaScript."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "onnxruntime-web>=1.30"
FORMAT = "onnx"
# As for ort_web: the same bytes of WebAssembly.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    from compress import web_kit

    if shutil.which("node") is None:
        return "no `node` on the PATH: install Node.js 18 or newer"
    if not web_kit.version(web_kit.default_folder()):
        return "ONNX Runtime Web is not here: compress kit web"
    return ""


def version() -> str:
    """Version of ONNX Runtime Web."""
    from compress import web_host, web_kit  # noqa: F401

    return web_kit.version(web_kit.default_folder())


def open_session(path: str, threads: int) -> Any:
    """The model in a Node process of its own. RuntimeError when it took another number of threads."""
    from compress import web_host, web_kit

    package = web_kit.package_folder(web_kit.default_folder())

    def command(url: str, home: Path) -> list[str]:
        return [shutil.which("node") or "node", str(web_host.CLIENT), url, f"{(package / 'dist').as_uri()}/"]

    return web_host.Session(Path(path), package, threads, command)


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return session.ask(inputs)[0]


def timed(session: Any, inputs: np.ndarray) -> tuple[int, int]:
    """(ns of one inference by Node's own clock, 0): handing the images over is the benchmark's affair alone."""
    return session.ask(inputs)[1], 0


def effective(session: Any) -> dict[str, Any]:
    """The settings in effect, as Node gives them back."""
    return session.effective()
