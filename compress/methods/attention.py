"""Activation-based attention transfer: the student's maps should be strong where the teacher's are.

    L = ce_weight · CE(z_s, y) + Σ_j L_j,    Q = vec(Σ_c |F_c|^p) / ‖vec(Σ_c |F_c|^p)‖₂    for each pair j of maps F

    form=code:    L_j = β · mean (Q_s − Q_t)²                     β = weight
    form=paper:   L_j = β/2 · Σ_b ‖Q_s,b − Q_t,b‖₂                β = weight / (B · H · W)

p is `power`, b counts the samples. The two forms differ by the square: the authors' code has it, eq. 2 has not.
Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", section 3.1, eq. 2, with the paper's β: 10³
divided by the elements of the map and by the batch size. The code's form is HobbitLong/RepDistiller's, weight 1000.
Deviations: where the sizes of a pair differ, the larger map is average-pooled first; a dead map has Q = 0, without a
gradient. The normalisation of Q is no knob: without it the method is reported not to work.

>>> import torch
>>> f = torch.arange(8.0).reshape(1, 2, 2, 2)
>>> transfer_loss(f, 5 * f).item()  # the size of a map does not matter, only its pattern
0.0
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.config import knob
from compress.losses import full_precision, hard_label_loss, pool_to_smaller, unit_rows
from compress.types import Batch, Signals

NEEDS = ("teacher", "maps")


@dataclass(frozen=True, kw_only=True)
class Config:
    form: str = knob("code", "code: squared distances; paper: eq. 2's norms", choices=("code", "paper"))
    power: float = knob(2.0, "power p of the activations", low=1.0, high=4.0)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(1000.0, "weight of the attention term", low=0, high=1e6)


def attention_map(maps: Tensor, power: float = 2.0) -> Tensor:
    """Q: maps `[B,C,H,W]` → unit vectors `[B,H·W]`; a dead map gives zeros."""
    # a mean for the paper's sum: the same at length 1, and further from overflow
    return unit_rows(full_precision(maps).abs().pow(power).mean(1).flatten(1))


def transfer_loss(student_map: Tensor, teacher_map: Tensor, power: float = 2.0, form: str = "code") -> Tensor:
    """One pair's term at weight 1, of maps `[B,·,H,W]`."""
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    difference = attention_map(student_map, power) - attention_map(teacher_map, power)
    if form == "code":
        return difference.square().mean()
    return torch.linalg.vector_norm(difference, dim=1).mean() / (2 * difference.shape[1])


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    pairs = zip(student.maps.values(), teacher.maps.values(), strict=True)
    terms = [transfer_loss(ours, theirs, config.power, config.form) for ours, theirs in pairs]
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * torch.stack(terms).sum()
