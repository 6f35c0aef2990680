"""Quantization-aware training: int8 first, then its weights trained through their own rounding for a few epochs.

    L = ce_weight · CE(z, y) + parent_weight · KD_T(z, z_float) + teacher_weight · KD_T(z, z_teacher)

The float file that int8 comes from teaches along with the recipe's teacher; KD_T is T² · KL(softmax(z_t/T) ‖
softmax(z/T)). AdamW at `qat_learning_rate`, weights in units of their channel's largest. See `qat.py` for what is
trained and how it becomes a file.
"""

from dataclasses import dataclass

from compress import calibrate, qat_knobs
from compress.config import knob

PRECISION = "int8"
# the quantizer whose file is trained, and the rung of the ladder that does it
FIRST = "int8"
RUNGS = ("quantization-aware training",)
# when its knobs make no sense
check = qat_knobs.check


@dataclass(frozen=True, kw_only=True)
class Config(qat_knobs.Training):
    calibrator: str = knob("mse", "the rule for ranges, before training", choices=calibrate.RULES)
