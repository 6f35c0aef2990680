"""Plain cross-entropy with the hard labels: the baseline without a teacher.

    L = CE(z_s, y)

>>> from compress.types import Signals, Batch
>>> import torch, numpy as np
>>> z = Signals(logits=torch.tensor([[2.0, 0.0]]))
>>> b = Batch(inputs=None, labels=torch.tensor([0]), index=np.zeros(1), view=np.zeros(1), progress=0.0)
>>> round(loss(Config(), z, None, b, None).item(), 4)
0.1269
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.config import knob
from compress.losses import hard_label_loss
from compress.types import Batch, Signals

NEEDS = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy", low=0, high=1e6)


def loss(config: Config, student: Signals, teacher: Signals | None, batch: Batch, adapters: Any) -> Tensor:
    return config.ce_weight * hard_label_loss(student.logits, batch.labels)
