"""Any folder of images: DIR/{train,val,test}/CLASS/* or DIR/CLASS/*; JPEG, PNG, WebP and BMP, grey or colour.

`test` becomes the report split and `val` the one for choices; without a test, `val` is reported; without either, a
fixed stratified fifth is. Every file is decoded once, into an array that is kept and memory-mapped when large.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import data_source, decoding, images, listing
from compress.config import knob
from compress.data_source import Progress, Source
from compress.errors import InputRejected, UsageError, unknown

MAX_AUTOMATIC_SIZE = 224
MAX_BAD_FRACTION = 0.1
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    path: str = knob("", "the folder")
    size: int = knob(
        0,
        "side in pixels; 0: the shape that all images share, else their median short side; at most 224",
        low=0,
        high=4096,
    )
    channels: int = knob(0, "1 grey, 3 colour, 0: 1 if all images are grey, else 3", low=0, high=3)
    lacks: tuple[str, ...] = knob((), "classes that train may lack; --transfer-lacks sets it", separator=";")


def load(
    config: Config, *, download: bool = False, on_bad: str = "fail", cache: Path, progress: Progress | None = None
) -> Source:
    """Images uint8 `[N,H,W,C]`. `on_bad` is "fail" (every bad file is listed) or "skip" (left out and listed).

    Raises UsageError for a missing path or a value out of bounds, InputRejected for everything that the folder does
    wrong, and whatever `on_bad` is when more than a tenth of the files is bad.
    """
    root = _checked(config, on_bad)
    found = listing.read(root, config.lacks)
    folder = (
        cache / f"folder-{data_source.short_digest(_VERSION, found.digest, config.size, config.channels, config.lacks)}"
    )
    facts = data_source.read_facts(folder)
    if facts is None:
        facts = _build(config, found, on_bad, folder, progress or (lambda done, total: None))
    _judge([(path, reason) for path, reason in facts["bad"]], facts["total"], on_bad)
    parts = [f"{use}_{part}" for use in facts["uses"] for part in ("images", "labels")]
    return Source(
        name=root.resolve().name,
        class_names=found.class_names,
        may_flip=True,
        skipped=tuple(f"{images.shown(path)}: {reason}" for path, reason in facts["bad"]),
        cache=folder,
        **{part: data_source.read_array(folder / f"{part}.npy") for part in parts},
    )


def _checked(config: Config, on_bad: str) -> Path:
    if on_bad not in ("fail", "skip"):
        raise unknown("value", on_bad, ["fail", "skip"], where="--on-bad", code="E-KNOB-CHOICE")
    if config.channels == 2:
        raise UsageError("`channels` of data set `folder` must be 1, 3 or 0 (automatic), got 2", code="E-KNOB-CHOICE")
    if not config.path:
        raise UsageError(
            "data set `folder` needs the knob `path`", code="E-OPTION-VALUE", hint="--data folder:path=DIR"
        )
    return Path(config.path).expanduser()


def _build(config: Config, found: listing.Listing, on_bad: str, folder: Path, progress: Progress) -> dict[str, Any]:
    """Decode everything into `folder`; all bad files are found before any of them is an error."""
    total = sum(len(files) for files in found.files.values())
    with decoding.workers() as pool, data_source.building(folder) as temporary:
        readable = {use: decoding.probe(pool, files) for use, files in found.files.items()}
        headers = [header for _, some, _ in readable.values() for header in some]
        bad = [item for _, _, some in readable.values() for item in some]
        if not headers:
            raise _bad_files(bad, total)
        size, channels = config.size, config.channels or _channels(headers)
        shape = (*((size, size) if size else _size(headers)), channels)
        done, labels = 0, dict[str, list[int]]()
        for use, (files, _, _) in readable.items():
            chunks = decoding.pixels(pool, files, shape[:2], channels)
            labels[use] = []
            rows = _rows(chunks, labels[use], bad, done, total, progress)
            data_source.write_rows(temporary / f"{use}_images.npy", rows, shape)
            np.save(temporary / f"{use}_labels.npy", np.array(labels[use], np.int64))
            done += len(files)
        _judge(bad, total, on_bad)
        for use, kept in labels.items():
            _check_classes(use, kept, found.class_names, config.lacks if use == "train" else ())
        progress(total, total)
        facts = {"uses": list(labels), "bad": sorted(bad), "total": total, "preprocessing": images.PREPROCESSING}
        data_source.write_facts(temporary, facts)
    return facts


def _rows(
    chunks: Iterator, labels: list[int], bad: list[decoding.Bad], done: int, total: int, progress: Progress
) -> Iterator[np.ndarray]:
    """The pixels of the chunks; the labels and bad files of each are appended as it passes."""
    for pixels, kept, failed in chunks:
        labels += kept
        bad += failed
        done += len(kept) + len(failed)
        progress(done, total)
        yield pixels


def _size(headers: list[decoding.Header]) -> tuple[int, int]:
    """(height, width): the shape that all images share, else their median short side; at most 224 either way."""
    shapes = {(height, width) for width, height, _ in headers}
    if len(shapes) == 1 and max(next(iter(shapes))) <= MAX_AUTOMATIC_SIZE:
        return shapes.pop()
    side = min(MAX_AUTOMATIC_SIZE, statistics.median_low(min(width, height) for width, height, _ in headers))
    return side, side


def _channels(headers: list[decoding.Header]) -> int:
    return 1 if all(mode in images.GREY_MODES for _, _, mode in headers) else 3


def _judge(bad: list[decoding.Bad], total: int, on_bad: str) -> None:
    if bad and (on_bad == "fail" or len(bad) > MAX_BAD_FRACTION * total):
        raise _bad_files(bad, total, skipping=on_bad == "skip")


def _bad_files(bad: list[decoding.Bad], total: int, *, skipping: bool = False) -> InputRejected:
    listed = [f"  {images.shown(path)}: {reason}" for path, reason in sorted(bad)[:10]]
    more = [f"  and {len(bad) - 10} more"] if len(bad) > 10 else []
    too_many = len(bad) > MAX_BAD_FRACTION * total
    limit = f"; at most {MAX_BAD_FRACTION:.0%} may be skipped" if skipping else ""
    return InputRejected(
        "\n".join([f"{len(bad)} of {total} image files cannot be used{limit}:", *listed, *more]),
        code="E-IMAGE-UNREADABLE",
        hint="repair or remove them" + ("" if too_many else ", or leave them out with `--on-bad skip`"),
    )


def _check_classes(use: str, labels: list[int], class_names: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    missing = sorted(set(range(len(class_names))) - set(labels))
    missing = [label for label in missing if class_names[label] not in lacks]
    if missing:
        raise InputRejected(
            f"the class `{images.shown(class_names[missing[0]])}` has no usable image left in the {use} split",
            code="E-DATA-EMPTY",
            hint="repair or add images of this class",
        )
