"""Training of a soft decision tree: the cross-entropy of each leaf, weighted by the probability of its path.

    L = a · (−m_y) + b · (−Σ_k T_k m_k),   m_k = Σ_l P^l log Q^l_k,   T = softmax(z_t/τ)

a is `ce_weight` (the hard label y), b `kd_weight`, τ `temperature`; m is what a `soft_tree` answers in training. Both
terms are averaged over the batch. The penalty on unbalanced nodes belongs to the network, and the trainer adds it.
Source: Frosst and Hinton 2017, "Distilling a Neural Network Into a Soft Decision Tree", section 2, eq. 3.
Deviation: the paper prints L = −log(Σ_l P^l Σ_k T_k log Q^l_k), the logarithm of a negative number; this is the
expectation inside it, as in other implementations. The paper mixes labels and the teacher's answers: here by a and b.
Meant for trees. Their exp(m_k) never sum to more than 1; the answers of other networks are normalised where they do,
without which their loss would have no lower bound: with logits like these it is plain cross-entropy.

>>> from compress.types import Signals, Batch
>>> import torch, numpy as np
>>> tree = Signals(logits=torch.tensor([[-0.5, -1.5]]))
>>> b = Batch(inputs=None, labels=torch.tensor([1]), index=np.zeros(1), view=np.zeros(1), progress=0.0)
>>> loss(Config(ce_weight=1.0), tree, Signals(logits=torch.zeros(1, 2)), b, None).item()  # 1.5, and the mean of both
2.5
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from compress.config import knob
from compress.losses import full_precision, soft_logits
from compress.types import Batch, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(1.0, "temperature τ of the teacher's softmax", low=0.05, high=1000)
    ce_weight: float = knob(0.0, "weight a of the hard labels", low=0, high=1e6)
    kd_weight: float = knob(1.0, "weight b of the teacher's answers", low=0, high=1e6)


def mean_log_probabilities(answers: Tensor) -> Tensor:
    """A tree's answers m `[B,K]` as they are; rows whose exp sums to more than 1 are normalised to 1."""
    answers = full_precision(answers)
    return answers - answers.logsumexp(1, keepdim=True).clamp(min=0)


def soft_label_term(answers: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """−Σ_k T_k m_k of answers m `[B,K]` and the teacher's logits `[B,K]`, averaged over the batch."""
    targets = F.softmax(full_precision(teacher_logits) / temperature, dim=1)
    return -(targets * mean_log_probabilities(answers)).sum(1).mean()


def hard_label_term(answers: Tensor, labels: Tensor) -> Tensor:
    """−m_y of answers m `[B,K]`, averaged over the samples with a label ≥ 0; 0 without any."""
    labelled = labels >= 0
    picked = mean_log_probabilities(answers).gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return -(picked * labelled).sum() / labelled.sum().clamp(min=1)


def scale(config: Config) -> float:
    """No T² here: the two terms' gradients are of the size of cross-entropy's each."""
    return max(1.0, config.ce_weight + config.kd_weight)


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    hard = hard_label_term(student.logits, batch.labels)
    soft = soft_label_term(student.logits, soft_logits(teacher, config.temperature), config.temperature)
    return config.ce_weight * hard + config.kd_weight * soft
