"""What the losses of several methods share, as pure functions of tensors: batch means, in float32 or better."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.types import Signals

TINY = 1e-12  # a vector shorter than this has no direction


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32 if it has half of that; a better type stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hard_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[B,K]` against int64 labels `[B]`, over the labelled samples (label ≥ 0) only.

    A batch without labels gives 0, not the 0/0 of an ignore index.

    >>> hard_label_loss(torch.zeros(2, 4), torch.tensor([1, -1])).item()  # log 4, the unlabelled one left out
    1.3862943649291992
    """
    labelled = labels >= 0
    total = F.cross_entropy(full_precision(logits), labels.clamp(min=0), reduction="none")
    return (total * labelled).sum() / labelled.sum().clamp(min=1)


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(z_t/T) ‖ softmax(z_s/T)): summed over classes, averaged over the batch.

    Hinton, Vinyals and Dean 2015, section 2. The factor T² keeps the size of the gradient when T changes. The common
    mistake is a mean over classes too, which makes the loss K times too weak.

    >>> soft_label_loss(torch.ones(3, 5), torch.ones(3, 5) * 7, 4.0).item()
    0.0
    """
    log_student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def centred(x: Tensor) -> Tensor:
    """The rows `[…,N]` less their means. A row that is constant up to rounding becomes exactly 0, without a gradient:
    what is left of it is noise, and what divides by its length would follow the noise.

    >>> centred(torch.tensor([[1.0, 3.0], [0.1, 0.1]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    rest = x - x.mean(-1, keepdim=True)
    with torch.no_grad():
        # a mean is off by about one rounding of its terms; eight leave room for long rows
        rounding = 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        constant = torch.linalg.vector_norm(rest, dim=-1, keepdim=True) <= rounding
    return rest.masked_fill(constant, 0.0)


def standardise(logits: Tensor) -> Tensor:
    """(z − mean) / (1e-7 + std) over the classes of logits `[B,K]`, std unbiased; the gradient flows through both.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation"; 1e-7 is the official code's. Constant logits
    become 0 without a gradient, where the formula alone has one of 1e7.

    >>> standardise(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=4).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    rest = centred(full_precision(logits))
    deviation = torch.linalg.vector_norm(rest, dim=1, keepdim=True) / (logits.shape[1] - 1) ** 0.5
    return rest / (1e-7 + deviation)


def unit_rows(x: Tensor, floor: float | Tensor = TINY) -> Tensor:
    """The rows `[…,N]` at length 1. A row no longer than `floor` becomes 0, without a gradient: it has no direction.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (1 / length.clamp(min=floor)).masked_fill(length <= floor, 0.0)


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps `[B,·,H,W]` at one size: the larger is average-pooled to the smaller."""
    size = min(a.shape[-2:], b.shape[-2:])
    return tuple(x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))  # type: ignore


def mean_of_probabilities(members: Tensor, temperature: float) -> Tensor:
    """Logits `[B,K]` whose softmax at T is the mean of the members' (`[M,B,K]`): T · log 1/M Σ_m softmax(z_m/T).

    >>> members = torch.tensor([[[0.0, 100.0]], [[0.0, 0.0]]])
    >>> torch.softmax(mean_of_probabilities(members, 2.0) / 2.0, 1).round(decimals=4).tolist()
    [[0.25, 0.75]]
    """
    log_probabilities = F.log_softmax(full_precision(members) / temperature, dim=2)
    return temperature * (torch.logsumexp(log_probabilities, 0) - math.log(len(members)))


def soft_logits(teacher: Signals, temperature: float) -> Tensor:
    """The logits `[B,K]` that stand for the teacher at this temperature: its own, or the mean of its members'."""
    return teacher.logits if teacher.members is None else mean_of_probabilities(teacher.members, temperature)
