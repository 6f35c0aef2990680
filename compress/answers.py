"""A teacher's answers, kept: float16 logits of each (view, sample) in one memory-mapped file that fills as it is used.

The pixels of a view are a function of (view, sample) alone, so an answer stays true for every later run, student and
seed. The file is sparse; a word of zero means "not answered yet" (the bits are stored with those of a NaN flipped, and
a NaN is never stored), so a lost or torn page reads as absent, never as a wrong answer.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputRejected
from compress.progress import say
from compress.store import read_json, write_json

_NAN_BITS = np.uint16(0x7E00)
FLOAT16_MAX = 65504.0


class AnswerFile:
    """The answers of one teacher about one split: `count` samples in views 0..`views`, `classes` logits each.

    `parts` says whose answers these are (plain JSON values). Raises InputRejected, naming each difference, where the
    folder holds the answers of something else. A file cut short is said so and filled again.
    """

    def __init__(self, folder: Path, parts: dict[str, Any], *, count: int, classes: int, views: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.count = count
        path, manifest = folder / "logits.f16", folder / "manifest.json"
        parts = {**parts, "count": count, "classes": classes}
        known = 0
        if manifest.exists():
            record = read_json(manifest)
            _refuse_other(folder, record["parts"], parts)
            known = record["views"]
        row_bytes = 2 * classes
        held = path.stat().st_size if path.exists() else 0
        if held < (known + 1) * count * row_bytes and manifest.exists():
            lost = known + 1 - held / (count * row_bytes)
            say(f"  the kept answers in {folder} were cut short; {lost:.1f} views of each image are asked again")
        # as large as it ever was: another run may hold more views
        rows = (max(views, known) + 1) * count
        with path.open("ab") as file:
            file.truncate(max(rows * row_bytes, held))
        write_json(manifest, {"parts": parts, "views": max(views, known)})
        self.words = np.memmap(path, np.uint16, "r+", shape=(rows, classes))

    def read(self, index: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits float16 `[B,K]`, found bool `[B]`) of samples `index` in views `view`; what is not found is NaN."""
        words = self.words[self._rows(index, view)]
        return (words ^ _NAN_BITS).view(np.float16), (words != 0).all(axis=1)

    def write(self, index: np.ndarray, view: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Keep `logits` float32 `[B,K]`; returns them as kept, float16. Raises InputRejected for a value beyond it."""
        with np.errstate(over="ignore"):
            rounded = logits.astype(np.float16)
        if not np.isfinite(rounded).all():
            worst = np.abs(logits).max()
            raise InputRejected(
                f"the teacher answers {worst:g}, and answers are kept as float16, which ends at {FLOAT16_MAX:g}",
                code="E-ANSWERS-RANGE",
                hint="run with --set keep_answers=false",
            )
        self.words[self._rows(index, view)] = rounded.view(np.uint16) ^ _NAN_BITS
        return rounded

    def _rows(self, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        return view.astype(np.int64) * self.count + index.astype(np.int64)


def _refuse_other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [
        f"{key}: {found.get(key)} there, {wanted.get(key)} now"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if different:
        raise InputRejected(
            f"the teacher's answers kept in {folder} are others: " + "; ".join(different),
            code="E-STORE-DAMAGED",
            hint="delete that folder, or name another store with COMPRESS_STORE",
        )


def bytes_needed(count: int, classes: int, views: int) -> int:
    return (views + 1) * count * classes * 2
