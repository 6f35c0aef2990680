"""The store remembers: a finished step is a folder named by its key, and is never made twice.

A key is a digest of the step's name and version, its knobs, the digests of its inputs, the seed and the package
versions that matter. An artifact exists when its `manifest.json` does; the manifest is written last, atomically.

Place: `$COMPRESS_STORE`, else `$XDG_CACHE_HOME/compress`, else `~/.cache/compress`. Limit: `$COMPRESS_STORE_GB`
(default 20): the least recently used finished steps go first.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError, InputRejected, UsageError

DEFAULT_LIMIT_GB = 20.0


def digest(value: Any) -> str:
    """sha256 over canonical JSON of a plain value (dict, list, text, number)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


MOST_PACKED_BYTES = 100_000_000


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gzip_bytes(path: Path) -> int | None:
    """How many bytes a file takes in a compressed archive, such as an app's package or an update sent to a board; None
    of one that takes long to pack.
    """
    if path.stat().st_size > MOST_PACKED_BYTES:
        return None
    packer, size = zlib.compressobj(wbits=31), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def folder_digest(folder: Path) -> str:
    """Digest of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest({str(path.relative_to(folder)): file_digest(path) for path in files})


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader (or a crash) sees the old bytes or the new, never a part.

    Raises CompressError naming the path and the free space when the disk refuses.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free_mb = shutil.disk_usage(existing).free // 2**20
        raise CompressError(
            f"could not write {path}: {error.strerror or error} ({free_mb} MB free); what was there is untouched",
            code="E-WRITE",
            hint="free some space, or name another place with --out or COMPRESS_STORE",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of sorted, indented JSON."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises InputRejected naming the file when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputRejected(f"cannot read {path}: {error}", code="E-FILE-READ") from error


@contextmanager
def exclusive(path: Path, on_busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`. If another process holds it, `on_busy(its note)` may raise, else we wait.

    The lock dies with its process, so nothing stale is ever left after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_busy(file.read().strip() or "unknown")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished step: its folder, what its manifest says, and whether it was found rather than made."""

    folder: Path
    key: str
    facts: dict[str, Any]
    reused: bool


