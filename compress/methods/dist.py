"""DIST: the student's probabilities shall correlate with the teacher's, not equal them.

    L = c · CE(z_s, y) + T² · (β · inter + γ · intra)
    inter = 1 − mean over samples of ρ(p_s[i,:], p_t[i,:])      what a sample is like
    intra = 1 − mean over classes of ρ(p_s[:,k], p_t[:,k])      which samples a class prefers, over the batch

p = softmax(z/T), ρ is Pearson's correlation; c is `ce_weight`, β `inter_weight`, γ `intra_weight`, T `temperature`.
Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", section 4; β = γ = 2, T = 4 for CIFAR
(T = 1 for ImageNet), the factor T² and the 1e-8 beside ρ's denominator as in the official code: it lets classes that
nobody believes in count less.
Deviation: probabilities that are constant up to rounding have ρ = 0 and no gradient. There is no `standardise`: ρ does
not see the scale of the probabilities, but rescaled logits are other probabilities, and the paper's T is theirs.

>>> import torch
>>> p = torch.tensor([[0.2, 0.3, 0.5]])
>>> round(pearson(p, 3 * p - 7).item(), 6), round(pearson(p, -p).item(), 6)
(1.0, -1.0)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import centred, full_precision, hard_label_loss, soft_logits
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(4.0, "temperature T of both softmaxes", low=0.05, high=1000)
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    inter_weight: float = knob(2.0, "weight β of the correlation over classes", low=0, high=1e6)
    intra_weight: float = knob(2.0, "weight γ of the correlation over the batch", low=0, high=1e6)


def check(config: Config, setting: Setting) -> None:
    # two points always lie on a line: their correlation is ±1 and has no gradient
    if config.intra_weight and setting.batch_size < 3:
        raise UsageError(
            f"dist correlates over the batch, and {setting.batch_size} images have no correlation to learn from",
            code="E-BATCH-SIZE",
            hint="take a batch_size of at least 3, or dist:intra_weight=0",
        )


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the rows of a and b `[R,N]`, `[R]`; 0 for a constant row."""
    a, b = centred(a), centred(b)
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (lengths + 1e-8)


def correlations(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T² · inter and T² · intra of logits `[B,K]`."""
    ours, theirs = ((full_precision(z) / temperature).softmax(1) for z in (student_logits, teacher_logits))
    inter = 1 - pearson(ours, theirs).mean()
    intra = 1 - pearson(ours.T, theirs.T).mean()
    return temperature**2 * inter, temperature**2 * intra


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    theirs = soft_logits(teacher, config.temperature)
    inter, intra = correlations(student.logits, theirs, config.temperature)
    hard = hard_label_loss(student.logits, batch.labels)
    return config.ce_weight * hard + config.inter_weight * inter + config.intra_weight * intra
