"""Decoupled knowledge distillation: Hinton's divergence in two parts with weights of their own.

    L = c · CE(z_s, y) + w · T² · (α · TCKD + β · NCKD),   w = min(1, progress / warm-up)
    TCKD = KL(b_t ‖ b_s),   b = (p_y, 1 − p_y): how sure the network is of the target class y
    NCKD = KL(p̂_t ‖ p̂_s),   p̂ = softmax(z/T) without y: what it says about the others

c is `ce_weight`, α `alpha_weight`, β `beta_weight`, T `temperature`; the divergences are summed over classes, averaged
over the batch. For each sample KL(p_t ‖ p_s) = TCKD + (1 − p_t,y) · NCKD: plain distillation silences what a sure
teacher says about the other classes.
Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", section 3; defaults of the CIFAR-100 tables (T=4, α=1,
β=8, warm-up of 20 epochs in 240). `standardise`: see kd; its authors take T=2 with it, which
is to be asked for (`temperature=2`).
Deviations: log-sum-exp over the other classes, where the official code takes the logarithm of a softmax (infinite for
sure networks) and hides the target behind −1000. The paper needs labels; for an unlabelled sample the target class is
the teacher's first, so that it can learn from all.

>>> import torch
>>> z = torch.tensor([[2.0, 0.0, 1.0]])
>>> [part.item() for part in decoupled(z, z + 1, torch.tensor([0]), temperature=4)]
[0.0, 0.0]
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import full_precision, hard_label_loss, soft_label_loss, soft_logits, standardise
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(4.0, "temperature T of all softmaxes", low=0.05, high=1000)
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    alpha_weight: float = knob(1.0, "weight α of the target class's part", low=0, high=1e6)
    beta_weight: float = knob(8.0, "weight β of the other classes' part", low=0, high=1e6)
    warmup_share: float = knob(20 / 240, "share of the phase over which α and β grow from 0", low=0, high=1)
    standardise: bool = knob(False, "bring each side's logits to mean 0 and deviation 1 first")


def check(config: Config, setting: Setting) -> None:
    if setting.num_classes < 3:
        raise UsageError(
            f"dkd is undefined for {setting.num_classes} classes: beside the target there must be two others",
            code="E-METHOD-SETTING",
            hint="take --kd kd",
        )


def target_classes(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """The label of each sample, or the teacher's first class where there is none (−1): int64 `[B]`."""
    return torch.where(labels >= 0, labels, teacher_logits.argmax(1))


def decoupled(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T² · TCKD and T² · NCKD, batch means, of logits `[B,K]` and target classes `[B]`."""
    our_pair, our_others = _split(full_precision(student_logits), target, temperature)
    their_pair, their_others = _split(full_precision(teacher_logits), target, temperature)
    sure = temperature**2 * soft_label_loss(our_pair, their_pair, 1.0)
    return sure, soft_label_loss(our_others, their_others, temperature)


def _split(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of (target, all others together) at the temperature `[B,2]`, and of each other class `[B,K−1]`."""
    target = target[:, None]
    position = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, position + (position >= target))
    together = (others / temperature).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, target) / temperature, together], 1), others


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    ours, theirs = student.logits, soft_logits(teacher, config.temperature)
    target = target_classes(batch.labels, teacher.logits)
    if config.standardise:
        ours, theirs = standardise(ours), standardise(theirs)
    sure, rest = decoupled(ours, theirs, target, config.temperature)
    warm = min(1.0, batch.progress / config.warmup_share) if config.warmup_share else 1.0
    soft = warm * (config.alpha_weight * sure + config.beta_weight * rest)
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + soft
