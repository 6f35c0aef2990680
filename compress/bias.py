"""Bias correction: what a student never saw in its transfer set gets its chance back, by one number.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 3: a student that never
saw the digit 3 misjudged most of them, until the bias of that class was raised. Here the number is the one that gives
the most right answers on `select`, the middle of the widest such interval.
"""

import copy

import numpy as np
import torch

from compress import taps
from compress.errors import UsageError
from compress.network import Network


def best_shift(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> tuple[float, int, int]:
    """(shift, right answers without it, right answers with it) for logits `[N,K]`, labels `[N]`, added to `classes`.

    >>> logits = np.array([[3.0, 1.0], [2.0, 1.5], [5.0, 0.0]])
    >>> best_shift(logits, np.array([1, 1, 0]), np.array([1]))  # from 2 on all are right, from 5 on one is wrong
    (3.5, 1, 3)
    """
    lacking = np.zeros(logits.shape[1], bool)
    lacking[classes] = True
    theirs, others = np.where(lacking, logits, -np.inf), np.where(lacking, -np.inf, logits)
    # a sample turns to the classes when the shift passes its margin
    margin = others.max(1) - theirs.max(1)
    gain = (theirs.argmax(1) == labels).astype(int) - (others.argmax(1) == labels)
    order = np.argsort(margin)
    edges = np.concatenate([[margin.min() - 1], margin[order], [margin.max() + 1]])
    right = (others.argmax(1) == labels).sum() + np.concatenate([[0], np.cumsum(gain[order])])
    width = np.where(right == right.max(), np.diff(edges), -1.0)
    chosen = int(width.argmax())
    shift = float(edges[chosen] + edges[chosen + 1]) / 2
    return shift, int((logits.argmax(1) == labels).sum()), int(right[chosen])


def layer_of(network: Network) -> str:
    """The path of the last linear layer. Raises UsageError where there is none, or it has no bias."""
    path = taps.probe(network, network.contract.input_shape).classifier
    if not path or network.get_submodule(path).bias is None:
        raise UsageError(
            f"`{network.contract.spec.partition(':')[0]}` has no last linear layer with a bias to correct",
            code="E-METHOD-NEEDS",
            hint="take another student, or a transfer set with all classes",
        )
    return path


def shifted(network: Network, classes: np.ndarray, shift: float) -> Network:
    """A copy of `network` whose logits of `classes` are raised by `shift`."""
    corrected = copy.deepcopy(network)
    layer = corrected.get_submodule(layer_of(network))
    with torch.no_grad():
        layer.bias[torch.from_numpy(classes)] += shift
    return corrected
