"""Static int8: QuantizeLinear/DequantizeLinear pairs, per-channel weights, ranges from real train images.

Weights: int8, symmetric, one scale per output channel. Activations: uint8, asymmetric, one scale per tensor, their
ranges by the calibrator over the calibration images. The engine is onnxruntime.quantization. U8S8 is the fast form on
x86; on CPUs without VNNI its products may saturate, which `reduce_range` (7-bit weights) and `weights=uint8` avoid.
Other machines want other forms: `--target` sets `activations`, `symmetric` and `reduce_range` for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import adaptive_rounding, bias_correction, calibrate, equalise, qdq
from compress.config import knob
from compress.errors import UsageError

PRECISION = "int8"


@dataclass(frozen=True, kw_only=True)
class Config:
    per_channel: bool = knob(True, "one weight scale per output channel; per-tensor ruins depthwise layers")
    reduce_range: bool = knob(False, "7-bit weights, for x86 CPUs without VNNI")
    weights: str = knob("int8", "int8: symmetric; uint8: with a zero point, never saturates", choices=("int8", "uint8"))
    activations: str = knob("uint8", "uint8: fastest on x86; int8: for ARM and GPUs", choices=("uint8", "int8"))
    symmetric: bool = knob(False, "int8 activations with zero point 0, as GPUs want them")
    calibrator: str = knob("minmax", "the rule for ranges", choices=calibrate.RULES)
    percentile: float = knob(0.9999, "part of the values inside, for the calibrator of that name", low=0.9, high=1.0)
    equalise: bool = knob(False, "cross-layer equalisation first: channels of one tensor are brought nearer")
    correct_bias: bool = knob(False, "bias correction last: the mean error of each channel is taken back")
    rounding: str = knob("nearest", "of weights; adaptive: learned for each layer", choices=("nearest", "adaptive"))
    rounding_steps: int = knob(500, "steps of adaptive rounding for each layer", low=1, high=100_000)
    keep_float: str = knob("", "names of layers that stay in float, joined by +")


def check(config: Config) -> None:
    """Raises UsageError for knobs that exclude each other."""
    if config.symmetric and config.activations == "uint8":
        raise UsageError(
            "int8: symmetric activations are signed",
            code="E-OPTION-CONFLICT",
            hint="add activations=int8, or symmetric=false (a target sets it)",
        )
    if config.activations == "int8" and config.weights == "uint8":
        raise UsageError(
            "int8: no kernel multiplies int8 activations by uint8 weights",
            code="E-OPTION-CONFLICT",
            hint="take weights=int8",
        )


def apply(config: Config, source: Path, target: Path, calibration: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Quantize the ONNX file `source` into `target`, calibrated on uint8 images `[N,H,W,C]`. Returns facts."""
    prepared = scratch / "prepared.onnx"
    ranges, scheme, facts = ready(config, source, prepared, calibration)
    kept = tuple(name for name in config.keep_float.split("+") if name)
    facts |= qdq.write(prepared, target, ranges, scheme, keep_float=kept)
    if config.rounding == "adaptive":
        facts |= adaptive_rounding.round_adaptively(prepared, target, calibration, steps=config.rounding_steps, seed=0)
    if config.correct_bias:
        facts |= bias_correction.correct(prepared, target, calibration)
    return facts


def prepare(config: Config, source: Path, prepared: Path, calibration: np.ndarray) -> dict[str, Any]:
    """The float file at `prepared` whose weights are rounded, equalised if asked for; facts."""
    qdq.prepare(source, prepared)
    return equalise.equalise(prepared, prepared, calibration) if config.equalise else {}


def ready(
    config: Config, source: Path, prepared: Path, calibration: np.ndarray
) -> tuple[calibrate.Ranges, qdq.Scheme, dict[str, Any]]:
    """What a file is written from, in float still, at `prepared`; the ranges and the scheme; facts."""
    facts = {"calibration_images": len(calibration)} | prepare(config, source, prepared, calibration)
    seen = calibrate.look(prepared, calibration, histograms=config.calibrator != "minmax")
    scheme = qdq.Scheme(
        per_channel=config.per_channel, weights=config.weights, reduce_range=config.reduce_range,
        activations=config.activations, symmetric=config.symmetric,
    )  # fmt: skip
    return calibrate.ranges(seen, config.calibrator, config.percentile), scheme, facts
