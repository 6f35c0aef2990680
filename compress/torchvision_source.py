"""A torchvision data set that holds its images as arrays, read once into the cache; nothing is fetched unasked."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compress.data_source import Source, cached_arrays, short_digest
from compress.errors import CompressError, InputRejected

_VERSION = 1


def load(name: str, dataset_class: str, marker: str, *, root: str, download: bool, cache: Path) -> Source:
    """The data set of `torchvision.datasets.<dataset_class>`, whose unpacked folder is `marker`.

    It is looked for in `root` (default: a folder in `cache`). Raises InputRejected when it is not there and `download`
    is false, or when its files are damaged; CompressError when fetching fails.
    """
    place = Path(root).expanduser() if root else cache / "torchvision"
    folder = cache / f"{name}-{short_digest(_VERSION, str(place.resolve()) if root else '')}"
    if not (folder / "facts.json").exists() and not (place / marker).is_dir() and not download:
        raise InputRejected(
            f"data set `{name}` is not in {place} (no folder {marker})",
            code="E-DATA-ABSENT",
            hint=f"add `--download` to fetch it there, or name its folder: --data {name}:root=DIR",
        )
    arrays = cached_arrays(folder, lambda: _read(dataset_class, place, download))
    names = tuple(str(n) for n in arrays.pop("class_names"))
    return Source(name=name, **arrays, class_names=names, may_flip=True, cache=folder)  # type: ignore[arg-type]


def _read(dataset_class: str, place: Path, download: bool) -> dict[str, np.ndarray]:
    train, report = (_open(dataset_class, place, part, download) for part in (True, False))
    return {
        "train_images": np.asarray(train.data, np.uint8),
        "train_labels": np.asarray(train.targets, np.int64),
        "report_images": np.asarray(report.data, np.uint8),
        "report_labels": np.asarray(report.targets, np.int64),
        "class_names": np.asarray(train.classes, dtype=np.str_),
    }


def _open(dataset_class: str, place: Path, train: bool, download: bool) -> Any:
    from torchvision import datasets

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            return getattr(datasets, dataset_class)(str(place), train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise CompressError(
                f"could not fetch {dataset_class} into {place}: {error}",
                code="E-DATA-FETCH",
                hint="check the network, then run it again",
            ) from error
        raise InputRejected(
            f"the files of {dataset_class} in {place} are damaged or incomplete: {error}",
            code="E-DATA-ABSENT",
            hint="remove them and add `--download`",
        ) from error
