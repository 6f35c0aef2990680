"""Magnitude: a channel matters as much as the norm of its weights, over all the layers that it is coupled to.

    score(channel) = mean over coupled layers of ‖w_channel‖_p, divided by the mean score of its group

Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (p = 1), and the grouping of Torch-Pruning (Fang et al.
2023, "DepGraph"), whose MagnitudeImportance this is. Dividing by the group's mean makes layers comparable, which a
global ratio needs.
"""

from dataclasses import dataclass
from typing import Any

from compress.config import knob


@dataclass(frozen=True, kw_only=True)
class Config:
    p: int = knob(2, "which norm: 1 or 2", low=1, high=2)


def scores(config: Config) -> Any:
    import torch_pruning

    return torch_pruning.importance.MagnitudeImportance(p=config.p, group_reduction="mean", normalizer="mean")
