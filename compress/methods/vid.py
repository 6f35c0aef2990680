"""Variational information distillation: a bound of the information that the student's maps hold of the teacher's.

    L = ce_weight · CE(z_s, y) + weight · Σ_j mean ½ ((F_t − μ(F_s))² / σ² + log σ²),    σ²_c = softplus(α_c) + 1e-5

For each pair j of maps, μ is a regressor of three 1×1 convolutions with ReLU between (student's channels → teacher's),
and σ² a variance for each of the teacher's channels, `variance` at first. Both are trained with the student: variances
that never reach the optimizer, as in megvii-research/mdistiller, leave a plain squared distance.
Source: Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer", section 2. As in
HobbitLong/RepDistiller the mean is taken over a map's elements (the paper: a sum), the constant ½ log 2π is left out,
and the weight is 1. The loss can be negative.
Cost: three 1×1 convolutions a pair, up to twice the backward pass of a small student.
Deviation: the larger map of a pair is average-pooled to the smaller.

>>> import torch
>>> mean, target = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
>>> round(negative_log_likelihood(mean, target, inverse_softplus(torch.tensor([4.0]))).item(), 4)  # ½ (4/4 + log 4)
1.1931
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob
from compress.losses import full_precision, hard_label_loss, pool_to_smaller
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "maps")
SMALLEST_VARIANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Config:
    variance: float = knob(5.0, "every channel's variance at the start", low=1e-3, high=1e3)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(1.0, "weight of the negative log-likelihood", low=0, high=1e6)


def inverse_softplus(value: Tensor) -> Tensor:
    """log(eᵛ − 1), without the overflow of eᵛ."""
    return value + torch.log(-torch.expm1(-value))


def _regressor(student: int, teacher: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(channels, teacher, 1, bias=False) for channels in (student, teacher, teacher)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])


def adapters(config: Config, setting: Setting) -> nn.Module:
    """For each pair the regressor μ and the scales α `[C]` of the variances."""
    start = inverse_softplus(torch.tensor(config.variance - SMALLEST_VARIANCE))
    channels = [(student.shape[0], teacher.shape[0]) for student, teacher in setting.pairs]
    return nn.ModuleDict(
        {
            "regressors": nn.ModuleList(_regressor(ours, theirs) for ours, theirs in channels),
            "scales": nn.ParameterList(nn.Parameter(start.repeat(theirs)) for _, theirs in channels),
        }
    )


def negative_log_likelihood(mean: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """mean ½ ((t − μ)²/σ² + log σ²) of maps `[B,C,H,W]` and scales α `[C]`."""
    variance = (F.softplus(scale) + SMALLEST_VARIANCE)[:, None, None]
    return ((target - mean).square() / variance + variance.log()).mean() / 2


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    terms = []
    pairs = zip(student.maps.values(), teacher.maps.values(), strict=True)
    for (ours, theirs), regressor, scale in zip(pairs, adapters["regressors"], adapters["scales"], strict=True):
        ours, theirs = pool_to_smaller(full_precision(ours), full_precision(theirs))
        terms.append(negative_log_likelihood(regressor(ours), theirs, scale))
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * torch.stack(terms).sum()
