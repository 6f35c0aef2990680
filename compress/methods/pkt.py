"""Probabilistic knowledge transfer (PKT): each sample's neighbours, as a distribution, shall be the teacher's.

    L = c · CE(z_s, y) + w/B² · Σ_ij p_t,ij · log((p_t,ij + ε) / (p_s,ij + ε))
    p_ij = k_ij / Σ_j k_ij,   k_ij = (cos(e_i, e_j) + 1) / 2

e is the pooled embedding (the widths may differ); c is `ce_weight`, w `weight`, ε = 1e-7.
Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", section 3 with
the cosine kernel; the mean over B², ε and the weight 3e4 as in the tables that compare methods.
Deviations: i = j is among the neighbours, as in the official code. An embedding of zeros (a dead student) has cosine 0
with all and no gradient; the official code gives NaN there.

>>> import torch
>>> e = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
>>> neighbour_loss(e, 3 * e).item()
0.0
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import full_precision, hard_label_loss, unit_rows
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "pooled")
EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(3e4, "weight w of the neighbours' divergence", low=0, high=1e6)


def check(config: Config, setting: Setting) -> None:
    if setting.batch_size < 2:
        raise UsageError(
            "pkt compares images with each other", code="E-BATCH-SIZE", hint="take a batch_size of at least 2"
        )


def neighbours(embeddings: Tensor) -> Tensor:
    """The distribution over the batch for each of the embeddings `[B,D]`: `[B,B]`, rows sum to 1."""
    directions = unit_rows(full_precision(embeddings))
    # rounding takes a cosine below −1, and a logarithm below 0
    kernel = (directions @ directions.T + 1).clamp(min=0) / 2
    return kernel / kernel.sum(1, keepdim=True)


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B² of p_t · log(p_t / p_s), of embeddings `[B,D_s]` and `[B,D_t]`."""
    ours, theirs = neighbours(student), neighbours(teacher)
    return (theirs * ((theirs + EPSILON) / (ours + EPSILON)).log()).mean()


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    hard = hard_label_loss(student.logits, batch.labels)
    return config.ce_weight * hard + config.weight * neighbour_loss(student.pooled, teacher.pooled)
