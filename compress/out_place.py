"""Where a command is to write: looked at before the work, all of which a place that cannot be written would cost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compress.errors import CompressError, InputRejected, UsageError
from compress.store import read_json


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """What the system refuses inside is told as CompressError: `folder` cannot be made."""
    try:
        yield
    except OSError as error:
        raise CompressError(
            f"cannot make the output folder {folder}: {error.strerror}",
            code="E-WRITE",
            hint="name a writable folder with --out",
        ) from error


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, if need be. Raises CompressError where that, or writing there, is refused."""
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.exists(each))
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise CompressError(
            f"the output folder {there} is not writable", code="E-WRITE", hint="name a writable folder with --out"
        )
    with making(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_folder(folder: Path) -> None:
    """Whether `folder` can be written, or made: it is tried, and what was made for that is taken away again. Raises
    CompressError where it is refused.
    """
    missing = [each for each in (folder, *folder.absolute().parents) if not os.path.exists(each)]
    try:
        make_folder(folder)
    finally:
        for each in missing:
            with suppress(OSError):  # it was not made, or another process has put something there by now
                each.rmdir()


def check_file(path: Path, read: Path) -> None:
    """Whether a file can be written at `path`, in a folder that exists, over nothing but a file other than `read`.
    Raises UsageError, and CompressError where the folder is not writable.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"--out {path}: there is no folder {path.parent}", code="E-OUT-PLACE", hint="make it, or name another file"
        )
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder", code="E-OUT-PLACE", hint="name a file")
    if path.resolve() == read.resolve():
        raise UsageError(f"--out {path} is the file that is read", code="E-OUT-PLACE", hint="name another file")
    check_folder(path.absolute().parent)


def check_report(folder: Path) -> None:
    """Whether a report of files can be written into `folder`, over none of a `compress run`. Raises CompressError, and
    UsageError for the latter.
    """
    check_folder(folder)
    if _is_of_run(folder / "report.json"):
        raise UsageError(
            f"--out {folder} holds the report of a `compress run`, which would be overwritten",
            code="E-OUT-PLACE",
            hint="name another folder",
        )


def _is_of_run(report: Path) -> bool:
    """A run's report is the only kind that has a recipe. One that is damaged can be told nothing of."""
    try:
        document = read_json(report) if report.is_file() else None
    except InputRejected:
        return False
    return isinstance(document, dict) and bool(document.get("recipe"))
