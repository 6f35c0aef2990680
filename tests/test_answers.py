"""A teacher's kept answers: never another's, never a torn one, and the same as the live ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from compress import network
from compress.answers import AnswerFile
from compress.augment import Augmenter
from compress.errors import CompressError, InputRejected
from compress.execution import Execution
from compress.sampling import VIEW_COUNT, views
from compress.teacher import Kept, Live
from compress.types import Dataset, Stage

PARTS = {"teacher": "abc", "augmentation": {"padding": [1, 1], "flip": False}}
LOGITS = Stage(name="", share=1.0, loss=lambda: None, pairs=(), logits=True)


def opened(folder: Path, views: int = 3, **parts: object) -> AnswerFile:
    return AnswerFile(folder / "kept", {**PARTS, **parts}, count=10, classes=4, views=views)


def some(seed: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 10, (rows, 4)).astype(np.float32)


INDEX, VIEW = np.array([9, 0, 4], np.uint64), np.array([3, 0, 1], np.uint64)


def test_what_is_written_is_found_again_and_nothing_else(tmp_path) -> None:
    file = opened(tmp_path)
    assert not file.read(INDEX, VIEW)[1].any()
    kept = file.write(INDEX, VIEW, some(0))
    assert kept.dtype == np.float16 and np.array_equal(kept, some(0).astype(np.float16))
    logits, found = opened(tmp_path).read(np.array([4, 9, 4, 0]), np.array([1, 3, 2, 0]))
    assert found.tolist() == [True, True, False, True]
    assert np.array_equal(logits[[3, 0, 1]], kept[[1, 2, 0]]) and np.isnan(logits[2]).all()


def test_zeros_and_the_extremes_of_float16_are_answers_too(tmp_path) -> None:
    file = opened(tmp_path)
    values = np.array([[0.0, -0.0, 65504, -65504], [6e-8, -6e-8, 1, -1], [0, 0, 0, 0]], np.float32)
    file.write(INDEX, VIEW, values)
    logits, found = file.read(INDEX, VIEW)
    assert found.all() and np.array_equal(logits, values.astype(np.float16))


@pytest.mark.parametrize("value", [1e5, -1e5, np.nan, np.inf])
def test_a_value_that_float16_cannot_hold_is_an_error(tmp_path, value) -> None:
    file = opened(tmp_path)
    bad = some(0)
    bad[1, 2] = value
    with pytest.raises(CompressError, match="float16") as caught:
        file.write(INDEX, VIEW, bad)
    print(caught.value)
    assert "keep_answers=false" in str(caught.value.hint) and not file.read(INDEX, VIEW)[1].any()


@pytest.mark.parametrize(
    ("parts", "named"),
    [({"teacher": "xyz"}, "teacher: abc there, xyz now"), ({"augmentation": {"flip": True}}, "augmentation.*flip")],
)
def test_answers_of_another_teacher_or_augmentation_are_refused(tmp_path, parts, named) -> None:
    opened(tmp_path).write(INDEX, VIEW, some(0))
    with pytest.raises(InputRejected, match=named) as caught:
        opened(tmp_path, **parts)
    print(caught.value)
    assert opened(tmp_path).read(INDEX, VIEW)[1].all(), "what was there is untouched"


@pytest.mark.parametrize("size", [0, 1, 8 * 30, 8 * 31 + 5])
def test_a_file_cut_short_is_said_so_and_filled_again(tmp_path, capsys, size) -> None:
    file = opened(tmp_path)
    everything = np.arange(40) % 10, np.arange(40) // 10
    file.write(*everything, some(1, rows=40))
    del file
    path = tmp_path / "kept" / "logits.f16"
    assert path.stat().st_size == 4 * 10 * 4 * 2
    with path.open("r+b") as stream:
        stream.truncate(size)
    file = opened(tmp_path)
    said = capsys.readouterr().err
    print(said)
    assert "cut short" in said and str(tmp_path) in said
    logits, found = file.read(*everything)
    assert found.tolist() == [8 * (row + 1) <= size for row in range(40)], "whole rows only"
    assert np.array_equal(logits[found], some(1, rows=40).astype(np.float16)[found])
    file.write(*everything, some(1, rows=40))
    assert opened(tmp_path).read(*everything)[1].all() and "cut short" not in capsys.readouterr().err


def test_more_views_keep_what_was_there_and_fewer_do_too(tmp_path) -> None:
    opened(tmp_path, views=3).write(INDEX, VIEW, some(0))
    larger = opened(tmp_path, views=7)
    larger.write(INDEX, VIEW + 4, some(2))
    smaller = opened(tmp_path, views=2)
    assert smaller.read(INDEX, VIEW)[1].all()
    assert opened(tmp_path, views=7).read(INDEX, VIEW + 4)[1].all()


@pytest.mark.parametrize("epochs", [4, 7])
def test_a_run_of_as_many_epochs_sees_each_view_once_whatever_the_seed(epochs: int) -> None:
    index = np.arange(50)
    for seed in (0, 1):
        seen = np.stack([views(seed, epoch, index, count=epochs) for epoch in range(epochs)])
        assert (np.sort(seen, axis=0) == np.arange(1, epochs + 1)[:, None]).all()
        assert (views(seed, epochs, index, count=epochs) == seen[0]).all()
    assert (views(0, 0, index, count=epochs) != views(1, 0, index, count=epochs)).any()
    assert len(np.unique(views(0, 3, index))) == 50 and views(0, 0, index, count=VIEW_COUNT).max() > 2**28


def digits_like(n: int = 24) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Dataset(
        name="x", split="train", images=pixels, labels=np.arange(n) % 4, class_names=tuple("abcd"), mean=(0.5,),
        std=(0.25,), may_flip=False, digest="d",
    )  # fmt: skip


def kept_teacher(tmp_path: Path, dataset: Dataset) -> Kept:
    torch.set_num_threads(1)
    net = network.build(
        "resnet20", class_names=dataset.class_names, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,), seed=0
    ).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(20)  # logits large enough for float16 to round
    live = Live(net, Execution(frozen=True))
    file = AnswerFile(tmp_path / "kept", PARTS, count=len(dataset.labels), classes=4, views=5)
    return Kept(live, file, seconds_per_image=0.5)


def test_kept_answers_are_the_live_ones_rounded_whatever_was_there(tmp_path) -> None:
    dataset = digits_like()
    augmenter, teacher = Augmenter(dataset), kept_teacher(tmp_path, dataset)
    index, view = np.arange(16, dtype=np.uint64), views(3, 0, np.arange(16), count=5)
    batch = augmenter.batch(index, view)
    live = teacher.teacher.open(LOGITS)(batch).logits
    reader = teacher.open(LOGITS)
    first = reader(batch).logits
    assert torch.equal(first, live.half().float()) and not torch.equal(first, live)
    assert teacher.facts() == {"answers_asked": 16, "answers_kept": 0, "seconds_saved": 0.0}
    again = reader(batch).logits
    assert torch.equal(again, first) and teacher.facts()["answers_kept"] == 16
    assert teacher.facts()["seconds_saved"] == 8.0
    # half of a batch that is there, in another order, with a live rest
    other = np.concatenate([index[8:], np.arange(16, 24, dtype=np.uint64)])
    mixed = augmenter.batch(other, np.concatenate([view[8:], np.ones(8, np.uint64)]))
    got, wanted = reader(mixed).logits, teacher.teacher.open(LOGITS)(mixed).logits
    assert torch.equal(got[:8], first[8:])
    # kernels order their sums by the size of the batch: at most one place of float16
    assert torch.allclose(got, wanted.half().float(), rtol=2**-10, atol=1e-6)
    assert teacher.facts()["answers_kept"] == 24


def test_a_phase_that_reads_maps_asks_the_live_teacher(tmp_path) -> None:
    dataset = digits_like()
    teacher = kept_teacher(tmp_path, dataset)
    assert teacher.probe
    tap = teacher.probe.stages[0]
    reader = teacher.open(dataclasses.replace(LOGITS, pairs=((tap, tap),)))
    signals = reader(Augmenter(dataset).plain(np.arange(4, dtype=np.uint64)))
    assert signals.maps[tap.stride].shape == (4, *tap.shape) and teacher.facts()["answers_asked"] == 0
    reader.close()


def test_a_hostile_manifest_is_refused(tmp_path) -> None:
    opened(tmp_path)
    (tmp_path / "kept" / "manifest.json").write_text("{")
    with pytest.raises(InputRejected, match="manifest.json"):
        opened(tmp_path)
