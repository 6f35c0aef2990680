"""Multilayer perceptron: pixels in, equal hidden layers with ReLU. Two of 800 units are the classic MNIST student.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 3: a teacher of two
layers of 1200 units with dropout, a student of two of 800 without (FC800 - FC800 - FC). The paper's constraint on
weight norms is left to weight decay.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from compress.config import knob

PARAMETERS = {
    ("mlp", 10, (1, 28, 28)): 1_276_810,
    ("mlp:hidden=1200", 10, (1, 28, 28)): 2_395_210,
}

# one for each weight
MACS = {
    ("mlp", 10, (1, 28, 28)): 1_275_200,
    ("mlp:hidden=1200", 10, (1, 28, 28)): 2_392_800,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    depth: int = knob(2, "number of hidden layers", low=1, high=64)
    hidden: int = knob(800, "units of each hidden layer", low=1, high=65536)
    dropout: float = knob(0.0, "dropout of the hidden layers (the paper's teacher: 0.5)", low=0, high=0.9)


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    units = math.prod(input_shape)
    for i in range(1, config.depth + 1):
        layers[f"fc{i}"] = nn.Linear(units, config.hidden)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"dropout{i}"] = nn.Dropout(config.dropout)
        nn.init.kaiming_normal_(layers[f"fc{i}"].weight)  # type: ignore[arg-type]
        units = config.hidden
    layers["linear"] = nn.Linear(units, num_classes)
    return nn.Sequential(layers)
