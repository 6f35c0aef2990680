"""Gradient-based attention transfer: the loss of both networks should react to the same pixels.

    L = ce_weight · CE(z_s, y) + β/2 · mean_b ‖J_s,b − J_t,b‖₂,    J = ∂ Σ_b CE(z_b, y_b) / ∂x

β is `weight`, x the images in [0,1] (before a network's own normalisation), J `[B,C,H,W]`. The teacher's J is a
constant; the student's keeps its graph, so a step differentiates twice: it takes three to eight times a plain one (one
core, CIFAR-10 networks), and a compiled network cannot do it.
Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", section 3.2. The formulas there are for one
sample: so the norm is a sample's, and the batch takes the mean. Cross-entropy is summed over the batch, not averaged:
else J would shrink with the batch size. The gradient of the target's logit, normalised and squared, which other code
calls by this name, is another loss.
Deviations: a sample without a label takes the teacher's top-1 as y in both J, so it takes part. The default of β is
ours: it makes the two terms' gradients alike, see `scale`.

>>> import torch
>>> x = torch.zeros(1, 1, 1, 2, requires_grad=True)
>>> student, teacher = (input_gradient(a * x.flatten(1), x, torch.tensor([0])) for a in (3, 1))
>>> teacher.flatten().tolist()  # softmax − one-hot, times 1
[-0.5, 0.5]
>>> round(distance(student, teacher).item(), 4)  # ½ · ‖(−1, 1)‖
0.7071
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.config import knob
from compress.losses import full_precision, hard_label_loss
from compress.types import Batch, Signals

NEEDS = ("teacher", "inputs")


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)
    weight: float = knob(0.05, "weight β of the distance of the gradients", low=0, high=1e6)


def scale(config: Config) -> float:
    """At β = 1 its gradient was 2 to 28 times cross-entropy's (CIFAR-10; ResNet-20, new and trained; new MobileNet)."""
    return max(1.0, config.ce_weight + 20 * config.weight)


def input_gradient(logits: Tensor, inputs: Tensor, labels: Tensor, *, differentiable: bool = False) -> Tensor:
    """J `[B,C,H,W]` of logits `[B,K]` that depend on the leaf `inputs` `[B,C,H,W]`, for int64 labels `[B]`."""
    total = F.cross_entropy(full_precision(logits), labels, reduction="sum")
    # the graph is kept for a second method that reads these logits
    (gradient,) = torch.autograd.grad(total, inputs, create_graph=differentiable, retain_graph=True)
    return gradient


def distance(student_gradient: Tensor, teacher_gradient: Tensor) -> Tensor:
    """½ mean_b ‖J_s − J_t‖₂ of gradients `[B,C,H,W]`; equal ones give 0, with gradient 0."""
    difference = full_precision(student_gradient) - full_precision(teacher_gradient)
    return torch.linalg.vector_norm(difference.flatten(1), dim=1).mean() / 2


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    classes = torch.where(batch.labels >= 0, batch.labels, teacher.logits.argmax(1))
    target = input_gradient(teacher.logits, teacher.inputs, classes).detach()
    ours = input_gradient(student.logits, student.inputs, classes, differentiable=True)
    return config.ce_weight * hard_label_loss(student.logits, batch.labels) + config.weight * distance(ours, target)
