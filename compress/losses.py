"""Losses that several methods share, as pure functions of tensors. All are batch means, computed in float32."""

import torch.nn.functional as F
from torch import Tensor


def hard_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[B,K]` against int64 labels `[B]`, over the labelled samples (label ≥ 0) only.

    A batch without labels gives 0, not the 0/0 of an ignore index.

    >>> hard_label_loss(torch.zeros(2, 4), torch.tensor([1, -1])).item()  # log 4, the unlabelled one left out
    1.3862943649291992
    """
    labelled = labels >= 0
    total = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return (total * labelled).sum() / labelled.sum().clamp(min=1)


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(z_t/T) ‖ softmax(z_s/T)): summed over classes, averaged over the batch.

    Hinton, Vinyals and Dean 2015, section 2. The factor T² keeps the size of the gradient when T changes. The common
    mistake is a mean over classes too, which makes the loss K times too weak.

    >>> soft_label_loss(torch.ones(3, 5), torch.ones(3, 5) * 7, 4.0).item()
    0.0
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps `[B,·,H,W]` at one size: the larger is average-pooled to the smaller."""
    size = min(a.shape[-2:], b.shape[-2:])
    return tuple(x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))  # type: ignore
