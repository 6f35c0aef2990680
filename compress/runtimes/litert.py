"""LiteRT (TensorFlow Lite) with its XNNPACK delegate on the CPU: what Android apps and many boards run."""

import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "ai-edge-litert>=2.1"
CONVERTS_WITH = "litert-torch>=0.9"
CONVERTER_NOTE = (
    "it wants torch below 2.15, and pip exchanges a newer one: `compress kit litert` gives it an environment of its own"
)
PACKAGES = ("ai-edge-litert", "litert-torch", "torch")
FORMAT = "tflite"
# float32: XNNPACK sums in another order. int8: the ONNX file's own integers and scales; XNNPACK rounds as ONNX Runtime
# does up to the last level, and a level's difference grows from layer to layer.
TOLERANCE = {"float32": 1e-3, "int8": 0.25}
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
from ai_edge_litert.interpreter import Interpreter

model = Interpreter(str(HERE / "model.tflite"), num_threads=1)
model.allocate_tensors()
output = model.get_output_details()[0]
model.set_tensor(model.get_input_details()[0]["index"], image)
model.invoke()
logits = model.get_tensor(output["index"]).astype(np.float32)
scale, zero = output["quantization"]
logits = (logits - zero) * scale if scale else logits  # an int8 model answers in int8
"""
# times a file on a phone, see runtimes/__init__.py
NATIVE = {
    "tool": "benchmark_model",
    "source": "https://storage.googleapis.com/litert/binaries/latest/android_arm64/benchmark_model",
    "note": "random inputs, made by the tool",
}
_COUNT = re.compile(
    r"count=(\d{1,9})(?: first=\d+)? curr=(\d{1,15})"
    r"(?: min=(\d{1,15}) max=(\d{1,15}) avg=(\S{1,20}) std=\S+)?(?:\(all same\))?(?: p5=\d+ median=(\d{1,15}))?"
)
_TIMINGS = re.compile(r"Inference timings in us: Init: (\S{1,20}), First inference: (\S{1,20}),")
OUTPUT = "; of an int8 model int8, with the scale and zero point of its output tensor"


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("ai_edge_litert") else f"ai-edge-litert is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import ai_edge_litert.interpreter  # noqa: F401

    return metadata.version("ai-edge-litert")


def kit() -> Path | None:
    """The environment that converts instead of this one: a kit, where one was made."""
    from compress import litert_kit

    folder = litert_kit.default_folder()
    return folder if litert_kit.packages(folder) else None


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """`model.tflite` from the ONNX file, by way of a torch module that does the same: batch 1, float32 NCHW in. An int8
    file keeps the ONNX file's levels and scales; its output is int8 with a scale of its own.

    RuntimeError where the converter is missing, InputRejected for an operator that the module has no counterpart of.
    """
    if util.find_spec("litert_torch") is None:
        raise RuntimeError(f"litert-torch is not installed: pip install '{CONVERTS_WITH}'; {CONVERTER_NOTE}")
    import litert_torch
    import onnx
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from compress.rebuilt import Rebuilt

    model = onnx.load(source)
    shape = [1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    # The quantizer is asked for nothing but how the module is quantized already: per channel, static.
    scheme = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    quantized = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(scheme)) if precision == "int8" else None
    network = Rebuilt(model, float_weights=True).eval()
    converted = litert_torch.convert(network, (torch.zeros(shape),), quant_config=quantized)
    converted.export(str(folder / "model.tflite"))
    tools = {name: metadata.version(name) for name in ("litert-torch", "torch")}
    return {"tools": tools, "notes": _notes(folder)}


def _notes(folder: Path) -> list[str]:
    """What of the graph XNNPACK takes; it runs in one go what it takes, and islands cost time."""
    operators = [row["op_name"] for row in open_session(str(folder), 1)._get_ops_details()]
    parts, islands = operators.count("DELEGATE"), operators.count("QUANTIZE") + operators.count("DEQUANTIZE")
    plural = "s" * (parts != 1)
    return [f"{parts} part{plural} delegated to XNNPACK", f"{islands} QUANTIZE and DEQUANTIZE operators"]


def open_session(path: str, threads: int) -> Any:
    """An interpreter of `model.tflite` in the folder `path`, the XNNPACK delegate on as it is by default."""
    from ai_edge_litert.interpreter import Interpreter

    session = Interpreter(str(Path(path) / "model.tflite"), num_threads=threads)
    session.allocate_tensors()
    if all(row["op_name"] != "DELEGATE" for row in session._get_ops_details()):
        raise RuntimeError("the XNNPACK delegate took no part of the graph")
    session.asked_threads = threads
    return session


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[1,K]` of one image float32 `[1,C,H,W]` in [0,1]; int8 logits are scaled to float."""
    session.set_tensor(session.get_input_details()[0]["index"], inputs)
    session.invoke()
    output = session.get_output_details()[0]
    logits = session.get_tensor(output["index"])
    if logits.dtype == np.float32:
        return logits
    scale, zero = output["quantization"]
    return (logits.astype(np.float32) - zero) * np.float32(scale)


def effective(session: Any) -> dict[str, Any]:
    """The settings in effect. LiteRT does not give its number of threads back: it is the one that was asked for."""
    operators = [row["op_name"] for row in session._get_ops_details()]
    return {
        "delegates": operators.count("DELEGATE"),
        "input": session.get_input_details()[0]["dtype"].__name__,
        "output": session.get_output_details()[0]["dtype"].__name__,
        "asked_threads": session.asked_threads,
        "fixed_batch": int(session.get_input_details()[0]["shape"][0]),
    }


def native_words(
    model: str, shape: tuple[int, int, int], threads: int, warmup: int, runs: int, result: str
) -> list[str]:  # fmt: skip
    """Arguments of `benchmark_model`: XNNPACK as it is by default, and numbers of runs instead of seconds."""
    return [
        f"--graph={model}/model.tflite", f"--num_threads={threads}", f"--warmup_runs={warmup}", "--warmup_min_secs=0",
        f"--num_runs={runs}", "--min_secs=0",
    ]  # fmt: skip


def native_facts(said: str, warmup: int) -> dict[str, Any]:
    """What `benchmark_model` tells of its warm-up and of its runs, in µs: a line each of `count=50 first=870 curr=861
    min=850 max=902 avg=863.1 std=8` (newer ones add ` p5=851 median=862 p95=880`; equal times are `count=50
    curr=861(all same)`), and a line of sums. Source: tensorflow/lite/tools/benchmark/benchmark_model.cc and
    `Stat::OutputToStream` in xla/tsl/util/stats_calculator.h. ValueError where these are missing.
    """
    counts, timings = _COUNT.findall(said), _TIMINGS.search(said)
    if len(counts) < 2 or timings is None:
        raise ValueError("no line of `count=… avg=…`, and of `Inference timings in us`")
    n, current, least, most, mean, median = counts[-1]
    facts = {
        "n": int(n), "mean_ns": 1e3 * float(mean or current), "min_ns": 1e3 * int(least or current),
        "max_ns": 1e3 * int(most or current), "warmup_runs": int(counts[-2][0]),
        "load_ns": 1e3 * float(timings[1]), "first_inference_ns": 1e3 * float(timings[2]),
    }  # fmt: skip
    return facts | ({"median_ns": 1e3 * int(median)} if median else {})
