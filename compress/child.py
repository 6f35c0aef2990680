"""One child process: started clean, waited for without polling, and gone with all that it started.

Used by `bench.py`, whose other side is `worker.py`, and by `conversion.py`, whose other side is `converter.py`. On
another machine `agent.py` uses it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from compress import environment
from compress.types import Environment, FailureKind
from compress.worker import Unavailable

WORKER = Path(__file__).with_name("worker.py")
CONVERTER = Path(__file__).with_name("converter.py")
LOOK_EVERY_MS = 500
# What a child may know of this environment: nothing that holds credentials.
PASSED_ON = frozenset(
    "PATH HOME LANG LC_ALL LD_LIBRARY_PATH VIRTUAL_ENV CUDA_VISIBLE_DEVICES CUDA_PATH COMPRESS_STORE COMPRESS_WEB_KIT "
    "XDG_CACHE_HOME".split()
)
# Signals by which a process dies of a fault of its own; the others come from outside.
CRASHES = frozenset("SIGSEGV SIGABRT SIGBUS SIGILL SIGFPE SIGSYS SIGTRAP".split())


class ChildFailed(Exception):
    """A child that gave no result, and `how` it failed. `stage` and `kind` (exception class) are empty when it died
    without a word.
    """

    def __init__(self, reason: str, stage: str = "", kind: str = "", *, how: FailureKind = "error"):
        super().__init__(reason)
        self.stage = stage
        self.kind = kind
        self.how: FailureKind = how


@contextlib.contextmanager
def workspace(scratch: Path) -> Iterator[Path]:
    """A folder below `scratch` (made when absent) that is removed at the end."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="bench-") as folder:
        yield Path(folder).resolve()


