"""From what a data entry found to the four uses of data: train, select, calibrate, report.

`select` is carved from train by a fixed choice, the same for every seed, so that runs with different seeds are judged
on the same images. Statistics and digests are computed once and kept in the source's cache folder.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compress import data_source, randomness
from compress.data_source import Source
from compress.errors import InputRejected, UsageError
from compress.types import Dataset, Splits

MIN_CALIBRATION_IMAGES = 300  # int8 ranges from fewer are noisy
_MIN_STD = 1e-3  # a channel that never varies must not be blown up
_CHUNK_BYTES = 2**24
_VERSION = 1


def prepare(source: Source, *, seed: int, select_fraction: float = 0.1, calibration_images: int = 512) -> Splits:
    """The splits of `source`. Only `calibrate` depends on `seed`: a class-balanced sample of train.

    It has `calibration_images`, but at least 300, or all of train when there are fewer. Raises UsageError for a
    fraction outside (0, 0.9] or no calibration images, InputRejected when a split would be empty.
    """
    if not 0 < select_fraction <= 0.9:
        raise UsageError(f"`select_fraction` must lie in (0, 0.9], got {select_fraction:g}", code="E-KNOB-RANGE")
    if calibration_images < 1:
        raise UsageError(f"`calibration_images` must be at least 1, got {calibration_images}", code="E-KNOB-RANGE")
    parts = {"report": (source.report_images, source.report_labels), **_carved(source, select_fraction)}
    for split, (images, _) in parts.items():
        if len(images) == 0:
            raise InputRejected(
                f"data set `{source.name}` has no images for the split `{split}`",
                code="E-DATA-EMPTY",
                hint="add images",
            )
    facts = _facts(source, parts, select_fraction)
    ids = balanced(parts["train"][1], max(MIN_CALIBRATION_IMAGES, calibration_images), seed)
    parts["calibrate"] = (parts["train"][0][ids], parts["train"][1][ids])
    digests = {**facts["digests"], "calibrate": digest(*parts["calibrate"], source.class_names)}
    splits = {
        split: Dataset(
            name=source.name,
            split=split,
            images=images,
            labels=labels,
            class_names=source.class_names,
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            may_flip=source.may_flip,
            digest=digests[split],
        )
        for split, (images, labels) in parts.items()
    }
    return Splits(**splits, skipped=source.skipped, warnings=tuple(facts["warnings"]))


def balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` ids (all, if fewer) int64, seeded, as even over the classes as they allow; so is every prefix."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        ids = np.flatnonzero(labels == label)
        rank[ids] = randomness.permutation(randomness.derive("calibrate", seed, int(label)), len(ids))
    tie = randomness.bits(randomness.derive("calibrate-tie", seed), np.arange(len(labels)))
    return np.lexsort((tie, rank))[:count]


def digest(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> str:
    """sha256 over the shape, the pixels, the labels and the class names."""
    total = hashlib.sha256(json.dumps([images.shape, class_names]).encode())
    for chunk in _chunks(images):
        total.update(np.ascontiguousarray(chunk).data)
    total.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return total.hexdigest()


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `[N,H,W,C]`, of values in [0,1]; the latter at least 1e-3.

    Exact: from whole-number counts of the 256 values.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for chunk in _chunks(images):
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(std, _MIN_STD).tolist())


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _carved(source: Source, fraction: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`train` and `select`; what is carved from a large array is copied once, into the source's cache."""
    if source.select_images is not None and source.select_labels is not None:
        return {
            "train": (source.train_images, source.train_labels),
            "select": (source.select_images, source.select_labels),
        }
    kept, taken = data_source.stratified(source.train_labels, fraction, randomness.derive("select"))
    ids = {"train": kept, "select": taken}
    labels = {split: source.train_labels[ids[split]] for split in ids}
    if source.cache is None or source.train_images.nbytes <= data_source.IN_MEMORY_BYTES:
        return {split: (source.train_images[ids[split]], labels[split]) for split in ids}
    folder = source.cache / f"carved-{data_source.short_digest(_VERSION, fraction)}"
    if data_source.read_facts(folder) is None:
        with data_source.building(folder) as temporary:
            for split in ids:
                rows = (source.train_images[some] for some in _pieces(ids[split], source.train_images))
                data_source.write_rows(temporary / f"{split}.npy", rows, source.train_images.shape[1:])
            data_source.write_facts(temporary, {"fraction": fraction})
    return {split: (data_source.read_array(folder / f"{split}.npy"), labels[split]) for split in ids}


def _pieces(ids: np.ndarray, images: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(ids), step):
        yield ids[start : start + step]


def _facts(source: Source, parts: dict[str, tuple[np.ndarray, np.ndarray]], fraction: float) -> dict[str, Any]:
    """mean, std, digests and warnings: read from the cache, or computed and kept there."""
    key = None if source.select_images is not None else fraction
    folder = source.cache and Path(source.cache) / f"facts-{data_source.short_digest(_VERSION, key)}"
    known = data_source.read_facts(folder) if folder else None
    if known is not None:
        return known
    mean, std = moments(parts["train"][0])
    facts = {
        "mean": mean,
        "std": std,
        "digests": {split: digest(*arrays, source.class_names) for split, arrays in parts.items()},
        "warnings": _overlaps(parts),
    }
    if folder:
        with data_source.building(folder) as temporary:
            data_source.write_facts(temporary, facts)
    return facts


def contents(images: np.ndarray) -> list[bytes]:
    """A digest of each image's pixels."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def _overlaps(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """A sentence for each split whose images are also in another one, pixel for pixel."""
    seen = {split: contents(images) for split, (images, _) in parts.items()}
    found = []
    for split, other in (("report", "train"), ("report", "select"), ("select", "train")):
        known = set(seen[other])
        count = sum(image in known for image in seen[split])
        if count:
            total = len(seen[split])
            found.append(
                f"{count} of {total} images of the {split} split are also in the {other} split, pixel for pixel"
            )
    return found
