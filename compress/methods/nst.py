"""Neuron selectivity transfer: the channels of both maps, as two sets of patterns, should be distributed alike.

    L = ce_weight · CE(z_s, y) + weight · Σ_j MMD²_j
    MMD² = mean k(s,s') + mean k(t,t') − 2 · mean k(s,t),    k(a,b) = (a · b)²

s and t are the channels of the maps of pair j, each a vector of its H·W positions at length 1; the means run over the
pairs of channels and over the batch. k is the paper's polynomial kernel with d = 2 and c = 0. Student and teacher may
have any numbers of channels.
Source: Huang and Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", section 4. The
terms and the weight of 50 are those of HobbitLong/RepDistiller; the paper writes the weight as λ/2.
Deviations: the larger map of a pair is average-pooled to the smaller; a dead channel stays 0, without a gradient.

>>> import torch
>>> a, b = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
>>> discrepancy(a, b).item()  # 1 + 1 − 2 · 0
2.0
>>> discrepancy(a, torch.cat([a, 5 * a], 1)).item()  # the same pattern twice, at another size
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
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(50.0, "weight of the discrepancy", low=0, high=1e6)


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """mean over samples and over pairs of rows of (a_i · b_j)², for `[B,c,n]` and `[B,c',n]`."""
    channels, positions = a.shape[1] * b.shape[1], a.shape[2]
    if channels <= positions**2:
        return (a @ b.mT).square().mean()
    # Σ_ij (a_i · b_j)² = Σ (aᵀa ∘ bᵀb): n×n numbers in place of c×c', much fewer for deep maps
    return ((a.mT @ a) * (b.mT @ b)).sum((1, 2)).mean() / channels


def patterns(maps: Tensor) -> Tensor:
    """Maps `[B,C,H,W]` → unit rows `[B,C,H·W]`; dead channels give zeros."""
    return unit_rows(full_precision(maps).flatten(2))


def discrepancy(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """MMD² of maps `[B,·,H,W]`, averaged over the batch."""
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    ours, theirs = patterns(student_map), patterns(teacher_map)
    return mean_kernel(theirs, theirs) + mean_kernel(ours, ours) - 2 * mean_kernel(ours, theirs)


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    pairs = zip(student.maps.values(), teacher.maps.values(), strict=True)
    terms = torch.stack([discrepancy(ours, theirs) for ours, theirs in pairs])
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * terms.sum()
