"""A report of an error that is this program's own, fit to be shown to strangers.

It holds the traceback, the command line and the versions, never environment variables, and of each exception's message
the first line only, so that no image or weight is in it. The home folder and every path outside this package are
shortened to their last part, and addresses and phones to their scheme.
"""

import os
import re
import shlex
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from compress import environment
from compress.store import Store, write_atomic

_PACKAGE = Path(__file__).parent
_LONGEST_MESSAGE = 200  # characters
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s'\"`]+")
_PHONE = re.compile(r"\badb:[^\s'\"`…]+")
# in quotes a path may hold spaces; elsewhere it ends at one
_QUOTED_PATH = re.compile(r"(?P<quote>['\"`])(?P<path>~?/[^'\"`\n]*)(?P=quote)")
_PATH = re.compile(r"(?<![\w/.~…<])(?P<path>~?/(?!/…)[^\s'\"`:;,()\[\]{}<>|]+)")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, cut where it is long."""
    line = str(error).strip().partition("\n")[0]
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


def write(error: BaseException, command: list[str]) -> Path:
    """Keeps the report in the store's folder `bugs`; returns its path. Raises CompressError or OSError."""
    folder = Store.default().root / "bugs"
    folder.mkdir(parents=True, exist_ok=True)
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = folder / f"{moment}-{type(error).__name__}-{os.getpid()}.txt"
    write_atomic(path, report(error, command).encode())
    return path


def report(error: BaseException, command: list[str]) -> str:
    """The text of the report."""
    here = environment.capture()
    parts = {
        "command": [shlex.join(command)],
        "traceback": list(_traceback(error)),
        "machine": [here.system, f"{here.cpu_model}, {here.cores_allowed} cores", f"gpu {here.gpu or 'none'}"],
        "versions": [
            f"python {here.python}",
            f"compress {here.commit or 'without a checkout'}",
            *(f"{name} {version}" for name, version in here.packages.items()),
        ],
    }
    blocks = [f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts.items()]
    return redacted("\n\n".join(blocks)) + "\n"


def _traceback(error: BaseException) -> Iterator[str]:
    """The lines of the traceback, what led to it first."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None:
        yield from _traceback(earlier)
        yield "which led to"
    for frame in traceback.format_tb(error.__traceback__):
        yield from frame.rstrip().splitlines()
    yield f"{type(error).__name__}: {first_line(error)}"


def redacted(text: str) -> str:
    """`text` without the folders of this machine.

    >>> redacted("open '/srv/my photos/cat.png', ssh://me@host/python")
    "open '…/cat.png', ssh://…"
    """
    text = text.replace(f"{_PACKAGE}{os.sep}", "compress/")
    text = text.replace(str(Path.home()), "~")
    text = _PHONE.sub("adb:…", _ADDRESS.sub(r"\1://…", text))
    text = _QUOTED_PATH.sub(lambda found: found["quote"] + _shortened(found["path"]) + found["quote"], text)
    return _PATH.sub(lambda found: _shortened(found["path"]), text)


def _shortened(path: str) -> str:
    _, library, inside = path.partition("/site-packages/")
    return f"site-packages/{inside}" if library else f"…/{Path(path).name}"
