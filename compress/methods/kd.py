"""Hinton's knowledge distillation: soft targets at a temperature, and the hard labels.

    L = a · CE(z_s, y) + b · T² · KL(softmax(z_t/T) ‖ softmax(z_s/T))

a is `ce_weight`, b `kd_weight`, T `temperature`; KL is summed over classes and averaged over the batch.
Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. The defaults are those
of the CIFAR tables that later papers compare with (T=4, a=0.1, b=0.9). No deviation.
`standardise` takes each side's logits to mean 0 and deviation 1 over the classes before the temperature, so that the
student need not match the teacher's range (Sun et al. 2024, "Logit Standardization in Knowledge Distillation"; theirs
is `temperature=2,kd_weight=9,standardise=true`).

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
from compress.errors import UsageError
from compress.losses import hard_label_loss, soft_label_loss, soft_logits, standardise
from compress.types import Batch, Setting, Signals

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(4.0, "temperature T of both softmaxes", low=0.05, high=1000)
    ce_weight: float = knob(0.1, "weight a of the hard-label cross-entropy", low=0, high=1e6)
    kd_weight: float = knob(0.9, "weight b of the soft-label term", low=0, high=1e6)
    standardise: bool = knob(False, "bring each side's logits to mean 0 and deviation 1 first")


def check(config: Config, setting: Setting) -> None:
    if config.standardise and setting.num_classes < 3:
        raise UsageError(
            "kd: standardised logits of two classes are ±0.7 whatever the network says, so they teach nothing",
            code="E-METHOD-SETTING",
            hint="leave `standardise` out",
        )


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: Any) -> Tensor:
    ours, theirs = student.logits, soft_logits(teacher, config.temperature)
    if config.standardise:
        ours, theirs = standardise(ours), standardise(theirs)
    hard = hard_label_loss(student.logits, batch.labels)
    return config.ce_weight * hard + config.kd_weight * soft_label_loss(ours, theirs, config.temperature)
