"""The folder of a kit (`compress kit`), which is made complete or not at all."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compress.errors import CompressError

_ROOM_HINT = "free some disk space, or choose a folder on another disk"


@contextlib.contextmanager
def made(folder: Path, needed_bytes: int = 0) -> Iterator[tuple[Path, Path]]:
    """(the kit that becomes `folder` at the end, which is still to be made; an empty folder to work in). Raises
    CompressError where something is there already, where there is too little room, and for what cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CompressError(
            f"{folder} exists already",
            code="E-KIT-EXISTS",
            hint="remove it first to make it anew, or name another folder",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed_bytes:
            raise CompressError(
                f"{folder.parent} has {free / 1e6:,.0f} MB left; the kit needs {needed_bytes / 1e6:,.0f} MB while made",
                code="E-WRITE",
                hint=_ROOM_HINT,
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            kit, work = Path(scratch, "kit"), Path(scratch, "work")
            work.mkdir()
            yield kit, work
            kit.rename(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CompressError(
            f"cannot make {folder}: {error}", code="E-WRITE", hint=_ROOM_HINT if full else ""
        ) from error
