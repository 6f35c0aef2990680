"""Randomness as a function of keys, and the views that are made with it."""

import time

import numpy as np
import pytest
import torch

from compress import randomness
from compress.augment import Augmenter, mixed
from compress.sampling import epoch_order, steps_per_epoch, views
from compress.types import Dataset


def make_dataset(n: int = 50, size: int = 16, channels: int = 3, may_flip: bool = True) -> Dataset:
    images = np.random.default_rng(1).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return Dataset(
        name="noise",
        split="train",
        images=images,
        labels=np.arange(n) % 10,
        class_names=tuple("0123456789"),
        mean=(0.5,) * channels,
        std=(0.3,) * channels,
        may_flip=may_flip,
        digest="",
    )


# --- randomness ---------------------------------------------------------------------------------------------------


def test_streams_and_numbers_are_the_same_on_every_machine() -> None:
    # frozen values: a change would silently make every kept teacher answer and checkpoint wrong
    assert randomness.derive("weights", 0) == 8188624246165203210
    assert randomness.bits(1, 2, 3) == 9613205829653846581
    assert randomness.bits(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from state 0, as published
    assert randomness.permutation(5, 7).tolist() == [1, 4, 3, 6, 2, 0, 5]


def test_keys_do_not_run_into_each_other() -> None:
    keys = [("ab",), ("a", "b"), ("a", 1), ("a", "1"), ("a1",), (1, 2), (12,), (2, 1), (-1,), ()]
    assert len({randomness.derive(*key) for key in keys}) == len(keys)
    assert all(0 <= randomness.derive(*key) < 2**63 for key in keys)
    assert randomness.derive(np.int64(3)) == randomness.derive(3)
    with pytest.raises(TypeError):
        randomness.derive(1.5)


def test_counters_broadcast_and_each_number_stands_alone() -> None:
    grid = randomness.uniform(9, np.arange(4)[:, None], np.arange(5))
    assert grid.shape == (4, 5) and grid.dtype == np.float64
    assert grid[2, 3] == randomness.uniform(9, 2, 3) != randomness.uniform(9, 3, 2)


def test_uniform_fills_its_range_evenly() -> None:
    n = 100_000
    numbers = randomness.uniform(randomness.derive("test"), np.arange(n))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    # chi-square with 99 degrees of freedom: mean 99, standard deviation 14; 170 is five of them
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 170


@pytest.mark.parametrize("lag", [1, 2, 8, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_neighbouring_counters_are_not_correlated(lag: int, axis: int) -> None:
    grid = randomness.uniform(7, np.arange(300)[:, None], np.arange(300))
    first, second = (np.roll(grid, shift, axis=axis).ravel() for shift in (0, lag))
    # 90,000 pairs: the standard error of a correlation is 1/300; five of them
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 300


@pytest.mark.parametrize("streams", [(1, 2), (0, 2**62), (5, 5 + 0x9E3779B97F4A7C15)])
def test_streams_are_independent_of_each_other(streams: tuple[int, int]) -> None:
    one, other = (randomness.uniform(stream, np.arange(90_000)) for stream in streams)
    for shift in (-1, 0, 1):  # a stream must not be another one shifted, either
        assert abs(np.corrcoef(one, np.roll(other, shift))[0, 1]) < 5 / 300


def test_every_bit_is_fair() -> None:
    words = randomness.bits(3, np.arange(20_000))
    share = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)  # five standard errors


def test_normal_has_the_moments_of_a_normal() -> None:
    numbers = randomness.normal(11, np.arange(100_000))
    assert abs(numbers.mean()) < 5 / np.sqrt(100_000)  # five standard errors
    assert abs(numbers.std() - 1) < 5 / np.sqrt(200_000)
    assert abs((numbers**4).mean() - 3) < 5 * np.sqrt(96 / 100_000)


def test_integers_and_permutations() -> None:
    counts = np.bincount(randomness.integers(4, 9, np.arange(90_000)), minlength=9)
    assert len(counts) == 9 and np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000)
    order = randomness.permutation(8, 1000)
    assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert (order != randomness.permutation(9, 1000)).any() and randomness.permutation(8, 0).shape == (0,)


# --- views --------------------------------------------------------------------------------------------------------


def test_pixels_depend_on_view_and_index_alone() -> None:
    augmenter = Augmenter(make_dataset())
    index, view = np.array([3, 7, 3, 20]), np.array([5, 5, 6, 900], np.uint64)
    batch = augmenter.batch(index, view, 0.5)
    for position in range(4):  # alone, in another batch, at another progress, from another object: the same pixels
        alone = Augmenter(make_dataset()).batch(index[position : position + 1], view[position : position + 1], 0.9)
        assert torch.equal(alone.inputs[0], batch.inputs[position])
    assert not torch.equal(batch.inputs[0], batch.inputs[2])
    assert batch.labels.tolist() == [3, 7, 3, 0] and batch.progress == 0.5
    assert batch.index.dtype == batch.view.dtype == np.uint64 and batch.view.tolist() == [5, 5, 6, 900]


def test_the_seed_and_the_epoch_choose_the_view() -> None:
    index = np.arange(200)
    chosen = views(0, 0, index)
    assert chosen.dtype == np.uint64 and chosen.min() >= 1
    assert (chosen == views(0, 0, index)).all()
    assert (chosen != views(1, 0, index)).mean() > 0.99 and (chosen != views(0, 1, index)).mean() > 0.99
    assert views(0, 3, index[50:60]).tolist() == views(0, 3, index)[50:60].tolist()


def test_few_views_come_round_again_and_all_of_them_are_used() -> None:
    seen = np.concatenate([views(0, epoch, np.arange(100), count=4) for epoch in range(50)])
    counts = np.bincount(seen.astype(int), minlength=5)
    assert counts[0] == 0 and np.abs(counts[1:] - 1250).max() < 5 * np.sqrt(1250)


@pytest.mark.parametrize("channels", [1, 3])
def test_view_zero_is_the_image_itself(channels: int) -> None:
    dataset = make_dataset(channels=channels)
    index = np.array([4, 0, 49])
    expected = torch.from_numpy(dataset.images[index].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    for batch in (Augmenter(dataset).batch(index, np.zeros(3, np.uint64)), Augmenter(dataset).plain(index)):
        assert torch.equal(batch.inputs, expected) and batch.view.tolist() == [0, 0, 0]
        assert batch.inputs.dtype == torch.float32 and batch.labels.dtype == torch.int64
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


def test_a_view_is_a_crop_of_the_reflected_image_flipped_or_not() -> None:
    dataset = make_dataset(n=30)
    augmenter = Augmenter(dataset)
    index, view = np.arange(30), np.arange(1, 31, dtype=np.uint64)
    batch = augmenter.batch(index, view)
    for position, (down, right, flip) in enumerate(zip(*augmenter.offsets(index, view), strict=True)):
        padded = np.pad(dataset.images[position], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crop = padded[2 + down : 18 + down, 2 + right : 18 + right]
        expected = crop[:, ::-1] if flip else crop
        assert np.array_equal((batch.inputs[position].permute(1, 2, 0).numpy() * 255).round(), expected)


def test_offsets_and_flips_are_even_and_independent() -> None:
    augmenter = Augmenter(make_dataset(n=1, size=32))
    n = 40_500
    down, right, flip = augmenter.offsets(np.arange(n) % 450, np.arange(n).astype(np.uint64) // np.uint64(450) + 1)
    table = np.zeros((9, 9, 2))
    np.add.at(table, (down + 4, right + 4, flip.astype(int)), 1)
    # 162 cells of 250 each; five standard deviations; a flip tied to an offset would leave cells empty
    assert np.abs(table - 250).max() < 5 * np.sqrt(250)


def test_digits_are_never_mirrored() -> None:
    augmenter = Augmenter(make_dataset(may_flip=False))
    assert not augmenter.offsets(np.arange(50), np.arange(1, 51, dtype=np.uint64))[2].any()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_images_are_padded_too(size: int) -> None:
    batch = Augmenter(make_dataset(size=size)).batch(np.arange(50), np.arange(1, 51, dtype=np.uint64))
    assert batch.inputs.shape == (50, 3, size, size)


def test_images_may_be_memory_mapped_and_are_not_changed(tmp_path) -> None:
    dataset = make_dataset()
    np.save(tmp_path / "images.npy", dataset.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    index, view = np.arange(20), np.arange(1, 21, dtype=np.uint64)
    other = Augmenter(Dataset(**{**vars(dataset), "images": mapped}))
    assert torch.equal(other.batch(index, view).inputs, Augmenter(dataset).batch(index, view).inputs)
    other.plain(index).inputs.zero_()
    assert np.array_equal(mapped, dataset.images)


def test_an_epoch_started_again_has_the_same_order() -> None:
    assert np.array_equal(epoch_order(3, 8, 500), epoch_order(3, 8, 500))
    assert not np.array_equal(epoch_order(3, 8, 500), epoch_order(3, 9, 500))
    assert not np.array_equal(epoch_order(3, 8, 500), epoch_order(4, 8, 500))
    assert sorted(epoch_order(3, 8, 500)) == list(range(500))


def test_the_incomplete_last_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [steps_per_epoch(n, 64) for n in (1, 63, 64, 127, 128)] == [1, 1, 1, 1, 2]


def test_a_batch_costs_little() -> None:
    augmenter = Augmenter(make_dataset(n=5000, size=32))
    durations = []
    for step in range(20):
        index = np.arange(step * 64, step * 64 + 64)
        started = time.perf_counter()
        augmenter.batch(index, views(0, 0, index))
        durations.append(time.perf_counter() - started)
    # measured 0.6 ms; a loop over images, or Pillow, needs more than 10 ms; the best of 20 is robust on a busy machine
    assert min(durations) < 0.005


def test_mixed_images_are_those_of_two_and_have_no_label() -> None:
    split = make_dataset(60)
    augmenter, index = Augmenter(split), np.arange(60)[::-1].copy()
    plain = augmenter.batch(index, np.ones(60))
    made = mixed(plain, 0.5, seed=1, epoch=2)
    hit = (made.labels == -1).numpy()
    assert 15 < hit.sum() < 45 and np.array_equal(made.labels.numpy()[~hit], plain.labels.numpy()[~hit])
    assert torch.equal(made.inputs[~hit], plain.inputs[~hit])
    partner = plain.inputs.roll(-1, 0)
    # the proportion that explains a mixture best explains it to rounding, and is spread over [0,1]
    a, b, m = (x.flatten(1)[hit].double() for x in (plain.inputs, partner, made.inputs))
    share = ((m - b) * (a - b)).sum(1) / (a - b).square().sum(1)
    assert torch.allclose(m, b + share[:, None] * (a - b), atol=1e-6)
    assert share.min() < 0.2 and share.max() > 0.8 and 0.3 < share.mean() < 0.7
    again = mixed(plain, 0.5, seed=1, epoch=2)
    assert torch.equal(again.inputs, made.inputs) and torch.equal(again.labels, made.labels)
    assert not torch.equal(mixed(plain, 0.5, seed=1, epoch=3).inputs, made.inputs)
    assert not torch.equal(mixed(plain, 0.5, seed=2, epoch=2).inputs, made.inputs)
    assert (mixed(plain, 1.0, seed=0, epoch=0).labels == -1).all()
