"""Contrastive representation distillation (CRD): tell the teacher's embedding of this image from those of others.

    L = c · CE(z_s, y) + w · (L_s + L_t)
    L_s = −mean_i [ log D(s_i, t_i) + Σ_k log(1 − D(s_i, t_k)) ],   D(s, t) = e / (e + K/N),   e = exp(s·t/τ) / Z

s = h_s(e_s) and t = h_t(e_t) are linear heads on the pooled embeddings, at length 1; the K others t_k and the t_i
itself come from a memory of all N images, and L_t is the same with the sides exchanged. Each step blends the batch's
embeddings into the memory. c is `ce_weight`, w `weight`, τ `temperature`, K `negatives`; Z is N times the mean of
exp(s·t/τ) in the first batch, and stays.
Source: Tian, Krishnan and Isola 2020, "Contrastive Representation Distillation", section 3.1; memory, Z and the
defaults as in the official HobbitLong/RepDistiller.
The others are images of other classes, drawn anew for each sample and step, each as likely; K is at most what the
largest class leaves. A sample without a label has all images but itself as others, and is another to all.
Memory and Z change only where the student's embedding carries a gradient, once a call and after its loss: calls
without one leave no trace, a second call with one finds the memory that the first has left.
Deviations: the draws are independent, as the objective assumes (the official code repeats an image only when K exceeds
what there is, and does not bound K); D is computed in logarithms, without an ε.
Cost: with N = 50 000, K = 16 384 and a batch of 64 as much as the backward pass of a ResNet-20.

>>> import torch
>>> even = torch.zeros(1, 3)
>>> round(contrastive_loss(even, torch.tensor(0.0), ratio=1.0).item(), 4)  # 3 coins: 3 · log 2
2.0794
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob
from compress.errors import UsageError
from compress.losses import full_precision, hard_label_loss, unit_rows
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher", "pooled")


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight c of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(0.8, "weight w of the contrast", low=0, high=1e6)
    temperature: float = knob(0.07, "temperature τ of the scores", low=0.005, high=10)
    negatives: int = knob(16384, "number K of other images for each", low=1, high=10**7)
    momentum: float = knob(0.5, "how much of an embedding in memory stays at a blend", low=0, high=0.999)
    width: int = knob(128, "width of the compared embeddings", low=2, high=8192)


def by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An order of the images in which each class is one block, with each image's block: start and length, all `[N]`.

    Labels int64 `[N]`; an image without one (−1) is a block of its own.
    """
    block = np.where(labels >= 0, labels, labels.max(initial=0) + 1 + np.arange(len(labels)))
    order = np.argsort(block, kind="stable")
    start, end = (np.searchsorted(block[order], block, side) for side in ("left", "right"))
    return order, start, end - start


def available_negatives(labels: np.ndarray) -> int:
    """How many images of other classes every sample has at least; labels int64 `[N]`, −1 for none."""
    return len(labels) - int(by_class(labels)[2].max())


def check(config: Config, setting: Setting) -> None:
    if setting.mixup:
        raise UsageError(
            "crd remembers one embedding of each image, and a mixture is of two",
            code="E-METHOD-SETTING",
            hint="leave `mixup` out, or crd",
        )
    if available_negatives(setting.labels) < 1:
        raise UsageError(
            "crd contrasts images of different classes; all of these are of one",
            code="E-METHOD-SETTING",
            hint="take more classes, or --kd kd",
        )


class Contrast(nn.Module):
    """The heads, and in buffers the memory `[N,width]` of each side with log Z `[2]` (student's, teacher's scores)."""

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    z_is_fixed: Tensor
    blocks: Tensor

    def __init__(self, config: Config, setting: Setting):
        super().__init__()
        self.student_head = nn.Linear(setting.student_pooled, config.width)
        self.teacher_head = nn.Linear(setting.teacher_pooled, config.width)
        shape = len(setting.labels), config.width
        self.register_buffer("student_memory", unit_rows(torch.randn(shape)))
        self.register_buffer("teacher_memory", unit_rows(torch.randn(shape)))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("z_is_fixed", torch.tensor(False))
        # `by_class` of the labels, which a checkpoint need not hold
        self.register_buffer("blocks", torch.from_numpy(np.stack(by_class(setting.labels))), persistent=False)
        self.negatives = min(config.negatives, available_negatives(setting.labels))


def adapters(config: Config, setting: Setting) -> nn.Module:
    return Contrast(config, setting)


def draw_negatives(blocks: Tensor, index: Tensor, count: int) -> Tensor:
    """`count` images of other classes for each of `index` `[B]`: int64 `[B,count]`. `blocks` `[3,N]` is `by_class`."""
    order, start, length = blocks[0], blocks[1, index, None], blocks[2, index, None]
    # the remainder of numbers this large favours none by more than one in 2^30
    position = torch.randint(2**62, (len(index), count), device=index.device) % (len(order) - length)
    return order[position + length * (position >= start)]


def contrastive_loss(scores: Tensor, log_z: Tensor, ratio: float) -> Tensor:
    """−mean_i [log D_i0 + Σ_k log(1 − D_ik)] of scores s·t/τ `[B,1+K]`, the positive first, `ratio` is K/N."""
    # log D = log σ(a) with a = log(e / (K/N)): nothing overflows
    odds = scores - log_z - math.log(ratio)
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()


def blend(memory: Tensor, index: Tensor, embeddings: Tensor, momentum: float) -> Tensor:
    """`memory` `[N,D]` with momentum · old + (1 − momentum) · new at `index` `[B]`, at length 1; out of place."""
    mixed = momentum * memory[index] + (1 - momentum) * embeddings
    return memory.index_copy(0, index, unit_rows(mixed))


def contrast(config: Config, student: Tensor, teacher: Tensor, index: Tensor, adapters: Contrast) -> Tensor:
    """L_s + L_t of pooled embeddings `[B,D_s]` and `[B,D_t]`; the memory learns from them if `student` has a graph."""
    ours = unit_rows(adapters.student_head(full_precision(student)))
    theirs = unit_rows(adapters.teacher_head(full_precision(teacher)))
    images = len(adapters.student_memory)
    wanted = torch.cat([index[:, None], draw_negatives(adapters.blocks, index, adapters.negatives)], 1)
    # the scores of all images by one product, and of these the wanted: gathering 1+K rows for each is far slower
    scores = torch.stack(
        [
            (anchor @ memory.T / config.temperature).gather(1, wanted)
            for anchor, memory in ((ours, adapters.teacher_memory), (theirs, adapters.student_memory))
        ]
    )
    log_z = adapters.log_z
    if not adapters.z_is_fixed:
        log_z = scores.detach().flatten(1).logsumexp(1) - math.log(wanted.numel()) + math.log(images)
    ratio = adapters.negatives / images
    total = contrastive_loss(scores[0], log_z[0], ratio) + contrastive_loss(scores[1], log_z[1], ratio)
    if torch.is_grad_enabled() and student.requires_grad:
        with torch.no_grad():
            adapters.log_z.copy_(log_z)
            adapters.z_is_fixed.fill_(True)
            # out of place: the backward pass still reads the memory as it was
            adapters.student_memory = blend(adapters.student_memory, index, ours, config.momentum)
            adapters.teacher_memory = blend(adapters.teacher_memory, index, theirs, config.momentum)
    return total


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Contrast) -> Tensor:
    index = torch.as_tensor(batch.index.astype(np.int64), device=student.pooled.device)
    hard = hard_label_loss(student.logits, batch.labels)
    return config.ce_weight * hard + config.weight * contrast(config, student.pooled, teacher.pooled, index, adapters)
