"""Digits and CIFAR: the right images, read once, and nothing fetched unasked; the contract of every data entry."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress import catalog, torchvision_source
from compress.data import digits
from compress.errors import InputRejected


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_digits_are_the_real_ones_and_come_from_the_cache_later(cache: Path) -> None:
    from sklearn.datasets import load_digits

    source = digits.load(digits.Config(), cache=cache)
    assert source.train_images.shape == (1438, 8, 8, 1) and source.report_images.shape == (359, 8, 8, 1)
    assert not source.may_flip and source.class_names == tuple("0123456789")
    found = sorted(i.tobytes() for i in (*source.train_images, *source.report_images))
    real = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert found == sorted(i.tobytes() for i in real) and real.max() == 255
    assert np.abs(np.bincount(source.report_labels) / np.bincount(source.train_labels) - 0.25).max() < 0.01
    code = (
        "import sys; from pathlib import Path; from compress.data import digits;"
        "digits.load(digits.Config(), cache=Path(sys.argv[1])); print('sklearn' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_nothing_is_downloaded_unasked(name: str, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(torchvision_source, "_open", lambda *_: pytest.fail("torchvision was asked"))
    entry = catalog.load("data", name)
    with pytest.raises(InputRejected) as caught:
        entry.module.load(entry.config, download=False, cache=cache)
    print(caught.value)
    assert name in caught.value.message and str(cache) in caught.value.message and "--download" in caught.value.hint


class FakeCifar:
    """As torchvision's: arrays that are already unpacked."""

    opened = 0

    def __init__(self, root: str, train: bool, download: bool):
        type(self).opened += 1
        n = 40 if train else 10
        self.data = np.full((n, 32, 32, 3), 1 if train else 2, np.uint8)
        self.targets = [i % 2 for i in range(n)]
        self.classes = ["cat", "dog"]


def test_cifar_is_read_once(tmp_path: Path, cache: Path, monkeypatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    (tmp_path / "cifar-10-batches-py").mkdir()
    entry = catalog.load("data", f"cifar10:root={tmp_path}")
    for _ in range(2):
        source = entry.module.load(entry.config, download=False, cache=cache)
    assert FakeCifar.opened == 2, "train and test, once each"
    assert source.class_names == ("cat", "dog") and source.may_flip
    assert (source.train_images == 1).all() and source.train_images.shape == (40, 32, 32, 3)
    assert (source.report_images == 2).all() and source.report_labels.dtype == np.int64


def test_damaged_cifar_files_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    entry = catalog.load("data", f"cifar10:root={tmp_path}")
    with pytest.raises(InputRejected) as caught:
        entry.module.load(entry.config, download=False, cache=cache)
    print(caught.value)
    assert str(tmp_path) in caught.value.message and "damaged" in caught.value.message


@pytest.mark.parametrize("name", catalog.names("data"))
def test_every_data_entry_keeps_the_contract(name: str) -> None:
    entry = catalog.load("data", name)
    parameters = inspect.signature(entry.module.load).parameters
    assert list(parameters) == ["config", "download", "on_bad", "cache", "progress"]
    assert len(catalog.summary("data", name)) > 20
