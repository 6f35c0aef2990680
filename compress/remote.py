"""Another machine as a host of children, over one ssh connection: `ssh://USER@HOST:PORT/PATH/TO/PYTHON`.

That machine needs an ssh server, Python 3.11 with numpy, and the runtime; nothing is installed on it. The worker, the
adapter, the model and the images are sent into one new folder, which is gone when the connection ends, as is all that
was started. `agent.py` is the far side.
"""

import itertools
import json
import os
import re
import selectors
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from compress import agent
from compress.child import ChildFailed
from compress.errors import Unmeasurable, UsageError
from compress.types import Environment

SSH_VARIABLE = "COMPRESS_SSH"  # the command instead of `ssh`, as GIT_SSH_COMMAND is for git
OPTIONS = (
    "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15",
    "-o", "ServerAliveCountMax=3", "-o", "ClearAllForwardings=yes",
)  # fmt: skip
CONNECT_S, TRANSFER_S, GRACE_S = 60.0, 600.0, 30.0
# What a login shell may print before anything of ours.
MOST_CHATTER_BYTES = 1 << 20
MOST_REPLY_BYTES = 256 << 20
# the measuring side of this package: the standard library and numpy
_SENT = ("__init__", "types", "environment", "child", "worker")
_BOOTSTRAP = "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where and as whom to connect; `python` is the interpreter there."""

    destination: str
    port: int
    python: str


def address_of(text: str) -> Address:
    """`ssh://[USER@]HOST[:PORT][/PATH/TO/PYTHON]`. Raises UsageError naming the part that is wrong."""
    hint = "for example ssh://pi@board.local, or ssh://pi@board.local:2222/home/pi/venv/bin/python"
    parts = urlsplit(text)
    if parts.scheme != "ssh" or parts.query or parts.fragment or parts.password is not None:
        raise UsageError(f"--on takes ssh://USER@HOST, got `{text}`", code="E-ADDRESS", hint=hint)
    try:
        port = parts.port or 0
    except ValueError:
        raise UsageError(
            f"--on: the port of `{text}` is not a number below 65,536", code="E-ADDRESS", hint=hint
        ) from None
    user, _, host = parts.netloc.rpartition("@")
    host = re.sub(r":\d*$", "", host).strip("[]")
    # nothing that ssh would take for an option, or a shell for its own
    allowed = {"user": (user, r"(?:\w[\w.-]*)?"), "host": (host, r"\w[\w.-]*|[\da-fA-F:]+(?:%\w+)?")}
    for what, (value, pattern) in allowed.items():
        if not re.fullmatch(pattern, value, re.ASCII):
            raise UsageError(f"--on: `{value}` is no name of a {what} that ssh takes", code="E-ADDRESS", hint=hint)
    python = unquote(parts.path) if parts.path.strip("/") else "python3"
    return Address(destination=f"{user}@{host}" if user else host, port=port, python=python)


@contextmanager
def connected(text: str) -> Iterator["Remote"]:
    """The machine at an address, as long as the block runs. Raises UsageError and Unmeasurable."""
    remote = Remote(address_of(text))
    try:
        yield remote
    finally:
        remote.close()


