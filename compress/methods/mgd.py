"""Masked generative distillation: the student's last map, with a part of it hidden, must generate the teacher's.

    L = ce_weight · CE(z_s, y) + α · 1/B · Σ (G(M ∘ A(F_s)) − F_t)²

α is `weight`, F the maps of the deepest pair, A a 1×1 convolution where the numbers of channels differ, M a fresh mask
of zeros (drawn with probability `masked`) and ones, G the generator: 3×3 convolution, ReLU, 3×3 convolution. The square
is summed over a map and averaged over the batch, so a small map weighs little: α was tuned for 512×7×7 (ImageNet).
Source: Yang et al. 2022, "Masked Generative Distillation", section 3. α = 7e-5, 15 % and masks of whole channels are
those of the official yzd-v/MGD for classification; `mask=pixels` is its other form, one mask for all channels.
Cost: the generator convolves at the teacher's width, up to four times the backward pass of a small student.
Deviation: the larger map is average-pooled to the smaller (the official code wants equal sizes).

>>> import torch
>>> generation_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item()  # 3 · 4 · 4 squares of 1 for each sample
48.0
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.config import knob
from compress.losses import full_precision, hard_label_loss, pool_to_smaller
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "maps")


@dataclass(frozen=True, kw_only=True)
class Config:
    mask: str = knob(
        "channels", "what is hidden: whole channels, or pixels of all channels", choices=("channels", "pixels")
    )
    masked: float = knob(0.15, "probability of each to be hidden", low=0.0, high=0.99)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(7e-5, "weight α of the generated map's squared distance", low=0, high=1e6)


def adapters(config: Config, setting: Setting) -> nn.Module:
    """The alignment A, where there is something to align, and the generator G."""
    student, teacher = (tap.shape[0] for tap in setting.pairs[-1])
    return nn.ModuleDict(
        {
            "align": nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity(),
            "generator": nn.Sequential(
                nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
            ),
        }
    )


def random_mask(maps: Tensor, masked: float, kind: str) -> Tensor:
    """Zeros and ones that multiply maps `[B,C,H,W]`: `[B,C,1,1]` for channels, `[B,1,H,W]` for pixels."""
    b, c, h, w = maps.shape
    drawn = torch.rand((b, c, 1, 1) if kind == "channels" else (b, 1, h, w), device=maps.device)
    return (drawn >= masked).to(maps.dtype)


def generation_loss(generated: Tensor, teacher_map: Tensor) -> Tensor:
    """1/B Σ (G − F_t)² of maps `[B,C,H,W]`."""
    return (generated - teacher_map).square().sum((1, 2, 3)).mean()


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    ours, theirs = pool_to_smaller(*(full_precision(list(side.maps.values())[-1]) for side in (student, teacher)))
    aligned = adapters["align"](ours)
    generated = adapters["generator"](aligned * random_mask(aligned, config.masked, config.mask))
    distance = generation_loss(generated, theirs)
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * distance
