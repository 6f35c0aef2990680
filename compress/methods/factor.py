"""Factor transfer: the teacher's last map, compressed first by a paraphraser, then imitated through a translator.

    stage 1, paraphrase:   L_P = mean |D(P(F_t)) − F_t|                      trains P and its decoder D, without labels
    stage 2:               L = ce_weight · CE(z_s, y) + β · mean |f(T(F_s)) − f(P(F_t))|,    f(x) = vec(x) / ‖vec(x)‖₂

β is `weight`, P the paraphraser, T the translator, F the maps of the deepest pair. Factors have m channels, k (`rate`)
times those of F_t. P and T are three 3×3 convolutions (in → in → m → m), D mirrors P by transposed ones; all with
LeakyReLU 0.1 and without BatchNorm. P is frozen in stage 2.
Source: Kim, Park and Kwak 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer", section 3.
The layers, p = 1, β = 500 and the reconstruction's L1 are the official Jangho-Kim/Factor-Transfer-pytorch's, which
trains P for 5 epochs of CIFAR-10 and then the student for 163. Code that collapses the channels of the factors, as
HobbitLong/RepDistiller does, compares attention maps: that is another loss.
Cost: three 3×3 convolutions at the teacher's width, up to the backward pass of a small student.
Deviations: where sizes differ the larger factors are pooled; dead factors have f = 0 and no gradient. A stage 1
of few steps leaves P random: with a ResNet-56 on CIFAR-10 the error began to fall after about 100 steps (batch 128),
and after 300 it was a quarter lower.

>>> import torch
>>> a, b = torch.tensor([[[[2.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[9.0]]]])
>>> factor_loss(a, b).item(), factor_loss(a, 7 * a).item()  # (|1 − 0| + |0 − 1|) / 2; sizes do not matter
(1.0, 0.0)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.config import knob
from compress.losses import full_precision, hard_label_loss, pool_to_smaller, unit_rows
from compress.types import Batch, Setting, Signals, Stage

NEEDS = ("teacher", "maps")


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = knob(0.5, "channels of the factors, as a share k of the teacher's", low=0.01, high=4.0)
    paraphraser_share: float = knob(0.1, "share of the epochs spent on the paraphraser", low=0.001, high=0.9)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy in stage 2", low=0, high=1e6)
    weight: float = knob(500.0, "weight β of the factors' distance", low=0, high=1e6)


def _layers(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], *channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(channels, channels[1:], strict=False):
        layers += [kind(a, b, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def adapters(config: Config, setting: Setting) -> nn.Module:
    """The paraphraser P, its decoder D and the translator T."""
    student, teacher = (tap.shape[0] for tap in setting.pairs[-1])
    factors = max(1, round(config.rate * teacher))
    return nn.ModuleDict(
        {
            "paraphraser": _layers(nn.Conv2d, teacher, teacher, factors, factors),
            "decoder": _layers(nn.ConvTranspose2d, factors, factors, teacher, teacher),
            "translator": _layers(nn.Conv2d, student, student, factors, factors),
        }
    )


def stages(config: Config, setting: Setting) -> tuple[Stage, ...]:
    return (
        Stage(
            name="paraphrase",
            share=config.paraphraser_share,
            loss=_paraphrase_stage_loss,
            pairs=setting.pairs[-1:],
            student=False,
        ),
    )


def _last_map(signals: Signals) -> Tensor:
    *_, last = signals.maps.values()
    return full_precision(last)


def _paraphrase_stage_loss(config: Config, student: None, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    target = _last_map(teacher)
    return (adapters["decoder"](adapters["paraphraser"](target)) - target).abs().mean()


def normalise(factors: Tensor) -> Tensor:
    """f: factors `[B,m,H,W]` → unit vectors `[B,m·H·W]`."""
    return unit_rows(factors.flatten(1))


def factor_loss(student_factors: Tensor, teacher_factors: Tensor) -> Tensor:
    """mean |f(T(F_s)) − f(P(F_t))| of factors `[B,m,H,W]`."""
    student_factors, teacher_factors = pool_to_smaller(student_factors, teacher_factors)
    return (normalise(student_factors) - normalise(teacher_factors)).abs().mean()


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    with torch.no_grad():
        target = adapters["paraphraser"](_last_map(teacher))
    distance = factor_loss(adapters["translator"](_last_map(student)), target)
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * distance
