"""Batches with augmentation on whole arrays: a crop after padding by reflection, and a flip where the data allows it.

The pixels of a view are a function of (view, sample index) alone, never of the seed, so that a teacher's answer for
them can be kept; the seed chooses which view of a sample is seen when. View 0 is the image as it is.
"""

import numpy as np
import torch

from compress import randomness
from compress.types import Batch, Dataset

VIEW_COUNT = 2**31  # as good as endless; smaller where a teacher's answers are kept

_DOWN, _RIGHT, _FLIP = (randomness.derive("augment", name) for name in ("down", "right", "flip"))


def views(seed: int, epoch: int, index: np.ndarray, *, count: int = VIEW_COUNT) -> np.ndarray:
    """The view, uint64 in 1..count, of each sample `index` in this epoch. The seed acts here and in `epoch_order` only.

    With a small `count` the views of a sample come round again, which is what a cache of teacher answers wants.
    """
    stream = randomness.derive("views", seed)
    return (randomness.integers(stream, count, epoch, index) + 1).astype(np.uint64)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the samples in this epoch: a permutation, int64 `[n]`."""
    return randomness.permutation(randomness.derive("order", seed, epoch), n)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in an epoch; the incomplete last one is dropped, unless it is the only one."""
    return max(1, n // batch_size)


def _reflected(position: np.ndarray, length: int) -> np.ndarray:
    """Positions outside 0..length-1 mirrored at the outermost pixel, which is not repeated."""
    position = np.abs(position)
    return np.clip(length - 1 - np.abs(length - 1 - position), 0, length - 1)


class Augmenter:
    """Makes batches from one split. The padding is an eighth of each side, at least one pixel."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.may_flip = dataset, dataset.may_flip
        self.images, self.labels = dataset.images, dataset.labels
        _, self.height, self.width, self.channels = dataset.images.shape
        self.pad_height, self.pad_width = max(1, self.height // 8), max(1, self.width // 8)

    def batch(self, index: np.ndarray, view: np.ndarray, progress: float = 0.0) -> Batch:
        """The views `view` of the samples `index` (both `[B]`): inputs float32 `[B,C,H,W]`, stored channels last."""
        index, view = np.asarray(index), np.asarray(view).astype(np.uint64)
        rows = self.images[index]
        flat = self._sources(index, view) + np.arange(len(index))[:, None, None] * (self.height * self.width)
        pixels = np.take(rows.reshape(-1, self.channels), flat, axis=0)
        return self._batch(pixels, index, view, progress)

    def plain(self, index: np.ndarray) -> Batch:
        """The samples `index` as they are: view 0, without the work of a crop."""
        index = np.asarray(index)
        return self._batch(self.images[index], index, np.zeros(len(index), np.uint64), 0.0)

    def offsets(self, index: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shift down and right in pixels (int64, within the padding), and whether flipped (bool), each `[B]`."""
        shown = view != 0
        down = randomness.integers(_DOWN, 2 * self.pad_height + 1, view, index) - self.pad_height
        right = randomness.integers(_RIGHT, 2 * self.pad_width + 1, view, index) - self.pad_width
        flip = randomness.uniform(_FLIP, view, index) < 0.5
        return down * shown, right * shown, flip & shown & self.may_flip

    def _sources(self, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """For each target pixel the position of its source pixel in its own image, int64 `[B,H,W]`."""
        down, right, flip = self.offsets(index, view)
        from_row = _reflected(np.arange(self.height) + down[:, None], self.height)
        from_column = _reflected(np.arange(self.width) + right[:, None], self.width)
        from_column = np.where(flip[:, None], from_column[:, ::-1], from_column)
        return from_row[:, :, None] * self.width + from_column[:, None, :]

    def _batch(self, pixels: np.ndarray, index: np.ndarray, view: np.ndarray, progress: float) -> Batch:
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        labels = torch.from_numpy(np.asarray(self.labels[index], np.int64))
        return Batch(inputs=inputs, labels=labels, index=index.astype(np.uint64), view=view, progress=progress)
