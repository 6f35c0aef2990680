"""ONNX Runtime on the CPU: the reference runtime of the exported artifact."""

import re
from importlib import metadata, util
from typing import Any

import numpy as np

REQUIRES = "onnxruntime>=1.24"
FORMAT = "onnx"
# Largest |difference| from torch's logits, as a share of their range (max - min over all images and classes).
# float32: the same sums in another order after fusion; 5e-4 of logits that span about 10 were seen. int8: rounding of
# weights and activations to 256 levels, layer upon layer; a wrong scale or channel order costs half the range or more.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8_weights": 0.1, "int8": 0.25}
# times a file on a phone, see runtimes/__init__.py
NATIVE = {
    "tool": "onnxruntime_perf_test",
    "source": "built from ONNX Runtime's source with the Android NDK: ./build.sh --android --android_abi arm64-v8a "
    "--config Release --build_shared_lib",
    "note": "random inputs, made by the tool",
}
_RUN = re.compile(r"^[^,\n]*,([\d.e+-]{1,20}),(\d{1,15}),-?\d{1,9},\d{1,9}\r?$", re.MULTILINE)
_LOAD = re.compile(r"Session creation time cost: ([\d.e+-]{1,20}) s")
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import onnxruntime

session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: image})[0]
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    if util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: pip install '{REQUIRES}'"
    if all(_installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            f"pip uninstall onnxruntime onnxruntime-gpu, then pip install '{REQUIRES}'"
        )
    return ""


def _installed(distribution: str) -> bool:
    # by name: reading what all distributions say of themselves takes longer than importing the runtime
    return next(iter(metadata.Distribution.discover(name=distribution)), None) is not None


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import onnxruntime

    return onnxruntime.__version__


def open_session(path: str, threads: int, *, arena: bool = True) -> Any:
    """A session on the CPU with exactly `threads` threads inside an operator and one across operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = arena
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_without_arena(path: str, threads: int) -> Any:
    """As `open_session`, but what an inference frees goes back to the system, where the arena would keep it."""
    return open_session(path, threads, arena=False)


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[B,K]` of images float32 `[B,C,H,W]` in [0,1]."""
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from the session."""
    options = session.get_session_options()
    batch = session.get_inputs()[0].shape[0]
    return {
        "providers": session.get_providers(),
        "intra_op_threads": options.intra_op_num_threads,
        "inter_op_threads": options.inter_op_num_threads,
        "optimisation": options.graph_optimization_level.name,
        "arena": options.enable_cpu_mem_arena,
        "spinning": options.get_session_config_entry("session.intra_op.allow_spinning") == "1",
        "fixed_batch": batch if isinstance(batch, int) else 0,
    }


def describe(session: Any) -> dict[str, Any]:
    """The file's contract: names, shapes and types of inputs and outputs, and its metadata."""
    meta = session.get_modelmeta()
    return {
        "inputs": [{"name": v.name, "shape": list(v.shape), "type": v.type} for v in session.get_inputs()],
        "outputs": [{"name": v.name, "shape": list(v.shape), "type": v.type} for v in session.get_outputs()],
        "metadata": dict(meta.custom_metadata_map),
        "producer": meta.producer_name,
    }


def native_words(
    model: str, shape: tuple[int, int, int], threads: int, warmup: int, runs: int, result: str
) -> list[str]:  # fmt: skip
    """Arguments of `onnxruntime_perf_test`: inputs that it makes itself from a seed, the CPU, a number of runs (it
    knows no warm-up but one run, so these are the first of them), threads inside an operator and one across.
    """
    return [
        "-I", "-S", "1", "-e", "cpu", "-m", "times", "-r", str(warmup + runs), "-x", str(threads), "-y", "1", model,
        result,
    ]  # fmt: skip


def native_facts(said: str, warmup: int) -> dict[str, Any]:
    """What `onnxruntime_perf_test` writes into its result file, a line `name,0.00123,45678592,99,0` a run: seconds,
    peak bytes, CPU in %, number; and the seconds of making a session, on its output. Source:
    `PerformanceResult::DumpToFile` and `PerformanceRunner::Run` in microsoft/onnxruntime's
    onnxruntime/test/perftest/performance_runner.cc. ValueError where there are not more lines than `warmup`.
    """
    found, load = _RUN.findall(said), _LOAD.search(said)
    if len(found) <= warmup:
        raise ValueError(f"{len(found)} lines of single runs, more than {warmup} are needed")
    samples = [round(1e9 * float(seconds)) for seconds, _ in found]
    facts = {
        "samples_ns": samples[warmup:], "warmup_ns": samples[:warmup], "warmup_runs": warmup,
        "peak_rss_bytes": int(found[-1][1]),
    }  # fmt: skip
    return facts | ({"load_ns": 1e9 * float(load[1])} if load else {})
