"""Hinton's knowledge distillation: soft targets at a temperature, and the hard labels.

    L = a · CE(z_s, y) + b · T² · KL(softmax(z_t/T) ‖ softmax(z_s/T))

a is `ce_weight`, b `kd_weight`, T `temperature`; KL is summed over classes and averaged over the batch.
Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. The defaults are those
of the CIFAR tables that later papers compare with (T=4, a=0.1, b=0.9). No deviation.

>>> from compress.types import Signals, Batch
>>> import torch, numpy as np
>>> z = Signals(logits=torch.tensor([[2.0, 0.0]]))
>>> b = Batch(inputs=None, labels=torch.tensor([-1]), index=np.zeros(1), view=np.zeros(1), progress=0.0)
>>> loss(Config(), z, z, b, None).item()  # the teacher's answer, and no label: nothing to learn
0.0
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.config import knob
from compress.losses import hard_label_loss, soft_label_loss
from compress.types import Batch, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(4.0, "temperature T of both softmaxes", low=0.05, high=1000)
    ce_weight: float = knob(0.1, "weight a of the hard-label cross-entropy", low=0, high=1e6)
    kd_weight: float = knob(0.9, "weight b of the soft-label term", low=0, high=1e6)


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    hard = hard_label_loss(student.logits, batch.labels)
    soft = soft_label_loss(student.logits, teacher.logits, config.temperature)
    return config.ce_weight * hard + config.kd_weight * soft
