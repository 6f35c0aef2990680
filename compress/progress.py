"""Progress for long work: one live line on a terminal, a line every ten seconds in a log, silence under two seconds."""

import os
import shutil
import sys
import time
from collections.abc import Callable

QUIET_VARIABLE = "COMPRESS_QUIET"  # set: neither progress nor messages, but for warnings; what `--quiet` sets
WARNING = "warning"
_FIRST_S, _LIVE_S, _LOG_S = 2.0, 0.2, 10.0


def say(text: str) -> None:
    """A message for people: stderr, so that stdout holds data only."""
    if os.environ.get(QUIET_VARIABLE) and not text.startswith(WARNING):
        return
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`83.2` → `1m23s`."""
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Progress:
    """Counts units of one named piece of work; shows rate and time left. Use as a context manager."""

    def __init__(self, name: str, total: int, unit: str = "", *, done: int = 0):
        self.name, self.total, self.unit = name, total, unit
        self.start_done = self.done = done
        self.started = self.shown = time.monotonic()
        self.live, self.quiet = sys.stderr.isatty(), bool(os.environ.get(QUIET_VARIABLE))
        self.ever_shown = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self.ever_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def to(self, done: int, note: str = "") -> None:
        self.done = done
        now = time.monotonic()
        if self.quiet or now - self.started < _FIRST_S or now - self.shown < (_LIVE_S if self.live else _LOG_S):
            return
        self.shown, self.ever_shown = now, True
        rate = (self.done - self.start_done) / (now - self.started)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        text = f"{self.name}: {self.done}/{self.total} {self.unit}, {rate:.4g}/s, {left} left {note}".rstrip()
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{text[:width]}" if self.live else f"  {text}\n")
        sys.stderr.flush()


def counter(name: str, unit: str = "") -> Callable[[int, int], None]:
    """A `progress(done, total)` callable for steps that only know counts."""
    state: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not state:
            state.append(Progress(name, total, unit))
        state[0].to(done)
        if done >= total:
            state[0].__exit__()

    return show
