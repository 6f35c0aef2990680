"""What a data entry delivers, and the cache of decoded arrays that entries share.

Only the standard library and numpy are imported here. A cache folder exists complete or not at all: it is filled under
a temporary name and renamed when its files are on the disk.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import randomness
from compress.errors import CompressError, InputRejected

Progress = Callable[[int, int], None]  # (done, total) images

IN_MEMORY_BYTES = 64 * 2**20  # larger arrays are memory-mapped


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as its entry found it. Images uint8 `[N,H,W,C]` (C is 1 or 3), labels int64 `[N]`.

    `select_*` is None when the data set has no split of its own for choices. `cache` is a folder that belongs to
    exactly these arrays, where derived arrays and digests may be kept; None when there is none. `skipped` holds a text
    for each file left out.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    report_images: np.ndarray
    report_labels: np.ndarray
    class_names: tuple[str, ...]
    may_flip: bool
    select_images: np.ndarray | None = None
    select_labels: np.ndarray | None = None
    skipped: tuple[str, ...] = ()
    cache: Path | None = None


def stratified(labels: np.ndarray, fraction: float, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, taken): sorted int64 ids, `fraction` of each class taken, the choice a function of `stream` alone.

    From a class of two or more at least one image is taken and at least one kept; a class of one is kept.
    """
    taken: list[np.ndarray] = []
    for label in np.unique(labels):
        ids = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
        taken.append(ids[randomness.permutation(randomness.derive("stratum", stream, int(label)), len(ids))[:count]])
    chosen = np.sort(np.concatenate(taken)) if taken else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `folder` when the block ends well, and is removed when it does not.

    When another process was faster, its folder stays. Raises CompressError naming the place when the disk refuses.
    """
    temporary = Path(_disk(lambda: _temporary(folder), folder))
    try:
        yield temporary
        _disk(lambda: _publish(temporary, folder), folder)
    except OSError as error:
        raise _disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path) -> str:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")


def _publish(temporary: Path, folder: Path) -> None:
    for path in (*temporary.iterdir(), temporary):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    os.chmod(temporary, 0o755)
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # else another process made the same arrays meanwhile
            raise


def _disk(action: Callable[[], Any], folder: Path) -> Any:
    try:
        return action()
    except OSError as error:
        raise _disk_error(folder, error) from error


def _disk_error(folder: Path, error: OSError) -> CompressError:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free_mb = shutil.disk_usage(existing).free // 2**20
    return CompressError(
        f"could not write decoded images to {folder}: {error.strerror or error} ({free_mb} MB free at {existing})",
        code="E-WRITE",
        hint="free some space, or set COMPRESS_STORE to a folder on another disk",
    )


def write_rows(path: Path, chunks: Iterable[np.ndarray], row_shape: tuple[int, ...]) -> int:
    """Write uint8 chunks `[n, *row_shape]` as one `.npy` file, never holding more than a chunk; returns the rows.

    Plain writes and not a memory map, so that a full disk is an error and not a SIGBUS.
    """
    rows = 0
    with open(path, "wb") as file:
        _header(file, 0, row_shape)
        start = file.tell()
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype=np.uint8).data)
            rows += len(chunk)
        file.seek(0)
        _header(file, rows, row_shape)
        # numpy pads the header so that the first axis may grow in place
        assert file.tell() == start, "the header of the .npy file changed its length"
    return rows


def _header(file: Any, rows: int, row_shape: tuple[int, ...]) -> None:
    description = {"descr": "|u1", "fortran_order": False, "shape": (rows, *row_shape)}
    np.lib.format.write_array_header_1_0(file, description)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `facts.json` into a folder that is being built."""
    (folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="ascii")


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of a complete cache folder, or None when there is none. Marks the folder as used now."""
    path = folder / "facts.json"
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    with suppress(OSError):  # in a store shared read-only the time of last use stays as it is
        os.utime(folder)
    return facts


def read_array(path: Path) -> np.ndarray:
    """A `.npy` array, memory-mapped read-only when larger than IN_MEMORY_BYTES; raises InputRejected if damaged."""
    try:
        return np.load(path, mmap_mode="r" if path.stat().st_size > IN_MEMORY_BYTES else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputRejected:
    return InputRejected(
        f"the cached file {path} is damaged: {error}",
        code="E-STORE-DAMAGED",
        hint=f"remove it, it will be made again: rm -r {path.parent}",
    )


def cached_arrays(folder: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The named arrays in `folder`, made by `make` and kept there when it does not exist yet."""
    facts = read_facts(folder)
    if facts is None:
        arrays = make()
        with building(folder) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            write_facts(temporary, {"arrays": sorted(arrays)})
        facts = {"arrays": sorted(arrays)}
    return {name: read_array(folder / f"{name}.npy") for name in facts["arrays"]}


def short_digest(*parts: Any) -> str:
    """32 hexadecimal digits of a sha256 over the parts' texts: a name for a cache folder."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
