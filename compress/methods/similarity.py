"""Similarity-preserving distillation (SP): samples that are alike to the teacher shall be alike to the student.

    L = c · CE(z_s, y) + w · ‖G_s − G_t‖_F² / B²,   G = rows of F Fᵀ at length 1

F `[B,C·H·W]` is the last pair of maps, flattened; sizes and channels may differ. c is `ce_weight`, w `weight`.
Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", section 3; weight 3000 as in the CIFAR
tables. Deviation: a row of zeros (a dead map) stays 0, without a gradient.

>>> import torch
>>> one = torch.tensor([[[[2.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
>>> similarity_loss(one, 5 * one).item()
0.0
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.config import knob
from compress.errors import UsageError
from compress.losses import full_precision, hard_label_loss, unit_rows
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "maps")


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(3000.0, "weight w of the similarities", low=0, high=1e6)


def check(config: Config, setting: Setting) -> None:
    if setting.batch_size < 2:
        raise UsageError(
            "similarity compares images with each other", code="E-BATCH-SIZE", hint="take a batch_size of at least 2"
        )


def similarities(maps: Tensor) -> Tensor:
    """Dot products of the flattened maps `[B,C,H,W]` with each other, each row at length 1: `[B,B]`."""
    flat = full_precision(maps).flatten(1)
    return unit_rows(flat @ flat.T)


def similarity_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """‖G_s − G_t‖_F² / B² of maps `[B,·,·,·]`."""
    return (similarities(student_map) - similarities(teacher_map)).square().mean()


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    ours, theirs = (list(side.maps.values())[-1] for side in (student, teacher))
    hard = hard_label_loss(student.logits, batch.labels)
    return config.ce_weight * hard + config.weight * similarity_loss(ours, theirs)
