"""Regression on the teacher's logits, without labels.

    L = 1/(2B) Σ_i ‖z_s,i − z_t,i‖²          (sum over classes, mean over the batch)

Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", eq. 1. A mean over classes too, as some code has
it, is K/2 times weaker. `center` subtracts each side's mean over classes first: softmax does not see a common shift,
regression does. There is no knob to standardise logits: their scale is what is learnt here.

>>> from compress.types import Signals, Batch
>>> import torch, numpy as np
>>> s, t = Signals(logits=torch.tensor([[3.0, 0.0]])), Signals(logits=torch.tensor([[0.0, 4.0]]))
>>> b = Batch(inputs=None, labels=torch.tensor([0]), index=np.zeros(1), view=np.zeros(1), progress=0.0)
>>> loss(Config(), s, t, b, None).item()  # (9 + 16) / 2
12.5
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import hard_label_loss
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    weight: float = knob(1.0, "weight of the regression", low=0, high=1e6)
    ce_weight: float = knob(0.0, "weight of the hard-label cross-entropy (the paper has none)", low=0, high=1e6)
    center: bool = knob(False, "subtract each side's mean over classes first")


def check(config: Config, setting: Setting) -> None:
    if setting.together == "probabilities" and not config.center:
        raise UsageError(
            "logits compares logits, and the mean of several teachers' probabilities has none of their size",
            code="E-METHOD-SETTING",
            hint="take --set ensemble=logits, or --kd logits:center=true",
        )


def regression(student_logits: Tensor, teacher_logits: Tensor, center: bool = False) -> Tensor:
    """1/(2B) Σ ‖z_s − z_t‖² of logits `[B,K]`."""
    if center:
        student_logits = student_logits - student_logits.mean(1, keepdim=True)
        teacher_logits = teacher_logits - teacher_logits.mean(1, keepdim=True)
    return (student_logits - teacher_logits).square().sum(1).mean() / 2


def scale(config: Config) -> float:
    """The gradient is the distance of the logits: for a trained teacher's, some ten times that of cross-entropy."""
    return max(1.0, 10 * config.weight + config.ce_weight)


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    total = config.weight * regression(student.logits, teacher.logits, config.center)
    if config.ce_weight:
        total = total + config.ce_weight * hard_label_loss(student.logits, batch.labels)
    return total