def run_child(
    spec: dict[str, Any],
    work: Path,
    timeout_s: float,
    plugins: tuple[Path, ...],
    on_progress: Callable[[int], None] | None = None,
    *,
    script: Path = WORKER,
    python: Path = Path(sys.executable),
    watch: Callable[[int], None] | None = None,
    changes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The result of one process: `script`, run by `python`. Whatever it started is gone on return. Raises ChildFailed.

    `on_progress(done)` is called twice a second with the count that the child notes, `watch(pid)` to look at it, which
    ends it by raising ChildFailed; without them nothing wakes up this process before the child ends, which is what
    timed work wants. `changes` are of the child's environment.
    """
    folder = Path(tempfile.mkdtemp(dir=work))
    result, log = folder / "result.json", folder / "log.txt"
    # The child's own alarm is for the case that this process is killed first.
    full = spec | {"result": str(result), "progress": str(folder / "progress"), "cap_s": int(timeout_s) + 10}
    (folder / "spec.json").write_text(json.dumps(full))
    # -P: without it this package's own folder comes first on the path and its types.py hides Python's.
    command = [str(python), "-P", str(script), str(folder / "spec.json")]
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=folder,
            env={**_child_environment(spec.get("threads", 1), folder, plugins), **changes},
            start_new_session=True,
        )
        try:
            finished = _wait(child, timeout_s, _looks(child.pid, folder / "progress", on_progress, watch))
        finally:
            _kill_group(child)
    if not finished:
        raise ChildFailed(f"no result within {timeout_s:g} s; stopped", how="hung")
    return _read_result(result, log, child.returncode)


def visit(spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...]) -> dict[str, Any]:
    """As `run_child`, and beside it what befell the machine meanwhile: throttling, time taken by others; and
    `load_average`, `governor` and `on_battery` before and after, None where the system does not say.
    """
    before, throttled = _state(), environment.throttled_periods()
    stolen, ticks = environment.cpu_ticks()
    begun = time.perf_counter_ns()
    result = run_child(spec, work, timeout_s, plugins)
    took = time.perf_counter_ns() - begun
    stolen_after, ticks_after = environment.cpu_ticks()
    after = _state()
    return result | {
        **{name: [before[name], after[name]] for name in before},
        "throttled_periods": environment.throttled_periods() - throttled,
        "visit_ns": took,
        "steal_fraction": (stolen_after - stolen) / max(1, ticks_after - ticks),
    }


def _state() -> dict[str, Any]:
    return {
        "load_average": environment.load_average(),
        "governor": environment.governor() or None,
        "on_battery": environment.on_battery(),
    }


class Host(Hashable, Protocol):
    """A machine on which children run: this one, or another (`remote.Remote`). Files are named by their paths here."""

    def run(
        self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...],
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """As `run_child`."""

    def visit(
        self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...]
    ) -> dict[str, Any]:  # fmt: skip
        """As `visit`."""

    def environment(self) -> Environment:
        """As `environment.capture`."""


class _Here:
    """This machine."""

    run = staticmethod(run_child)
    visit = staticmethod(visit)
    environment = staticmethod(environment.capture)


HERE: Host = _Here()


def _looks(
    pid: int, noted: Path, on_progress: Callable[[int], None] | None, watch: Callable[[int], None] | None
) -> Callable[[], None] | None:
    """What is done twice a second while the child runs, or None."""
    if on_progress is None and watch is None:
        return None

    def look() -> None:
        if on_progress and noted.exists():
            on_progress(noted.stat().st_size)
        if watch:
            watch(pid)

    return look


def _wait(child: subprocess.Popen, timeout_s: float, look: Callable[[], None] | None) -> bool:
    """Whether the child ended in time. Sleeps in poll(2): `Popen.wait(timeout)` wakes up twenty times a second."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # not Linux, or a kernel or sandbox without it
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if look is None:
            return bool(poller.poll(timeout_s * 1000))
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if poller.poll(LOOK_EVERY_MS):
                return True
            look()
        return False
    finally:
        os.close(descriptor)


def _kill_group(child: subprocess.Popen) -> None:
    # The group may be empty already when the child was the only one in it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _child_environment(threads: int, folder: Path, plugins: tuple[Path, ...]) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name in PASSED_ON}
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = [str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **passed,
        **pools,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TMPDIR": str(folder),
        "COMPRESS_PLUGINS": os.pathsep.join(str(p.resolve()) for p in plugins),
    }


def _read_result(result: Path, log: Path, status: int) -> dict[str, Any]:
    if not result.exists():
        lines = log.read_text(errors="replace").strip().splitlines()
        last = f" (last words: {lines[-1][:300]})" if lines else ""
        if status < 0:
            name, memory = signal.Signals(-status).name, "; out of memory?" if status == -signal.SIGKILL else ""
            raise ChildFailed(f"the child was killed by {name}{memory}{last}", how=how_by(name))
        raise ChildFailed(f"the child ended with exit status {status} and no result{last}", how="ended-early")
    try:
        content = json.loads(result.read_text())
    except ValueError as error:
        raise ChildFailed(f"the child's result is not JSON: {error}", how="rubbish") from error
    if not isinstance(content, dict):
        raise ChildFailed(f"the child's result is no table of facts but {type(content).__name__}", how="rubbish")
    if "error" in content:
        how: FailureKind = "unavailable" if content["kind"] == Unavailable.__name__ else "error"
        raise ChildFailed(f"{content['stage']}: {content['error']}", content["stage"], content["kind"], how=how)
    return content


def how_by(signal_name: str) -> FailureKind:
    """How a process failed that was ended by this signal. SIGALRM is the worker's own, for when nobody stops it."""
    return "crashed" if signal_name in CRASHES else "hung" if signal_name == "SIGALRM" else "killed"


def readable(failure: ChildFailed, copy: str, original: Path) -> str:
    """The reason on one line, naming the user's file; control characters of a hostile file do not reach a terminal."""
    text = str(failure).replace(copy, str(original)).replace(str(Path(copy).parent), "…")
    return "".join(c if c.isprintable() else " " for c in text)[:600]