@dataclass(frozen=True)
class Store:
    """A folder of finished steps."""

    root: Path

    @staticmethod
    def default() -> "Store":
        named = os.environ.get("COMPRESS_STORE")
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        root = Path(named) if named else Path(cache) / "compress"
        try:
            (root / "steps").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompressError(
                f"cannot make the store at {root}: {error.strerror}",
                code="E-WRITE",
                hint="set COMPRESS_STORE to a writable folder",
            ) from error
        return Store(root)

    @property
    def cache(self) -> Path:
        """Where decoded images are kept."""
        return self.root / "data"

    def answers(self, key_parts: dict[str, Any]) -> Path:
        """Where a teacher's answers are kept."""
        return self.root / "answers" / f"answers-{digest(key_parts)[:20]}"

    def folder(self, name: str, key: str) -> Path:
        return self.root / "steps" / f"{name}-{key[:20]}"

    def find(self, name: str, key: str) -> Step | None:
        """The finished step of this key, or None. Every file's size is checked against the manifest."""
        folder = self.folder(name, key)
        manifest = folder / "manifest.json"
        if not manifest.exists():
            return None
        record = read_json(manifest)
        if record["key"] != key or any(
            not (folder / file).is_file() or (folder / file).stat().st_size != size
            for file, size in record["files"].items()
        ):
            return None
        os.utime(manifest)  # the time of last use, by which `trim` decides
        return Step(folder=folder, key=key, facts=record["facts"], reused=True)

    def step(
        self,
        name: str,
        key_parts: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        say: Callable[[str], None] = lambda text: None,
    ) -> Step:
        """The finished step for `key_parts`, made now by `make(folder) → facts` if it is not there.

        `make` may find its own half-finished work (a checkpoint) in the folder. Two processes that want the same
        step make it once: the second waits.
        """
        key = digest({"step": name, **key_parts})
        found = self.find(name, key)
        if found:
            return found
        folder = self.folder(name, key)
        lock = self.root / "locks" / folder.name
        with exclusive(lock, lambda who: say(f"{who} is making `{name}`; waiting for it")):
            found = self.find(name, key)
            if found:
                return found
            folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            facts = {**make(folder), "seconds": round(time.monotonic() - started, 3)}
            files = {
                str(p.relative_to(folder)): p.stat().st_size
                for p in sorted(folder.rglob("*"))
                if p.is_file() and p.name != "manifest.json"
            }
            write_json(
                folder / "manifest.json", {"key": key, "name": name, "parts": key_parts, "facts": facts, "files": files}
            )
        self.trim(keep=folder)
        return Step(folder=folder, key=key, facts=facts, reused=False)

    def entries(self) -> list[tuple[Path, int, float, bool]]:
        """(folder, bytes, time of last use, finished), most recently used first."""
        found = []
        for folder in (p for place in ("steps", "data", "answers") for p in (self.root / place).glob("*")):
            manifest = folder / "manifest.json"
            used = _time_of(manifest) or _time_of(folder)
            found.append((folder, bytes_in(folder), used, manifest.exists() or folder.parent.name == "data"))
        return sorted(found, key=lambda row: -row[2])

    def trim(self, keep: Path | None = None) -> list[Path]:
        """Remove the least recently used entries beyond the size limit, what killed children left a day ago, and
        reports of bugs that are older than a month.

        Never `keep`, what was used in the last twelve hours, or what a process is making.
        """
        limit = limit_bytes()
        total, old = 0, []
        for folder, size, used, _ in self.entries():
            total += size
            if total > limit and folder != keep and time.time() - used > 12 * 3600:
                old.append(folder)
        for leftover in (self.root / "scratch").glob("*"):
            if time.time() - _time_of(leftover) > 24 * 3600:
                shutil.rmtree(leftover, ignore_errors=True)
        for text in (self.root / "bugs").glob("*.txt"):
            if time.time() - _time_of(text) > 30 * 24 * 3600:
                text.unlink(missing_ok=True)
        return [folder for folder in old if self._remove(folder)]

    def clear(self) -> list[Path]:
        """Remove every entry that no process is making at the moment, and the reports of bugs."""
        shutil.rmtree(self.root / "bugs", ignore_errors=True)
        return [folder for folder, _, _, _ in self.entries() if self._remove(folder)]

    def _remove(self, folder: Path) -> bool:
        try:
            with exclusive(self.root / "locks" / folder.name, _refuse):
                shutil.rmtree(folder, ignore_errors=True)
                return True
        except BlockingIOError:
            return False


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it meanwhile
        return 0.0


def bytes_in(folder: Path) -> int:
    """What the files below a folder take of the disk, some of which may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # kept answers are sparse files
    return total


def _refuse(who: str) -> None:
    raise BlockingIOError(who)


class NotThere(Exception):
    """A step that would have to be made."""


class Peek(Store):
    """The same store, looked at only: `step` raises NotThere instead of making anything.

    Probes of the machine and trials of untrained networks are made all the same: they take seconds, and a plan needs
    them.
    """

    def step(
        self,
        name: str,
        key_parts: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        say: Callable[[str], None] = lambda text: None,
    ) -> Step:
        if name in ("execution", "rehearsal"):
            return super().step(name, key_parts, make, say)
        found = self.find(name, digest({"step": name, **key_parts}))
        if not found:
            raise NotThere(name)
        return found


def limit_bytes() -> int:
    """The store's size limit; raises UsageError when `$COMPRESS_STORE_GB` is not a positive number."""
    text = os.environ.get("COMPRESS_STORE_GB", str(DEFAULT_LIMIT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < float("inf"):
        raise UsageError(f"COMPRESS_STORE_GB must be a positive number, got `{text}`", code="E-OPTION-VALUE")
    return int(gigabytes * 1e9)
