"""Decode many image files with a few threads, in order, without holding more than a few hundred of them."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress import images
from compress.errors import InputRejected
from compress.listing import File

Bad = tuple[str, str]  # (path, reason)
Header = tuple[int, int, str]  # (width, height, mode)

_CHUNK = 64  # images a task: few enough to keep memory small, many enough to hide the hand-over


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """One thread a core, at most eight (the codecs release the interpreter's lock)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(8, cores))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # so that an interrupt does not wait for what is queued


def probe(pool: ThreadPoolExecutor, files: Sequence[File]) -> tuple[list[File], list[Header], list[Bad]]:
    """The files whose header can be read, their headers, and the rest with the reasons."""
    good: list[File] = []
    headers: list[Header] = []
    bad: list[Bad] = []
    for outcomes in _in_order(pool, lambda chunk: [_attempt(f, images.probe) for f in chunk], files):
        for file, header, reason in outcomes:
            if reason:
                bad.append((file.path, reason))
            else:
                good.append(file)
                headers.append(header)
    return good, headers, bad


def pixels(
    pool: ThreadPoolExecutor, files: Sequence[File], size: tuple[int, int], channels: int
) -> Iterator[tuple[np.ndarray, list[int], list[Bad]]]:
    """For each chunk of files: uint8 `[n,H,W,C]` of those that decode, their labels, and the rest with the reasons."""

    def decode(chunk: Sequence[File]) -> tuple[np.ndarray, list[int], list[Bad]]:
        outcomes = [_attempt(f, lambda path: images.decode(path, channels=channels, size=size)) for f in chunk]
        decoded = [value for _, value, reason in outcomes if not reason]
        stacked = np.stack(decoded) if decoded else np.empty((0, *size, channels), np.uint8)
        labels = [file.label for file, _, reason in outcomes if not reason]
        return stacked, labels, [(file.path, reason) for file, _, reason in outcomes if reason]

    yield from _in_order(pool, decode, files)


def _attempt(file: File, action: Callable[[Path], Any]) -> tuple[File, Any, str]:
    if file.problem:
        return file, None, file.problem
    try:
        return file, action(Path(file.path)), ""
    except InputRejected as error:
        return file, None, error.message.partition(f"{images.shown(file.path)}: ")[2]


def _in_order(pool: ThreadPoolExecutor, action: Callable[[Sequence[File]], Any], files: Sequence[File]) -> Iterator:
    """The results of `action` for chunks of files; only a few chunks run ahead, so that memory stays bounded."""
    ahead: deque[Future] = deque()
    for start in range(0, len(files), _CHUNK):
        ahead.append(pool.submit(action, files[start : start + _CHUNK]))
        if len(ahead) > 16:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
