"""Relational knowledge distillation: distances and angles between samples, not the samples' embeddings themselves.

    L = c · CE(z_s, y) + w_d · mean_ij h(d_s,ij, d_t,ij) + w_a · mean_ijk h(ψ_s,ijk, ψ_t,ijk)
    d_ij = ‖e_i − e_j‖ / μ, μ the mean of the positive distances;   ψ_ijk = cos of the angle at e_i between e_j and e_k

e is the pooled embedding (the widths may differ), h the smooth L1 (Huber) loss; c is `ce_weight`, w_d
`distance_weight`, w_a `angle_weight`. The means are over all B² pairs and B³ triples.
Source: Park et al. 2019, "Relational Knowledge Distillation", section 3.2; weights 25 and 50 as in the tables for
classification.
Deviations: points nearer to each other than the rounding of their coordinates are one point: distance 0, no direction,
no gradient (the formula's gradient has a factor of one over that distance). Distances and angles come from differences:
those from dot products cancel. So that this needs no B·B·D numbers, embeddings wider than the batch are first written
in an orthonormal basis of their own span, which keeps every distance and angle.

>>> import torch
>>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
>>> turned = 3 * square @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 5
>>> [round(gap.item(), 6) for gap in relations(square, turned)]
[0.0, 0.0]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from compress.config import knob
from compress.errors import UsageError
from compress.losses import TINY, full_precision, hard_label_loss, unit_rows
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "pooled")
TRIPLES_AT_ONCE = 2**21  # more are cut into groups of anchors, each computed again in the backward pass


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    distance_weight: float = knob(25.0, "weight w_d of the distances", low=0, high=1e6)
    angle_weight: float = knob(50.0, "weight w_a of the angles", low=0, high=1e6)


def check(config: Config, setting: Setting) -> None:
    # with two samples the only distance is its own mean, and the only angle is 0
    if setting.batch_size < 3:
        raise UsageError(
            f"rkd compares images with each other, and {setting.batch_size} have no relation to learn from",
            code="E-BATCH-SIZE",
            hint="take a batch_size of at least 3",
        )


def relations(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Mean smooth L1 of the relative distances and of the cosines of all angles, of embeddings `[B,D_s]`, `[B,D_t]`."""
    ours, theirs = coordinates(student), coordinates(teacher)
    distance = F.smooth_l1_loss(relative_distances(*ours), relative_distances(*theirs))

    def angle_gaps(anchors: slice) -> Tensor:
        return F.smooth_l1_loss(cosines(*ours, anchors), cosines(*theirs, anchors), reduction="sum")

    count = len(student)
    step = max(1, TRIPLES_AT_ONCE // count**2)
    groups = [slice(start, start + step) for start in range(0, count, step)]
    if len(groups) == 1:
        return distance, angle_gaps(groups[0]) / count**3
    gaps = [checkpoint(angle_gaps, group, use_reentrant=False, preserve_rng_state=False) for group in groups]
    return distance, torch.stack(gaps).sum() / count**3


def coordinates(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings `[B,D]` as points `[B,min(B,D)]` with the same distances and angles, and how near is only rounding.

    The basis is a constant to the gradient: that of a function of distances lies in the span all the same.
    """
    points = full_precision(embeddings)
    fixed = points.detach()
    rounding = 4 * torch.finfo(points.dtype).eps * torch.linalg.vector_norm(fixed, dim=1).max()
    points = points - fixed.mean(0)
    if points.shape[1] > len(points):
        points = points @ torch.linalg.qr(points.detach().T).Q
    return points, rounding.clamp(min=TINY)


def relative_distances(points: Tensor, rounding: Tensor) -> Tensor:
    """Distances `[B,B]` of points `[B,D]` over the mean of the positive ones; all 0 where the points are one."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(distances <= rounding, 0.0)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=TINY)


def cosines(points: Tensor, rounding: Tensor, anchors: slice) -> Tensor:
    """cos of the angles at each of A anchors between all pairs of points `[B,D]`: `[A,B,B]`."""
    directions = unit_rows(points[None] - points[anchors, None], rounding)
    return directions @ directions.mT


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    hard = hard_label_loss(student.logits, batch.labels)
    distance, angle = relations(student.pooled, teacher.pooled)
    return config.ce_weight * hard + config.distance_weight * distance + config.angle_weight * angle
