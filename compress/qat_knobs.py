"""The knobs of training through the rounding: those of `int8_qat`, and of the ladder's last rung."""

from dataclasses import dataclass

from compress.config import knob
from compress.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast, and how much each teacher says."""

    qat_share: float = knob(
        0.1, "epochs of training through the rounding, as a part of the recipe's and at least one; 0: none", low=0,
        high=10,
    )  # fmt: skip
    qat_learning_rate: float = knob(1e-4, "its learning rate, in parts of a channel's largest weight", low=1e-7, high=1)
    ce_weight: float = knob(0.1, "in training, weight of the labels", low=0, high=1e6)
    parent_weight: float = knob(1.0, "in training, weight of the float file as a teacher", low=0, high=1e6)
    teacher_weight: float = knob(0.1, "in training, weight of the recipe's teacher", low=0, high=1e6)
    temperature: float = knob(4.0, "in training, temperature of both teachers", low=0.05, high=1000)


def check(config: Training) -> None:
    """Raises UsageError where a training is asked for and nothing teaches."""
    if config.qat_share and not config.ce_weight + config.parent_weight + config.teacher_weight:
        raise UsageError(
            "nothing teaches int8: ce_weight, parent_weight and teacher_weight are all 0",
            code="E-OPTION-CONFLICT",
            hint="leave parent_weight at 1",
        )
