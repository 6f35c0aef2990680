"""Which samples are seen when, and in which of their augmented views: functions of the seed and the epoch alone."""

import numpy as np

from compress import randomness
from compress.types import Dataset

VIEW_COUNT = 2**31  # as good as endless; smaller where a teacher's answers are kept


def padding(dataset: Dataset) -> tuple[int, int]:
    """How far a crop may move down and right, in pixels: an eighth of each side, at least one."""
    _, height, width, _ = dataset.images.shape
    return max(1, height // 8), max(1, width // 8)


def variants(dataset: Dataset) -> int:
    """How many different pictures the views of one image can show."""
    down, right = padding(dataset)
    return (2 * down + 1) * (2 * right + 1) * (1 + dataset.may_flip)


def views(seed: int, epoch: int, index: np.ndarray, *, count: int = VIEW_COUNT) -> np.ndarray:
    """The view, uint64 in 1..count, of each sample `index` in this epoch. The seed acts here and in `epoch_order` only.

    A sample goes through all of its views, from a place that the seed chooses, before any comes again: so a run of
    `count` epochs sees each once, and another seed sees the same ones, which is what kept answers want.
    """
    first = randomness.integers(randomness.derive("views", seed), count, 0, index)
    return ((first + epoch) % count + 1).astype(np.uint64)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the samples in this epoch: a permutation, int64 `[n]`."""
    return randomness.permutation(randomness.derive("order", seed, epoch), n)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in an epoch; the incomplete last one is dropped, unless it is the only one."""
    return max(1, n // batch_size)
