"""Quantization-aware training: int8 first, then its weights trained through their own rounding for a few epochs.

    L = ce_weight · CE(z, y) + parent_weight · KD_T(z, z_float) + teacher_weight · KD_T(z, z_teacher)

The float file that int8 comes from teaches along with the recipe's teacher; KD_T is T² · KL(softmax(z_t/T) ‖
softmax(z/T)). AdamW at `qat_learning_rate`, weights in units of their channel's largest. See `qat.py` for what is
trained and how it becomes a file.
"""

from dataclasses import dataclass

from compress import calibrate
from compress.config import knob
from compress.errors import UsageError

PRECISION = "int8"
# the quantizer whose file is trained, and the rung of the ladder that does it
FIRST = "int8"
RUNGS = ("quantization-aware training",)


def check(config: "Config") -> None:
    """Raises UsageError where nothing teaches."""
    if not config.ce_weight + config.parent_weight + config.teacher_weight:
        raise UsageError("int8_qat: nothing teaches, all weights are 0", hint="leave parent_weight at 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    qat_share: float = knob(0.1, "epochs of it, as a part of the recipe's; at least one epoch", low=0.001, high=10)
    qat_learning_rate: float = knob(
        1e-4, "peak learning rate, in parts of a channel's largest weight", low=1e-7, high=1
    )
    ce_weight: float = knob(0.1, "weight of the labels' cross-entropy", low=0, high=1e6)
    parent_weight: float = knob(1.0, "weight of the float file as a teacher", low=0, high=1e6)
    teacher_weight: float = knob(0.1, "weight of the recipe's teacher", low=0, high=1e6)
    temperature: float = knob(4.0, "temperature T of both", low=0.05, high=1000)
    calibrator: str = knob("mse", "the rule for ranges, before training", choices=calibrate.RULES)
