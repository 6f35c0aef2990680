"""MNN (Alibaba) on the CPU: an engine of mobile apps. Float, half-precision weights, int8 weights."""

import ctypes
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "MNN>=3.6"
PACKAGES = ("MNN",)
FORMAT = "mnn"
# float32: its Winograd convolutions lose more digits than others; 3.2e-3 of a ResNet-18's spread were seen, while a
# wrong layer costs a tenth and more. int8 files are run with int8 weights and float activations: its own quantizer of
# activations crashes or gives wrong numbers.
TOLERANCE = {"float32": 5e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}
QUANTIZES_ITSELF = True

# times a file on a phone, see runtimes/__init__.py
NATIVE = {
    "tool": "benchmark.out",
    "source": "built from MNN's source with the Android NDK, -DMNN_BUILD_BENCHMARK=ON: https://github.com/alibaba/MNN",
    "note": "inputs are what its memory holds, no images",
}
_LOOPS = re.compile(r"Benchmarking\.\.\. loop = (\d{1,9}), warmup = (\d{1,9})")
_TIMES = re.compile(r"\[ - \] model\.mnn +max = +([\d.]{1,12}) ms +min = +([\d.]{1,12}) ms +avg = +([\d.]{1,12}) ms")
_LACKS = re.compile(r"These Op Not Support: *(.{1,200})")
_OPTIONS = {"float32": [], "float16": ["--fp16"]}
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
from MNN import expr, nn

# "high" keeps ARM from computing in half precision
manager = nn.create_runtime_manager(({"backend": 0, "numThread": 1, "precision": "high"},))
model = nn.load_module_from_file(str(HERE / "model.mnn"), [], [], runtime_manager=manager)
logits = np.array(model.forward([expr.const(image, list(image.shape), expr.NCHW)])[0].read())
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("MNN") else f"MNN is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import MNN  # noqa: F401

    return metadata.version("MNN")


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """`model.mnn` from the ONNX file; RuntimeError where MNN's converter makes none. Int8 of any kind becomes int8
    weights with float activations.
    """
    # The converter's own module: the command `mnnconvert` installs a package and reports its use to the network.
    import _tools
    import onnx

    from compress.float_twin import float_twin

    plain = folder.parent / "plain.onnx"
    onnx.save(float_twin(onnx.load(source)), plain)
    made = folder / "model.mnn"
    options = _OPTIONS.get(precision, ["--weightQuantBits", "8"])
    words = ["mnnconvert", "-f", "ONNX", "--modelFile", str(plain), "--MNNModel", str(made), "--bizCode", "x", *options]
    _tools.mnnconvert(words)
    if not made.exists():
        lacks = _LACKS.search(_said())
        raise RuntimeError(f"MNN has no {lacks[1].strip()}" if lacks else "MNN's converter wrote no file")
    notes = ["int8 weights, float activations"] if precision.startswith("int8") else []
    return {"tools": {"MNN": metadata.version("MNN")}, "notes": notes}


def _said() -> str:
    """What this process has written so far, where that goes into a file, as in a conversion: the library says no more
    than there why it made no model.
    """
    ctypes.CDLL(None).fflush(None)  # its words may wait in the buffers of C
    log = Path("/proc/self/fd/1")
    return log.read_text(errors="replace") if log.is_file() else ""


def open_session(path: str, threads: int) -> Any:
    """The module of `model.mnn` in the folder `path`, on the CPU, in float32."""
    from MNN import nn

    # The default would let ARM take half precision.
    settings = {"backend": 0, "numThread": threads, "precision": "high"}
    manager = nn.create_runtime_manager((settings,))
    module = nn.load_module_from_file(str(Path(path) / "model.mnn"), [], [], runtime_manager=manager)
    return module, settings


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    from MNN import expr

    given = expr.const(inputs, list(inputs.shape), expr.NCHW)
    return np.array(session[0].forward([given])[0].read(), dtype=np.float32)


def effective(session: Any) -> dict[str, Any]:
    """The settings in effect. MNN gives none of them back: they are the ones that were asked for."""
    _, settings = session
    return {"asked_precision": settings["precision"], "asked_threads": settings["numThread"], "fixed_batch": 0}


def native_words(
    model: str, shape: tuple[int, int, int], threads: int, warmup: int, runs: int, result: str
) -> list[str]:  # fmt: skip
    """Arguments of `benchmark.out`: the folder, loops, warm-up, CPU, threads, and float32 (1: high precision)."""
    return [model, str(runs), str(warmup), "0", str(threads), "1"]


def native_facts(said: str, warmup: int) -> dict[str, Any]:
    """What `benchmark.out` tells, in ms with three digits: `--------> Benchmarking... loop = 100, warmup = 10` and
    `[ - ] model.mnn   max =    1.420 ms  min =    1.200 ms  avg =    1.260 ms`. Source: `displayStats` in alibaba/MNN's
    benchmark/benchmark.cpp; weights are replaced in files of its own benchmark only (`Revert::initialize` in
    tools/cpp/revertMNNModel.cpp). ValueError where these lines are missing.
    """
    loops, times = _LOOPS.search(said), _TIMES.search(said)
    if loops is None or times is None:
        raise ValueError("no `[ - ] model.mnn  max = … ms  min = … ms  avg = … ms`")
    most, least, mean = (1e6 * float(value) for value in times.groups())
    return {
        "n": int(loops[1]), "mean_ns": mean, "min_ns": least, "max_ns": most, "warmup_runs": int(loops[2]),
        "rounding_ns": 500.0,
    }  # fmt: skip
