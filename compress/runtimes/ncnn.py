"""ncnn (Tencent) on the CPU: an engine of mobile apps, small and without dependencies. Float, half-precision, int8."""

import os
import re
import subprocess
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "ncnn>=1.0.20260101"
CONVERTS_WITH = "pnnx>=20260101"
PACKAGES = ("ncnn", "pnnx", "numpy")
FORMAT = "ncnn"
# float32: the same sums in another order; float16: weights of 11 bits. int8: the ONNX file's weights, but symmetric
# activations, which is other rounding at every layer.
TOLERANCE = {"float32": 1e-3, "float16": 0.01, "int8": 0.25}
QUANTIZES_ITSELF = True
# times a network on a phone, see runtimes/__init__.py
NATIVE = {
    "tool": "benchncnn",
    "source": "built from ncnn's source with the Android NDK: https://github.com/Tencent/ncnn/tree/master/benchmark",
    "note": "it reads the network without its weights, which are zeros then, asks one constant image, and computes in "
    "half precision where the CPU can, which it has no switch for",
}
_LOOPS = re.compile(r"loop_count = (\d{1,9})\b")
_TIMES = re.compile(r"model\.ncnn\.param +min = +([\d.]{1,12}) +max = +([\d.]{1,12}) +avg = +([\d.]{1,12})")
_NATIVE_WARMUP = 8  # its own; with a GPU it would be 10
KNOWN_ISSUES = {
    "1.0.20261020": "half-precision arithmetic, its default on ARM, is wrong for depthwise layers of stride 2: off here"
}
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import ncnn

model = ncnn.Net()
model.opt.num_threads = 1
# wrong on ARM for depthwise layers of stride 2 in ncnn 1.0.20261020, and on by default
model.opt.use_fp16_arithmetic = False
model.load_param(str(HERE / "model.ncnn.param"))
model.load_model(str(HERE / "model.ncnn.bin"))
extractor = model.create_extractor()
extractor.input("in0", ncnn.Mat(image[0]).clone())
logits = np.array(extractor.extract("out0")[1])
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("ncnn") else f"ncnn is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it is part of this call."""
    import ncnn

    return ncnn.__version__


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """`model.ncnn.param` and `model.ncnn.bin` from the ONNX file, by pnnx's own program. An int8 file keeps the ONNX
    file's weights; its activations become symmetric, with the ranges that the file has.

    RuntimeError where pnnx is missing or makes no files, and for operators that ncnn has no layer of.
    """
    import onnx

    from compress.float_twin import float_twin, strides_as_pooling

    found = util.find_spec("pnnx")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(f"pnnx is not installed: pip install '{CONVERTS_WITH}'")
    model = onnx.load(source)
    shape = [1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    plain = folder.parent / "model.onnx"
    twin = strides_as_pooling(float_twin(model))  # ncnn has no Slice with a step
    twin.ir_version = min(twin.ir_version, 10)  # pnnx brings an ONNX Runtime of its own, which may be an older one
    onnx.save(twin, plain)
    command = [
        str(Path(found.submodule_search_locations[0]) / "pnnx"), str(plain),
        f"inputshape=[{','.join(map(str, shape))}]", f"fp16={int(precision == 'float16')}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, env={**os.environ})
    made = [folder.parent / f"model.ncnn.{part}" for part in ("param", "bin")]
    if done.returncode or not all(path.exists() for path in made):
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"pnnx ended with {done.returncode}: {words[-1] if words else 'no word'}")
    if lacks := _lacks(made[0]):
        raise RuntimeError(f"ncnn has no layer {', '.join(lacks)}")
    notes = []
    if precision == "int8":
        from compress import ncnn_int8

        counts = ncnn_int8.quantize(model, *made)
        kinds = {"int8_layers": "layers in int8", "float_layers": "in float", "six_bit_layers": "in 6 bits"}
        notes = [", ".join(f"{counts[kind]} {said}" for kind, said in kinds.items() if counts[kind])]
    for path in made:
        path.replace(folder / path.name)
    return {"tools": {"pnnx": metadata.version("pnnx"), "ncnn": metadata.version("ncnn")}, "notes": notes}


def _lacks(param: Path) -> list[str]:
    """The kinds of layers in the file that this ncnn does not know; pnnx hands such operators on as they are."""
    import ncnn

    kinds = {line.split()[0] for line in param.read_text(errors="replace").splitlines()[2:] if line.strip()}
    return sorted(kind for kind in kinds if ncnn.layer_to_index(kind) < 0)


def open_session(path: str, threads: int) -> Any:
    """The network of the two files in the folder `path`, on the CPU, computing in float32 or int8. Half precision stays
    off: on ARM its arithmetic is wrong for depthwise layers of stride 2 in ncnn 1.0.20261020.
    """
    import ncnn

    session = ncnn.Net()
    session.opt.num_threads = threads
    session.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(session.opt, option, False)
    for part, load in (("param", session.load_param), ("bin", session.load_model)):
        file = str(Path(path) / f"model.ncnn.{part}")
        if load(file):
            raise ValueError(f"ncnn cannot read {file}")
    return session


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[1,K]` of one image float32 `[1,C,H,W]` in [0,1]."""
    import ncnn

    extractor = session.create_extractor()
    # a Mat only points at numpy's memory, and what is extracted points at the extractor's: hence both copies
    extractor.input("in0", ncnn.Mat(np.ascontiguousarray(inputs[0])).clone())  # it ignores strides
    _, logits = extractor.extract("out0")
    return np.array(logits, dtype=np.float32)[None]


def effective(session: Any) -> dict[str, Any]:
    """The settings really in effect, read back from the network."""
    options = session.opt
    return {
        "fp16_storage": options.use_fp16_storage,
        "fp16_arithmetic": options.use_fp16_arithmetic,
        "bf16_storage": options.use_bf16_storage,
        "int8_inference": options.use_int8_inference,
        "intra_op_threads": options.num_threads,
        "fixed_batch": 1,
    }


def native_words(
    model: str, shape: tuple[int, int, int], threads: int, warmup: int, runs: int, result: str
) -> list[str]:  # fmt: skip
    """Arguments of `benchncnn`: loops, threads, all cores, no GPU, no pause of ten seconds, and the network."""
    channels, height, width = shape
    return [
        str(runs), str(threads), "0", "-1", "0", f"param={model}/model.ncnn.param",
        f"shape=[{width},{height},{channels}]",
    ]  # fmt: skip


def native_facts(said: str, warmup: int) -> dict[str, Any]:
    """What `benchncnn` tells, in ms with two digits: `loop_count = 100` and `…model.ncnn.param  min =    1.20  max =
    1.42  avg =    1.26`. Source: `benchmark` in Tencent/ncnn's benchmark/benchncnn.cpp. ValueError where it is missing,
    as of old versions, which take no file.
    """
    loops, times = _LOOPS.search(said), _TIMES.search(said)
    if loops is None or times is None:
        raise ValueError("no `model.ncnn.param  min = …  max = …  avg = …`; versions that take no `param=` say none")
    least, most, mean = (1e6 * float(value) for value in times.groups())
    return {
        "n": int(loops[1]), "mean_ns": mean, "min_ns": least, "max_ns": most, "warmup_runs": _NATIVE_WARMUP,
        "rounding_ns": 5e3,
    }  # fmt: skip
