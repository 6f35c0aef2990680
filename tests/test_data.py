"""A folder of images: its layout rules with their messages, and the cache of decoded arrays."""

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import data_source, dataset, images
from compress.data import folder
from compress.data_source import Source
from compress.errors import CompressError, InputRejected, UsageError


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "PNG")


def split_folder(root: Path, splits=("train", "test"), classes=("ant", "bee"), count: int = 6, **options) -> Path:
    numbers = iter(range(10_000))
    for split in splits:
        for name in classes:
            for i in range(count):
                picture(root / split / name / f"{i:03d}.png", next(numbers), **options)
    return root


def load(root: Path, cache: Path, on_bad: str = "fail", **knobs) -> Source:
    return folder.load(folder.Config(path=str(root), **knobs), on_bad=on_bad, cache=cache)


def message(root: Path, cache: Path, **options) -> str:
    with pytest.raises(InputRejected) as caught:
        load(root, cache, **options)
    print(caught.value)
    assert caught.value.exit_code == 5 and caught.value.hint
    assert not cache.exists() or list(cache.iterdir()) == [], "nothing half-written may be left"
    return str(caught.value)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- layouts --------------------------------------------------------------------------------------------------------


def test_train_val_test_become_train_select_report(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", ("test", "val", "train"))
    source = load(root, cache)
    assert source.class_names == ("ant", "bee") and source.name == "d" and source.may_flip
    for use, split in (("train", "train"), ("select", "val"), ("report", "test")):
        found = getattr(source, f"{use}_images")
        files = sorted((root / split / "ant").iterdir()) + sorted((root / split / "bee").iterdir())
        assert np.array_equal(found, [np.asarray(Image.open(f)) for f in files])
        assert getattr(source, f"{use}_labels").tolist() == [0] * 6 + [1] * 6


def test_without_a_test_split_val_is_reported(tmp_path: Path, cache: Path) -> None:
    source = load(split_folder(tmp_path / "d", ("train", "val")), cache)
    assert source.select_images is None and len(source.report_images) == 12


def test_a_folder_of_classes_is_split_once_and_for_all(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", ("",), classes=("train", "truck"), count=20)  # a class may be called train
    source = load(root, cache)
    assert source.class_names == ("train", "truck")
    assert np.bincount(source.report_labels).tolist() == [4, 4] and len(source.train_labels) == 32
    assert source.train_images.shape == (32, 8, 8, 3)
    together = {image.tobytes() for image in (*source.train_images, *source.report_images)}
    assert len(together) == 40, "each image is in one split"
    assert np.array_equal(load(root, tmp_path / "other").report_images, source.report_images)


def test_dot_names_are_ignored_and_links_to_files_are_followed(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "ant" / "link.png").symlink_to(root / "train" / "ant" / "000.png")
    source = load(root, cache)
    assert source.class_names == ("ant", "bee") and len(source.train_labels) == 13


def test_composed_and_decomposed_class_names_are_one(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", classes=("ant", "bée"))
    (root / "test" / "bée").rename(root / "test" / unicodedata.normalize("NFD", "bée"))
    assert load(root, cache).class_names == ("ant", "bée")


# --- shape and colour -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(8, 12), (8, 12)], (8, 12)), ([(8, 12), (10, 20)], (8, 8)), ([(300, 400), (300, 400)], (224, 224))],
)
def test_the_automatic_size(tmp_path: Path, cache: Path, sizes: list, expected: tuple[int, int]) -> None:
    for number, size in enumerate(sizes):
        split_folder(tmp_path / "d", classes=("ab"[number], "c" + "ab"[number]), count=1, size=size)
    assert load(tmp_path / "d", cache).train_images.shape[1:3] == expected


def test_the_size_and_channels_that_were_asked_for(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", size=(20, 30))
    assert load(root, cache, size=16, channels=1).train_images.shape == (12, 16, 16, 1)
    assert load(root, cache).train_images.shape == (12, 20, 30, 3), "another request is another cache entry"


def test_grey_images_give_one_channel_and_one_colour_image_gives_three(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", mode="L")
    assert load(root, cache).train_images.shape == (12, 8, 8, 1)
    picture(root / "train" / "ant" / "colour.png", 1)
    assert load(root, cache).train_images.shape == (13, 8, 8, 3)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path, cache: Path) -> None:
    assert str(tmp_path / "nowhere") in message(tmp_path / "nowhere", cache)


def test_a_file_instead_of_a_folder(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "d").write_bytes(b"")
    assert f"{tmp_path / 'd'}: Not a directory" in message(tmp_path / "d", cache)


def test_an_empty_folder(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "d").mkdir()
    text = message(tmp_path / "d", cache)
    assert "has no class folders" in text and "DIR/train/CLASS" in text


def test_images_without_class_folders(tmp_path: Path, cache: Path) -> None:
    picture(tmp_path / "d" / "1.png", 1)
    assert "has no class folders" in message(tmp_path / "d", cache)


@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
def test_a_class_without_images(tmp_path: Path, cache: Path, splits: tuple[str, ...]) -> None:
    root = split_folder(tmp_path / "d", splits)
    empty = root / splits[0] / "cow"
    for split in splits:
        (root / split / "cow").mkdir()
    assert f"{empty} has no images" in message(root, cache)


def test_a_single_class(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", classes=("ant",))
    assert "only the class `ant`; at least two" in message(root, cache)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", ("",))
    picture(root / "cow" / "1.png", 1)
    assert "the class `cow`" in message(root, cache)


def test_train_may_lack_the_classes_that_are_named(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", ("train", "val", "test"), classes=("ant", "bee", "cat"))
    shutil.rmtree(root / "train" / "bee")
    assert "--transfer-lacks" in message(root, cache)
    source = load(root, cache, lacks=("bee", "dog"))
    assert source.class_names == ("ant", "bee", "cat")
    assert set(source.train_labels.tolist()) == {0, 2} and set(source.report_labels.tolist()) == {0, 1, 2}
    shutil.rmtree(root / "val" / "bee")
    assert "`val`" in message(root, tmp_path / "other", lacks=("bee",))


def test_a_split_that_lacks_or_adds_a_class(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", classes=("ant", "bee", "cow"))
    (root / "test" / "bee").rename(root / "test" / "Bee")  # as many classes, and spelled nearly alike
    text = message(root, cache)
    assert "the split `test`" in text and "lacks the class `bee` and adds the class `Bee`" in text


def test_test_without_train_and_misnamed_splits(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", ("val", "test"))
    assert "no folder `train`" in message(root, cache)
    root = split_folder(tmp_path / "e", ("train", "valid"))
    assert "the folder `valid` beside the splits train" in message(root, cache)


def test_every_bad_file_is_listed_in_one_pass(tmp_path: Path, cache: Path, recwarn) -> None:
    root = split_folder(tmp_path / "d")
    whole = (root / "train" / "ant" / "000.png").read_bytes()
    places = {
        "train/ant/cut.png": "cannot be decoded",  # only found by decoding
        "train/bee/empty.png": "the file is empty",
        "test/ant/page.jpg": "not an image",
        "test/ant/bomb.png": "megapixels",
        "test/bee/inner": "is a folder",
        "test/bee/gone.png": "does not exist",
        "test/bee/pipe.png": "not a regular file",
    }
    (root / "train/ant/cut.png").write_bytes(whole[:-40])
    (root / "train/bee/empty.png").write_bytes(b"")
    (root / "test/ant/page.jpg").write_bytes(b"<html>")
    (root / "test/bee/inner").mkdir()
    (root / "test/bee/gone.png").symlink_to("missing")
    os.mkfifo(root / "test/bee/pipe.png")
    Image.new("1", (10_000, 10_000)).save(root / "test/ant/bomb.png")
    text = message(root, cache)
    assert not recwarn.list, "a bomb is an error, and no warning in the middle of the output"
    assert "7 of 31 image files cannot be used" in text
    for place, reason in places.items():
        assert any(str(root / place) in line and reason in line for line in text.splitlines())


def test_ten_bad_files_are_shown_and_the_rest_counted(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d")
    for i in range(25):
        (root / "train" / "ant" / f"bad{i:02d}.jpg").write_bytes(b"")
    text = message(root, cache)
    assert "25 of 49" in text and "and 15 more" in text and text.count("the file is empty") == 10


def test_bad_files_can_be_skipped_and_are_listed(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", count=20)
    (root / "train" / "ant" / "005.png").write_bytes(b"")
    (root / "test" / "bee" / "line\nbreak.jpg").write_bytes(b"<html>")
    for _ in range(2):  # decoded, then from the cache
        source = load(root, cache, on_bad="skip")
        assert len(source.train_labels) == 39 and len(source.report_labels) == 40
        assert len(source.skipped) == 2 and str(root / "train/ant/005.png") in "".join(source.skipped)
        assert all("\n" not in text for text in source.skipped)
    kept = sorted(p for p in (root / "train" / "ant").iterdir() if p.stat().st_size)
    assert np.array_equal(source.train_images[:19], [np.asarray(Image.open(p)) for p in kept])
    with pytest.raises(InputRejected, match="2 of 81"):  # what was skipped once still fails when asked to fail
        load(root, cache, on_bad="fail")


def test_too_many_bad_files_are_not_skipped(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d")
    for i in range(3):
        (root / "train" / "ant" / f"{i:03d}.png").write_bytes(b"")
    text = message(root, cache, on_bad="skip")
    assert "3 of 24" in text and "at most 10% may be skipped" in text


def test_a_folder_without_a_single_good_image(tmp_path: Path, cache: Path) -> None:
    for name in ("train/a/1", "train/b/1", "test/a/1", "test/b/1"):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    assert "4 of 4" in message(tmp_path / "d", cache, on_bad="skip")


def test_a_class_that_loses_its_last_image_is_refused(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", count=20)
    for path in (root / "test" / "bee").iterdir():
        if path.name != "000.png":
            path.unlink()
    (root / "test" / "bee" / "000.png").write_bytes(b"")
    assert "the class `bee` has no usable image left in the report split" in message(root, cache, on_bad="skip")


@pytest.mark.parametrize(
    ("knobs", "on_bad", "text"),
    [
        ({}, "fail", "needs the knob `path`"),
        ({"path": "x"}, "skp", "did you mean `skip`"),
        ({"channels": 2}, "fail", "1, 3"),
    ],
)
def test_wrong_values_are_usage_errors(cache: Path, knobs: dict, on_bad: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        folder.load(folder.Config(**knobs), on_bad=on_bad, cache=cache)
    print(caught.value)
    assert text in str(caught.value)


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_second_load_does_not_decode_and_a_change_does(tmp_path: Path, cache: Path, monkeypatch) -> None:
    root = split_folder(tmp_path / "d")
    first = load(root, cache)
    opened = []
    for name in ("decode", "probe"):
        real = getattr(images, name)
        monkeypatch.setattr(images, name, lambda path, real=real, **more: opened.append(path) or real(path, **more))
    assert np.array_equal(load(root, cache).train_images, first.train_images) and not opened
    changed = root / "train" / "ant" / "000.png"
    old = changed.stat()
    content = bytearray(changed.read_bytes())
    picture(changed, 999)
    changed.write_bytes(changed.read_bytes()[: len(content)].ljust(len(content), b"\0"))  # the same size and time
    os.utime(changed, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert not np.array_equal(load(root, cache).train_images[0], first.train_images[0]) and opened


def test_two_folders_with_equal_listings_are_not_confused(tmp_path: Path, cache: Path) -> None:
    for name, colour in (("d", 10), ("e", 200)):
        for split in ("train", "test"):
            for label in "ab":
                path = tmp_path / name / split / label / "1.bmp"
                path.parent.mkdir(parents=True)
                Image.new("L", (4, 4), colour).save(path)
                os.utime(path, (1, 1))
    assert (
        load(tmp_path / "d", cache).train_images.max() == 10 and load(tmp_path / "e", cache).train_images.min() == 200
    )


def test_large_arrays_are_memory_mapped(tmp_path: Path, cache: Path, monkeypatch) -> None:
    root = split_folder(tmp_path / "d", count=100)
    plain = load(root, cache)
    monkeypatch.setattr(data_source, "IN_MEMORY_BYTES", 1000)
    mapped = load(root, cache)
    assert isinstance(mapped.train_images, np.memmap) and not isinstance(plain.train_images, np.memmap)
    assert np.array_equal(mapped.train_images, plain.train_images)
    splits, again = (dataset.prepare(load(root, cache), seed=0) for _ in range(2))
    assert isinstance(splits.train.images, np.memmap)
    monkeypatch.undo()
    in_memory = dataset.prepare(load(root, tmp_path / "other"), seed=0)
    for use in ("train", "select", "calibrate", "report"):
        three = [getattr(s, use) for s in (splits, again, in_memory)]
        assert len({d.digest for d in three}) == 1 and len({d.mean for d in three}) == 1
        assert np.array_equal(three[0].images, three[2].images) and np.array_equal(three[0].labels, three[2].labels)


def test_a_damaged_cache_is_named(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d")
    load(root, cache)
    path = next(cache.glob("*/train_images.npy"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputRejected) as caught:
        load(root, cache)
    print(caught.value)
    assert str(path) in str(caught.value) and "rm -r" in caught.value.hint


def test_a_full_disk_leaves_nothing_and_says_where(tmp_path: Path, cache: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    root = split_folder(tmp_path / "d")
    monkeypatch.setattr(data_source.os, "fsync", full)
    with pytest.raises(CompressError) as caught:
        load(root, cache)
    print(caught.value)
    assert "No space left" in str(caught.value) and "MB free" in str(caught.value) and list(cache.iterdir()) == []


def test_progress_counts_every_file(tmp_path: Path, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = split_folder(tmp_path / "d", count=40)
    folder.load(folder.Config(path=str(root)), cache=cache, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls) and calls[-1] == (160, 160) and len(calls) >= 3


def test_a_folder_that_was_read_before_is_listed_and_no_image_opened(tmp_path: Path, cache: Path) -> None:
    root = split_folder(tmp_path / "d", count=2)
    load(root, cache)
    events: list[tuple[str, str]] = []
    # an audit hook stays for ever: it must know when to listen
    sys.addaudithook(lambda name, args: events.append((name, str(args))) if listening else None)
    listening = True
    load(root, cache)
    listening = False
    assert events and not [args for name, args in events if name == "open" and str(root) in args]
    assert not [name for name, _ in events if name in ("subprocess.Popen", "os.fork", "os.posix_spawn")]
