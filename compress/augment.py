"""Batches with augmentation on whole arrays: a crop after padding by reflection, and a flip where the data allows it.

The pixels of a view are a function of (view, sample index) alone, never of the seed, so that a teacher's answer for
them can be kept; `sampling.py` says which view of a sample is seen when. View 0 is the image as it is.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from compress import randomness
from compress.sampling import padding
from compress.types import Batch, Dataset

VERSION = 1  # raise it when the same view would have other pixels

_DOWN, _RIGHT, _FLIP = (randomness.derive("augment", name) for name in ("down", "right", "flip"))


def mixed(batch: Batch, share: float, *, seed: int, epoch: int) -> Batch:
    """The batch with about `share` of its images mixed with the next one of the batch: λ·x_i + (1−λ)·x_j, λ uniform in
    [0,1], a function of (seed, epoch, sample). A mixed image is of no class: its label becomes −1.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent" (FunMatch): teacher
    and student see the same mixture, and λ is uniform, where mixup (Zhang et al. 2018) has a Beta distribution.
    Deviation: `share` may be below 1, so that labels keep a part.
    """
    chosen = randomness.uniform(randomness.derive("mixup", "who", seed), epoch, batch.index) < share
    proportion = randomness.uniform(randomness.derive("mixup", "how", seed), epoch, batch.index)
    own = torch.from_numpy(np.where(chosen, proportion, 1.0).astype(np.float32)).to(batch.inputs.device)
    inputs = torch.lerp(batch.inputs.roll(-1, 0), batch.inputs, own[:, None, None, None])
    labels = batch.labels.masked_fill(torch.from_numpy(chosen).to(batch.labels.device), -1)
    return replace(batch, inputs=inputs, labels=labels)


def _reflected(position: np.ndarray, length: int) -> np.ndarray:
    """Positions outside 0..length-1 mirrored at the outermost pixel, which is not repeated."""
    position = np.abs(position)
    return np.clip(length - 1 - np.abs(length - 1 - position), 0, length - 1)


class Augmenter:
    """Makes batches from one split."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.may_flip = dataset, dataset.may_flip
        self.images, self.labels = dataset.images, dataset.labels
        _, self.height, self.width, self.channels = dataset.images.shape
        self.pad_height, self.pad_width = padding(dataset)

    def describe(self) -> dict[str, Any]:
        """What a view's pixels depend on beside the image."""
        return {
            "version": VERSION,
            "padding": [self.pad_height, self.pad_width],
            "flip": self.may_flip,
        }

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
