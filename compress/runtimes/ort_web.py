"""ONNX Runtime Web in a headless Chromium: WebAssembly with SIMD and threads, as in a web page or a hybrid app."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "onnxruntime-web>=1.30"
FORMAT = "onnx"
# Float: ONNX Runtime's kernels for another instruction set. Int8: these kernels sum products without saturation.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A browser that asks nobody for anything, and does not slow down a page because nobody looks at it.
_FLAGS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-extensions", "--disable-breakpad",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-dev-shm-usage", "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# in the folders of `compress convert`, where it reads `sample.json`; a page does the same with fetch() for the files
SCRIPT = """
import * as ort from "onnxruntime-web"; // in a page "onnxruntime-web/wasm" is enough, and smaller

ort.env.wasm.numThreads = 1; // more need a page that is cross-origin isolated
const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", image, shape) });
const logits = outputs[session.outputNames[0]].data;
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    from compress import web_kit

    if not any(map(shutil.which, PROGRAMS)):
        return "no Chromium or Chrome on the PATH: install your system's package `chromium`"
    if not web_kit.version(web_kit.default_folder()):
        return "ONNX Runtime Web is not here: compress kit web"
    return ""


def version() -> str:
    """Version of ONNX Runtime Web."""
    from compress import web_host, web_kit  # noqa: F401

    return web_kit.version(web_kit.default_folder())


def open_session(path: str, threads: int) -> Any:
    """The model in a page of a browser of its own. RuntimeError when the page took another number of threads."""
    from compress import web_host, web_kit

    program = next(filter(None, map(shutil.which, PROGRAMS)))
    # Chromium refuses to be root inside its own sandbox; what the page loads is the model and these files.
    own = ["--no-sandbox"] if os.geteuid() == 0 else []

    def command(url: str, home: Path) -> list[str]:
        return [program, *_FLAGS, *own, f"--user-data-dir={home / 'profile'}", url]

    package = web_kit.package_folder(web_kit.default_folder())
    return web_host.Session(Path(path), package, threads, command)


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return session.ask(inputs)[0]


def timed(session: Any, inputs: np.ndarray) -> tuple[int, int]:
    """(ns of one inference by the page's own clock, 0): handing the images over is the benchmark's affair alone."""
    return session.ask(inputs)[1], 0


def effective(session: Any) -> dict[str, Any]:
    """The settings in effect, as the page gives them back."""
    return session.effective()
