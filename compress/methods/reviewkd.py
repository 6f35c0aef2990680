"""Knowledge review: each of the teacher's maps is compared with the student's same and all deeper maps, fused.

    L = ce_weight · CE(z_s, y) + weight · min(1, progress / warmup) · Σ_j HCL(G_j, F_t,j)
    HCL(a, b) = Σ_l w_l · mean (pool_l(a) − pool_l(b))² / Σ_l w_l       l: the full size, 4×4, 2×2, 1×1;  w: 1, ½, ¼, ⅛

From the deepest pair to the shallowest, attention-based fusion (ABF) makes H_j, which goes on to the next, and G_j:
    R = norm(conv1×1(F_s,j));   U = H_(j+1) at R's size;   (p, q) = sigmoid(conv1×1([R, U]));   H_j = p ∘ R + q ∘ U
    G_j = norm(conv3×3(H_j at the teacher's size))
H has as many channels as the student's deepest map, at most `channels`; sizes change to the nearest pixel; the deepest
H is R. A level of HCL that is not smaller than the map is left out, with its weight.
Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", section 3; layers, levels, warm-up (20 of 240
epochs) and weight as in megvii-research/mdistiller, whose weights by pair of networks go up to 8.
Deviations: the maps are those of the pairs, whatever their shapes, and the pooled embedding is no level of its own. The
fusion can cost more than a small student.

>>> import torch
>>> a, b = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, -2.0], [-2.0, 2.0]]]])
>>> round(hierarchical_loss(a, b).item(), 4)  # levels 2×2 and 1×1: (1 · 4 + ½ · 0) / 1.5
2.6667
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob
from compress.losses import full_precision, hard_label_loss
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "maps")
LEVELS = (4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    warmup: float = knob(20 / 240, "share of the phase over which the weight grows from 0", low=0.0, high=1.0)
    channels: int = knob(512, "most channels of a fused map", low=1, high=4096)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(1.0, "weight of the review term", low=0, high=1e6)


def _normalised(channels_in: int, channels_out: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


def adapters(config: Config, setting: Setting) -> nn.Module:
    """The fusions, shallow to deep; the deepest has nothing to fuse with."""
    width = min(config.channels, setting.pairs[-1][0].shape[0])
    fusions: list[nn.Module] = []
    for student, teacher in setting.pairs:
        parts = nn.ModuleDict({"reduce": _normalised(student.shape[0], width, 1)})
        parts["expand"] = _normalised(width, teacher.shape[0], 3)
        if len(fusions) < len(setting.pairs) - 1:
            parts["attend"] = nn.Conv2d(2 * width, 2, 1)
        fusions.append(parts)
    return nn.ModuleList(fusions)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if maps.shape[-2:] == tuple(size) else F.interpolate(maps, tuple(size), mode="nearest")


def fuse(parts: Any, student_map: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(G, H) of one level: what is compared with the teacher's map of `size`, and what goes on to the shallower one.

    `student_map` `[B,C,H,W]`; `deeper` `[B,width,·,·]` is the H of the level below.
    """
    reduced = parts["reduce"](student_map)
    if deeper is not None:
        deeper = _resize(deeper, reduced.shape[-2:])
        own, other = parts["attend"](torch.cat([reduced, deeper], 1)).sigmoid().split(1, 1)
        reduced = own * reduced + other * deeper
    fused = _resize(reduced, size)
    return parts["expand"](fused), fused


def review(fusions: Any, student_maps: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The student's maps, shallow to deep, each fused with the deeper ones and at the teacher's shape."""
    results, deeper = [], None
    for parts, own, size in reversed(list(zip(fusions, student_maps, sizes, strict=True))):
        result, deeper = fuse(parts, own, deeper, size)
        results.append(result)
    return results[::-1]


def hierarchical_loss(a: Tensor, b: Tensor) -> Tensor:
    """HCL of two maps `[B,C,H,W]`."""
    total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
    difference = a - b  # pooling is linear
    for level in LEVELS:
        if level < min(a.shape[-2:]):
            weight /= 2
            weights += weight
            total = total + weight * F.adaptive_avg_pool2d(difference, level).square().mean()
    return total / weights


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    theirs = [full_precision(maps) for maps in teacher.maps.values()]
    student_maps = [full_precision(maps) for maps in student.maps.values()]
    ours = review(adapters, student_maps, [maps.shape[-2:] for maps in theirs])
    terms = torch.stack([hierarchical_loss(a, b) for a, b in zip(ours, theirs, strict=True)])
    grown = min(1.0, batch.progress / config.warmup) if config.warmup else 1.0
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * grown * terms.sum()
