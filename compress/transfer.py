"""The transfer set: what a student learns from where that is not the train split. It may lack classes, and hold images
without labels, which count in the soft losses only (label −1).
"""

import dataclasses
from pathlib import Path

import numpy as np

from compress import data_source, dataset, decoding, images, listing
from compress.data_source import Progress
from compress.errors import InputRejected, unknown
from compress.types import Dataset

_VERSION = 1


def transfer_set(train: Dataset, lacks: tuple[str, ...], unlabelled: np.ndarray | None) -> Dataset:
    """`train` without the classes `lacks`, and with `unlabelled` images uint8 `[M,H,W,C]`.

    Raises UsageError for an unknown class, InputRejected when nothing is left.
    """
    for name in lacks:
        if name not in train.class_names:
            raise unknown("class", name, list(train.class_names), where="--transfer-lacks")
    gone = [train.class_names.index(name) for name in lacks]
    kept = ~np.isin(train.labels, gone)
    parts = [(train.images[kept], train.labels[kept])]
    if unlabelled is not None:
        parts.append((unlabelled, np.full(len(unlabelled), -1, np.int64)))
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(labels) == 0:
        raise InputRejected(
            "the transfer set is empty: it lacks every class, and there are no unlabelled images",
            code="E-TRANSFER-IMAGES",
            hint="leave out fewer classes with --transfer-lacks, or give images with --unlabelled",
        )
    return dataclasses.replace(
        train, split="transfer", images=pixels, labels=labels, digest=dataset.digest(pixels, labels, train.class_names)
    )


def read_unlabelled(root: Path, like: Dataset, cache: Path, progress: Progress) -> np.ndarray:
    """Every image below `root`, in the size and colours of `like`: uint8 `[M,H,W,C]`, decoded once.

    Raises InputRejected for a folder without images, and listing all files that cannot be used.
    """
    files = listing.below(root)
    channels, height, width = like.input_shape
    key = [(file.path, file.stamp, file.problem) for file in files]
    folder = cache / f"unlabelled-{data_source.short_digest(_VERSION, key, channels, height, width)}"
    if data_source.read_facts(folder) is None:
        bad: list[decoding.Bad] = []
        with decoding.workers() as pool, data_source.building(folder) as temporary:
            rows, done = [], 0
            for pixels, kept, failed in decoding.pixels(pool, files, (height, width), channels):
                rows.append(pixels)
                bad += failed
                done += len(kept) + len(failed)
                progress(done, len(files))
            if bad:
                listed = "\n".join(f"  {images.shown(path)}: {reason}" for path, reason in sorted(bad)[:10])
                raise InputRejected(
                    f"{len(bad)} of {len(files)} unlabelled image files cannot be used:\n{listed}",
                    code="E-IMAGE-UNREADABLE",
                    hint="repair or remove them",
                )
            data_source.write_rows(temporary / "images.npy", iter(rows), (height, width, channels))
            data_source.write_facts(temporary, {"files": len(files)})
    return data_source.read_array(folder / "images.npy")
