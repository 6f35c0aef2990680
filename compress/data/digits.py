"""1,797 real handwritten digits of 8 x 8 grey pixels, shipped with scikit-learn: nothing to download.

A copy of the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998). A fixed,
stratified fifth of it is the `report` split.
"""

from pathlib import Path

import numpy as np

from compress import config as knobs
from compress import randomness
from compress.data_source import Progress, Source, cached_arrays, stratified

Config = knobs.NoKnobs

# enough for images this easy
EPOCHS = 28
TEACHER_EPOCHS = 20
BATCH_SIZE, LEARNING_RATE = 64, 0.05
TIER = "smoke"
LICENSE = "CC BY 4.0 (UCI Machine Learning Repository)"

_VERSION = 1
_REPORT_FRACTION = 0.2


def load(
    config: Config, *, download: bool = False, on_bad: str = "fail", cache: Path, progress: Progress | None = None
) -> Source:
    """Images uint8 `[N,8,8,1]`; the source's values 0..16 are scaled to 0..255. Never downloads, nothing to skip."""
    folder = cache / f"digits-{_VERSION}"
    arrays = cached_arrays(folder, _read)
    return Source(
        name="digits",
        **arrays,  # type: ignore[arg-type]
        class_names=tuple("0123456789"),
        may_flip=False,
        cache=folder,
    )


def _read() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits  # half a second, needed once

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    train, report = stratified(labels, _REPORT_FRACTION, randomness.derive("report"))
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "report_images": images[report],
        "report_labels": labels[report],
    }
