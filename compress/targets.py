"""Targets: where an artifact will run, and what that asks of its int8 form. To add one, add a row to `TARGETS`.

`saturates` says how the CPU computes u8·s8: with sums of two products clipped to 16 bits, exactly, or, if None, in
either way, as CPUs do. Sources: onnxruntime's documentation of quantization ("Representation format", "Data type
selection", "Performance considerations") and of its TensorRT provider; onnxruntime issues 12229 and 24807 (no
QLinearConv for CUDA).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.errors import unknown

if TYPE_CHECKING:
    from compress.types import Environment


@dataclass(frozen=True, kw_only=True)
class Target:
    """What int8 looks like for one kind of machine.

    `activations`: "uint8" or "int8"; `symmetric`: with zero point 0; `reduce_range`: weights of 7 bits; `opset`: of the
    exported file; `round_to`: multiples that pruned widths are rounded to; `assumed`: what nobody measures here;
    `no_gain`: why int8 is not faster there, where that is known; `is_here`: whether a latency of that machine is one of
    the target.
    """

    name: str
    about: str
    activations: str = "uint8"
    symmetric: bool = False
    reduce_range: bool = False
    saturates: bool | None = None
    opset: int = 18
    round_to: int = 8
    assumed: str = ""
    no_gain: str = ""
    is_here: Callable[["Environment"], bool] = lambda here: False

    def knobs(self) -> dict[str, Any]:
        """Knobs of the quantizer `int8` that the target sets, where the user did not."""
        return {"activations": self.activations, "symmetric": self.symmetric, "reduce_range": self.reduce_range}

    def clips(self, here: "Environment") -> bool:
        """Whether the target's CPU clips sums of two products."""
        return _clips(here) if self.saturates is None else self.saturates


def _clips(here: "Environment") -> bool:
    from compress import environment  # at use: a recipe's help reads the names of targets at start-up

    return environment.int8_saturates(here)


def _is_arm(here: "Environment") -> bool:
    return bool({"neon", "asimd"} & set(here.isa))


def _is_exact_x86(here: "Environment") -> bool:
    return not _is_arm(here) and bool(here.isa) and not _clips(here)


TARGETS = (
    # 7 bits: with 8, MNASNet lost nothing on a CPU with VNNI and 3 points without (benchmarks/records/int8_vnni.json)
    Target(
        name="generic", about="any CPU, with weights that no CPU's sums clip", reduce_range=True,
        is_here=lambda here: True,
    ),
    Target(
        name="cpu-vnni", about="x86 CPUs with VNNI or AMX (servers since 2019, laptops since 2021)", saturates=False,
        is_here=_is_exact_x86,
    ),
    Target(
        name="cpu-avx2", about="x86 CPUs without VNNI, whose int8 products saturate", saturates=True, reduce_range=True,
        is_here=_clips,
    ),
    Target(
        name="arm64", about="phones and boards", activations="int8", saturates=False, is_here=_is_arm,
        assumed="that the board's kernels compute exactly, as ONNX Runtime's for arm64 do",
    ),
    Target(
        name="cuda", about="ONNX Runtime's CUDA provider", activations="int8", symmetric=True, saturates=False,
        round_to=16,
        no_gain="that provider has no int8 convolution, so the pairs run in float; --quantize float16 is made for it",
    ),
    Target(
        name="tensorrt", about="TensorRT, by ONNX Runtime or alone", activations="int8", symmetric=True,
        saturates=False, round_to=32, assumed="that TensorRT takes the scales, and biases of 32 bits, as they are",
    ),
)  # fmt: skip


def find(name: str) -> Target:
    """The target of that name. Raises UsageError."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise unknown("target", name, [target.name for target in TARGETS])