class Remote:
    """A `child.Host` at the other end of an ssh connection. One that is lost is not made again: half a comparison
    measured before a break and half after it would not be one.
    """

    def __init__(self, address: Address):
        self.address = address
        self._sent: dict[Path, str] = {}
        self._names = itertools.count()
        self._unread = b""
        # what ssh says for people: a file, since nobody reads it until the end and a full pipe would block
        self._said = tempfile.TemporaryFile()
        command = [
            *shlex.split(os.environ.get(SSH_VARIABLE, "ssh")), *OPTIONS,
            *(["-p", str(address.port)] if address.port else []), address.destination,
            f"exec {shlex.quote(address.python)} -u -c {shlex.quote(_BOOTSTRAP)}",
        ]  # fmt: skip
        try:
            self._ssh = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise Unmeasurable(
                f"there is no `{command[0]}` on this machine", code="E-REMOTE", hint="install an ssh client"
            ) from error
        try:
            source = Path(agent.__file__).read_bytes()
            self._write(b"%d\n" % len(source) + source)
            refused = self._greeting()
            if refused:
                raise ChildFailed(refused)
            for name in _SENT:
                path = Path(agent.__file__).with_name(f"{name}.py")
                self._put(path, f"compress/{name}.py")
        except ChildFailed as failure:
            self.close()
            hint = f"does `ssh {address.destination}` reach it without a password, and is `{address.python}` there?"
            raise Unmeasurable(
                f"cannot work on {address.destination}: {failure}", code="E-REMOTE", hint=hint
            ) from failure

    def close(self) -> None:
        """Ends the connection; the far side sees that and cleans up after itself."""
        for stream in (self._ssh.stdin, self._ssh.stdout, self._said):
            assert stream
            stream.close()
        try:
            self._ssh.wait(5)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()

    def run(
        self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...],
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """As `child.run_child`, there. Raises ChildFailed, also when the connection is lost."""
        return self._call("run_child", spec, timeout_s, on_progress)

    def visit(self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...]) -> dict[str, Any]:
        """As `child.visit`, there."""
        return self._call("visit", spec, timeout_s)

    def environment(self) -> Environment:
        """That machine's. Raises Unmeasurable when the connection is lost."""
        try:
            found = self._call("capture", {}, 0.0)
        except ChildFailed as failure:
            raise Unmeasurable(f"{self.address.destination}: {failure}", code="E-REMOTE") from failure
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        return Environment(**fields)

    def _call(
        self, call: str, spec: dict[str, Any], timeout_s: float, on_progress: Callable[[int], None] | None = None
    ) -> dict[str, Any]:  # fmt: skip
        spec = dict(spec)
        written = spec.get("logits")
        for key in agent.FILE_KEYS:
            if key in spec:
                spec[key] = f"file{next(self._names)}" if key == "logits" else self._send(Path(spec[key]))
        self._ask(do="run", call=call, spec=spec, timeout_s=timeout_s, progress=on_progress is not None)
        while True:
            reply = self._reply(timeout_s + GRACE_S)
            if "progress" in reply:
                assert on_progress
                on_progress(reply["progress"])
                continue
            break
        if "failed" in reply:
            raise ChildFailed(reply["failed"], reply["stage"], reply["kind"], how=reply["how"])
        if written:
            self._ask(do="get", name=spec["logits"])
            Path(written).write_bytes(self._read(self._reply(TRANSFER_S)["size"], TRANSFER_S))
        return reply["result"]

    def _send(self, path: Path) -> str:
        """The name there of a file or folder from here, which is sent once."""
        if path not in self._sent:
            name = f"file{next(self._names)}{path.suffix}"
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    self._put(file, name if file == path else f"{name}/{file.relative_to(path).as_posix()}")
            self._sent[path] = name
        return self._sent[path]

    def _put(self, path: Path, name: str) -> None:
        content = path.read_bytes()
        self._ask(do="put", name=name, size=len(content))
        self._write(content)
        self._reply(TRANSFER_S)

    def _ask(self, **request: Any) -> None:
        self._write(json.dumps(request).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        assert self._ssh.stdin
        try:
            while view:
                view = view[self._ssh.stdin.write(view) :]
        except OSError as error:
            raise self._lost() from error

    def _greeting(self) -> str:
        """Passes over what the login shell says; why the far side refuses, or ""."""
        end = time.monotonic() + CONNECT_S
        heard = 0
        while heard < MOST_CHATTER_BYTES:
            line = self._line(max(0.0, end - time.monotonic()), MOST_CHATTER_BYTES)
            heard += len(line)
            if agent.READY.encode() in line:
                return str(json.loads(line)["refused"])
        raise ChildFailed("it says other things than were asked for", how="rubbish")

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        line = self._line(timeout_s)
        try:
            return json.loads(line)
        except ValueError:
            raise ChildFailed(f"it answered what is no JSON: {line[:200]!r}", how="rubbish") from None

    def _line(self, timeout_s: float, most_bytes: int = MOST_REPLY_BYTES) -> bytes:
        end = time.monotonic() + timeout_s
        parts, size = [self._unread], len(self._unread)
        while b"\n" not in parts[-1]:
            if size > most_bytes:
                raise ChildFailed("it says other things than were asked for", how="rubbish")
            parts.append(self._more(end))
            size += len(parts[-1])
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line

    def _read(self, size: int, timeout_s: float) -> bytes:
        end = time.monotonic() + timeout_s
        parts, have = [self._unread], len(self._unread)
        while have < size:
            parts.append(self._more(end))
            have += len(parts[-1])
        content = b"".join(parts)
        self._unread = content[size:]
        return content[:size]

    def _more(self, end: float) -> bytes:
        """What has come; sleeps until something does. Raises ChildFailed at `end` (monotonic) and when it is over."""
        assert self._ssh.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._ssh.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, end - time.monotonic())):
                raise ChildFailed("no answer in time over ssh", how="lost")
        data = os.read(self._ssh.stdout.fileno(), 1 << 16)
        if not data:
            raise self._lost()
        return data

    def _lost(self) -> ChildFailed:
        try:
            self._ssh.wait(5)
            size = self._said.seek(0, os.SEEK_END)
            self._said.seek(max(0, size - (1 << 16)))
            said = self._said.read().decode(errors="replace").strip().splitlines()
        except subprocess.TimeoutExpired:
            said = []
        last = "".join(c for c in said[-1] if c.isprintable())[:300] if said else ""
        return ChildFailed("the ssh connection ended" + (f": {last}" if last else ""), how="lost")
