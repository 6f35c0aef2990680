"""Noisy teachers: regression on logits that are perturbed anew in each step, for a random part of the samples.

    L = 1/(2B) Σ_i ‖z_s,i − z'_i‖²,   z'_i = (1 + ξ_i) ⊙ z_t,i with probability α, else z_t,i,   ξ_i ~ N(0, σ²)^K

α is `alpha`, σ (a standard deviation) `sigma`; each class of a selected sample has a draw of its own. On average this
is plain regression with a regulariser: E[L] = 1/(2B) Σ ‖z_s − z_t‖² + α σ²/(2B) Σ ‖z_t‖².
Source: Sau and Balasubramanian 2016, "Deep Model Compression: Distilling Knowledge from Noisy Teachers",
arXiv 1610.09650; they use α = 0.5 for CIFAR-10, 0.15 for MNIST and SVHN, and several σ. `where=student` puts the same
noise on the student's logits instead, their first baseline. The second, dropout, is a knob of networks.
No deviation, and no knob to standardise logits: the noise is a share of their size. Code that goes by this name often
draws one number for a sample or a whole batch, takes σ for a variance, or drops the 1.

>>> import torch
>>> z = torch.tensor([[2.0, -1.0]])
>>> perturbed(z, alpha=0.0, sigma=0.5).tolist()  # nobody is selected
[[2.0, -1.0]]
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import full_precision, hard_label_loss
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    alpha: float = knob(0.5, "probability α that a sample is perturbed", low=0, high=1)
    sigma: float = knob(0.1, "standard deviation σ of the relative noise", low=0, high=10)
    where: str = knob("teacher", "whose logits are perturbed", choices=("teacher", "student"))
    weight: float = knob(1.0, "weight of the regression", low=0, high=1e6)
    ce_weight: float = knob(0.0, "weight of the hard-label cross-entropy (the paper has none)", low=0, high=1e6)


def check(config: Config, setting: Setting) -> None:
    if setting.together == "probabilities":
        raise UsageError(
            "noisy compares logits, and the mean of several teachers' probabilities has none of their size",
            code="E-METHOD-SETTING",
            hint="take --set ensemble=logits, or --set ensemble=random",
        )


def perturbed(logits: Tensor, alpha: float, sigma: float) -> Tensor:
    """Logits `[B,K]`, each row with probability alpha times 1 + N(0, sigma²), by torch's global generator."""
    noise = sigma * torch.randn_like(logits)
    selected = torch.rand(len(logits), 1, device=logits.device) < alpha
    return torch.where(selected, logits * (1 + noise), logits)


def scale(config: Config) -> float:
    """The gradient is the distance of the logits: for a trained teacher's, some ten times that of cross-entropy."""
    return max(1.0, 10 * config.weight + config.ce_weight)


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    ours, theirs = full_precision(student.logits), full_precision(teacher.logits)
    if config.where == "teacher":
        theirs = perturbed(theirs, config.alpha, config.sigma)
    else:
        ours = perturbed(ours, config.alpha, config.sigma)
    total = config.weight * (ours - theirs).square().sum(1).mean() / 2
    if config.ce_weight:
        total = total + config.ce_weight * hard_label_loss(student.logits, batch.labels)
    return total
