"""The four uses of data: apart, balanced, the same for every seed where they must be, with exact statistics."""

import numpy as np
import pytest

from compress import dataset
from compress.data_source import Source
from compress.errors import InputRejected, UsageError


def make_source(n: int = 1000, classes: int = 5, **more) -> Source:
    images_ = np.random.default_rng(3).integers(0, 256, (n + 100, 4, 4, 3), dtype=np.uint8)
    labels = np.sort(np.arange(n + 100) % classes)
    order = np.random.default_rng(4).permutation(n + 100)
    train, report = np.sort(order[:n]), np.sort(order[n:])
    arrays = {
        "train_images": images_[train],
        "train_labels": labels[train],
        "report_images": images_[report],
        "report_labels": labels[report],
    }
    return Source(name="noise", class_names=tuple("abcdefgh"[:classes]), may_flip=True, **{**arrays, **more})


def as_set(array: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in array}


def test_the_splits_are_apart_and_calibrate_is_from_train() -> None:
    source = make_source()
    splits = dataset.prepare(source, seed=0)
    train, select, calibrate, report = (
        as_set(getattr(splits, u).images) for u in ("train", "select", "calibrate", "report")
    )
    assert len(splits.train.labels) == 900 and len(splits.select.labels) == 100 and len(calibrate) == 512
    assert train | select == as_set(source.train_images) and not train & select
    assert calibrate <= train and not report & (train | select)
    assert splits.warnings == () and splits.report.split == "report"
    for use in ("train", "select", "calibrate"):  # labels still belong to their images
        split = getattr(splits, use)
        known = {i.tobytes(): label for i, label in zip(source.train_images, source.train_labels, strict=True)}
        assert [known[i.tobytes()] for i in split.images] == split.labels.tolist()


def test_select_is_stratified_and_the_same_for_every_seed() -> None:
    one, other = (dataset.prepare(make_source(), seed=seed) for seed in (0, 1))
    assert one.select.digest == other.select.digest and one.train.digest == other.train.digest
    assert one.calibrate.digest != other.calibrate.digest
    assert one.calibrate.digest == dataset.prepare(make_source(), seed=0).calibrate.digest
    share = np.bincount(one.select.labels) / np.bincount(make_source().train_labels)
    assert np.abs(share - 0.1).max() < 0.005


def test_a_split_of_its_own_is_used_for_choices() -> None:
    own = np.zeros((7, 4, 4, 3), np.uint8)
    source = make_source(select_images=own, select_labels=np.zeros(7, np.int64))
    splits = dataset.prepare(source, seed=0)
    assert splits.select.images is own and len(splits.train.labels) == 1000


@pytest.mark.parametrize(("n", "asked", "expected"), [(1000, 512, 512), (1000, 10, 300), (200, 512, 180)])
def test_how_many_images_calibrate(n: int, asked: int, expected: int) -> None:
    splits = dataset.prepare(make_source(n), seed=0, calibration_images=asked)
    assert len(splits.calibrate.labels) == expected


def test_every_prefix_of_calibrate_is_balanced() -> None:
    labels = np.array([0] * 500 + [1] * 30 + [2] * 500)
    chosen = labels[dataset.balanced(labels, 300, seed=0)]
    for length in (9, 30, 90):
        assert np.ptp(np.bincount(chosen[:length], minlength=3)) <= 1
    assert np.bincount(chosen).tolist() == [135, 30, 135], "a small class gives all it has"


def test_statistics_are_those_of_train_in_unit_range() -> None:
    splits = dataset.prepare(make_source(), seed=0)
    values = splits.train.images.astype(np.float64) / 255
    # both are exact up to rounding in float64; statistics of all images, or of 0..255, differ in the third digit
    assert np.allclose(splits.report.mean, values.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert np.allclose(splits.report.std, values.std(axis=(0, 1, 2)), rtol=1e-12)
    assert dataset.moments(np.zeros((5, 2, 2, 1), np.uint8)) == ((0.0,), (1e-3,))


def test_the_digest_covers_pixels_labels_names_and_shape() -> None:
    base, labels, names = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), np.arange(4), ("a", "b")
    changed = base.copy()
    changed[3, 1, 1, 2] ^= 1
    digests = {
        dataset.digest(base, labels, names),
        dataset.digest(changed, labels, names),
        dataset.digest(base, labels[::-1], names),
        dataset.digest(base, labels, ("a", "c")),
        dataset.digest(base.reshape(4, 1, 4, 3), labels, names),
    }
    assert len(digests) == 5


def test_images_in_two_splits_are_reported() -> None:
    source = make_source()
    doubled = np.concatenate([source.report_images[:98], source.train_images[:2]])
    (warning,) = dataset.prepare(make_source(report_images=doubled), seed=0, select_fraction=0.001).warnings
    print(warning)
    assert warning.startswith("2 of 100 images of the report split are also in the train split")


@pytest.mark.parametrize(
    ("key", "value"), [("select_fraction", 0.0), ("select_fraction", 1.0), ("calibration_images", 0)]
)
def test_impossible_splits_are_usage_errors(key: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        dataset.prepare(make_source(), seed=0, **{key: value})
    print(caught.value)
    assert key in str(caught.value) and f"{value:g}" in str(caught.value)


def test_a_source_without_report_images_is_rejected() -> None:
    empty = {"report_images": np.empty((0, 4, 4, 3), np.uint8), "report_labels": np.empty(0, np.int64)}
    with pytest.raises(InputRejected, match="no images for the split `report`"):
        dataset.prepare(make_source(**empty), seed=0)
