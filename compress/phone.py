"""An Android phone as a host of visits, over adb: `--on adb:SERIAL --tools FOLDER`.

A visit is a process of the runtime's own native benchmark program (`NATIVE`, see `runtimes/__init__.py`), started from
adb's shell. So rounds, their order and the A/A control are those of every other measurement; inputs, warm-up and the
clock are the program's own, and what it does not tell stays open. It is no app: Android may clock that otherwise.

All that is sent lies in one new folder, which is removed at the end; each program ends by a time limit on the phone,
also when the cable is pulled. Programs come from the user's FOLDER, with the lib*.so that lie beside them.
"""

import math
import re
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from compress import adb
from compress.child import ChildFailed, how_by
from compress.environment import ISA_FLAGS, tool_commit
from compress.errors import Unmeasurable, UsageError
from compress.progress import say
from compress.store import file_digest
from compress.types import Environment, FailureKind
from compress.worker import LONGEST_BLOCKS, MIN_BLOCK_RUNS, START_ALLOWANCE_S, WARMUP_KEPT, is_steady, load_adapter

BELOW = "/data/local/tmp"
ASK_S, TRANSFER_S, GRACE_S = 30.0, 600.0, 15.0
# the first look at a cell, which tells how many runs a block needs; none may need more than can be read back
PILOT_RUNS, MOST_RUNS = 10, 100_000
# between visits, as far as the phone allows: no warmer than at the start by more than this, for at most so long
COOL_CELSIUS, COOL_S, LOOK_S = 3.0, 60.0, 5.0
KILLED_BY = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE"}
_LOST = re.compile(r"device .*not found|device offline|device unauthorized|no devices|error: closed|connection reset")
# what a report holds of every visit, and a program may not tell
_UNTOLD = ("import_ns", "load_ns", "first_inference_ns", "cpu_ns_per_inference", "peak_rss_bytes")
_PROPERTIES = {
    "maker": "ro.product.manufacturer", "model": "ro.product.model", "soc_maker": "ro.soc.manufacturer",
    "soc": "ro.soc.model", "hardware": "ro.hardware", "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk", "abi": "ro.product.cpu.abi",
}  # fmt: skip


@contextmanager
def connected(address: str, tools: Path) -> Iterator["Phone"]:
    """The phone at an address, as long as the block runs. Raises UsageError and Unmeasurable."""
    if not tools.is_dir():
        raise UsageError(
            f"--tools: there is no folder {tools}",
            code="E-OPTION-VALUE",
            hint="it holds the runtimes' programs for Android",
        )
    phone = Phone(adb.choose(adb.serial_of(address)), tools)
    try:
        yield phone
    finally:
        phone.close()


class Phone:
    """A `child.Host` at the other end of adb. One that is lost is not taken up again: half a comparison measured before
    a break and half after it would not be one.
    """

    def __init__(self, serial: str, tools: Path, sleep: Callable[[float], None] = time.sleep):
        self._serial, self._tools, self._sleep = serial, tools, sleep
        self._token = secrets.token_hex(8)
        self.folder = f"{BELOW}/compress-{self._token}"
        self._result = f"{self.folder}/result"
        self._sent: dict[Path, str] = {}
        self._expected_ns: dict[tuple[str, int], float] = {}
        self._lost = ""
        self._start_celsius: float | None = None
        try:
            # by way of `timeout`, which every program is started with: Android has it from version 8 on
            self._ask("timeout", "9", "mkdir", self.folder)
        except ChildFailed as failure:
            hint = f"does `adb shell timeout 9 ls {BELOW}` work there? Android 8 or newer is needed"
            raise Unmeasurable(f"cannot work on the phone: {failure}", code="E-PHONE", hint=hint) from failure

    def close(self) -> None:
        """Removes the folder on the phone, where it can still be reached."""
        self._lost = ""  # it may be back
        try:
            self._ask("rm", "-rf", self.folder)
        except (ChildFailed, Unmeasurable) as failure:
            say(f"warning: {self.folder} is still on the phone ({failure}): adb shell rm -r {self.folder}")

    def run(
        self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...],
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Whether a runtime can be timed here (mode `probe`); ChildFailed for all else, which takes our own worker."""
        if spec["mode"] != "probe":
            raise ChildFailed(f"a benchmark program on a phone gives no {spec['mode']}", how="refused")
        adapter = load_adapter(spec["adapter"])
        reason = self._lacking(adapter, Path(spec["adapter"]).stem)
        version = "" if reason else _version(self._tools / adapter.NATIVE["tool"])
        return {
            "unavailable": reason, "format": adapter.FORMAT, "start_allowance_s": START_ALLOWANCE_S, "version": version
        }  # fmt: skip

    def visit(self, spec: dict[str, Any], work: Path, timeout_s: float, plugins: tuple[Path, ...]) -> dict[str, Any]:
        """One visit (mode `latency`), by the runtime's own program. Raises ChildFailed."""
        if spec["batch"] != 1:
            reason = f"load: on a phone images are asked one by one, not {spec['batch']} at once"
            raise ChildFailed(reason, "load", how="refused")
        adapter = load_adapter(spec["adapter"])
        model, cooled_s = self._send(Path(spec["model"]), adapter.FORMAT), self._cool()
        before = self._heat()
        key = model, spec["threads"]
        if key not in self._expected_ns:
            pilot = self._timed(adapter, spec, model, PILOT_RUNS, PILOT_RUNS, timeout_s)
            self._expected_ns[key] = pilot.get("mean_ns") or statistics.fmean(pilot["samples_ns"])
        expected = self._expected_ns[key]
        warmup = _count(spec["warmup_s"], expected, spec["warmup_runs"])
        facts = self._timed(adapter, spec, model, warmup, block_runs(spec, expected), timeout_s)
        after = self._heat()
        trace = facts.get("warmup_ns", [])
        return dict.fromkeys(_UNTOLD) | facts | ({"steady": is_steady(trace)} if trace else {}) | {
            "warmup_ns": trace[:WARMUP_KEPT],
            "runtime_version": _version(self._tools / adapter.NATIVE["tool"]),
            "effective": {
                "runner": "adb shell", "note": adapter.NATIVE["note"],
                "asked_threads": spec["threads"], "fixed_batch": 1,
            },
            "celsius": [before["celsius"], after["celsius"]], "cooled_s": cooled_s,
            "thermal_status": max(before["status"], after["status"]),
        }  # fmt: skip

    def environment(self) -> Environment:
        """The phone's; its serial number is not in it. Raises Unmeasurable when the connection is lost."""
        try:
            said = {name: self._ask("getprop", prop) for name, prop in _PROPERTIES.items()}
            kernel, cores = self._ask("uname", "-r"), self._ask("nproc")
            cpuinfo, memory = self._ask("cat", "/proc/cpuinfo"), self._ask("cat", "/proc/meminfo")
            # where it may not be read, it is not said
            _, governors = self._shell("cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor", ASK_S)
        except ChildFailed as failure:
            raise Unmeasurable(f"cannot ask the phone what it is: {failure}", code="E-PHONE") from failure
        found = {name: adb.readable(text)[:60] for name, text in said.items()}
        soc = f"{found['soc_maker']} {found['soc']}".strip() or found["hardware"]
        features = re.search(r"^Features\s*:(.*)", cpuinfo, re.MULTILINE)
        total = re.search(r"^MemTotal:\s*(\d{1,12}) kB", memory, re.MULTILINE)
        names = sorted(set(re.findall(r"^[a-z_]{1,20}$", governors, re.MULTILINE)))
        governed = f", governor {' and '.join(names)}" if names else ""
        return Environment(
            cpu_model=f"{soc} in {found['maker']} {found['model']}",
            isa=tuple(sorted(ISA_FLAGS & set(features[1].split()))) if features else (),
            cores_allowed=int(cores) if re.fullmatch(r"\d{1,4}", cores.strip()) else 0,
            cpu_quota=0.0,
            memory_bytes=int(total[1]) * 1024 if total else 0,
            gpu="",
            system=f"Android {found['android']} (SDK {found['sdk']}) {found['abi']}, "
            f"Linux {adb.readable(kernel)[:60]}{governed}",
            python="none",
            packages={},
            commit=tool_commit(),
        )

    def _lacking(self, adapter: ModuleType, runtime: str) -> str:
        """Why a runtime cannot be timed on a phone, or ""."""
        if not hasattr(adapter, "NATIVE"):
            return f"{runtime} has no benchmark program for Android that is known here"
        tool = adapter.NATIVE["tool"]
        missing = f"the folder of --tools has no `{tool}`: {adapter.NATIVE['source']}"
        return "" if (self._tools / tool).is_file() else missing

    def _timed(
        self, adapter: ModuleType, spec: dict[str, Any], model: str, warmup: int, runs: int, timeout_s: float
    ) -> dict[str, Any]:
        """The facts of one run of the program, each of them a number that can be."""
        tool = self._send_tool(adapter.NATIVE["tool"])
        _, height, width, channels = np.load(spec["images"], mmap_mode="r").shape
        words = adapter.native_words(model, (channels, height, width), spec["threads"], warmup, runs, self._result)
        limited = ["timeout", "-s", "KILL", str(math.ceil(timeout_s)), tool, *words]
        result = adb.quoted([self._result])
        status, said = self._shell(
            f"cd {adb.quoted([self.folder])} && LD_LIBRARY_PATH={adb.quoted([self.folder])} {adb.quoted(limited)} "
            f"< /dev/null; status=$?; cat {result} 2> /dev/null; rm -f {result}; (exit $status)",
            timeout_s + GRACE_S,
        )
        if status:
            reason = f"block: {_ended(adapter.NATIVE['tool'], status, said, timeout_s)}"
            raise ChildFailed(reason, "block", how=_how(status))
        try:
            return _checked(adapter.native_facts(said, warmup))
        except (ValueError, OverflowError) as error:
            reason = f"block: {adapter.NATIVE['tool']} says what cannot be read: {error}; its last words: {_last(said)}"
            raise ChildFailed(reason, "block", how="rubbish") from error

    def _send_tool(self, name: str) -> str:
        """Its path there, with the libraries that lie beside it here."""
        for library in sorted(self._tools.glob("lib*.so")):
            self._put(library, library.name)
        if (self._tools / name) not in self._sent:
            self._put(self._tools / name, name)
            self._ask("chmod", "755", self._sent[self._tools / name])
        return self._sent[self._tools / name]

    def _send(self, path: Path, suffix: str) -> str:
        """The path there of a model's file or folder from here, which is sent once, under a name of ours."""
        if path not in self._sent:
            name = f"model{len(self._sent)}"
            if path.is_dir():
                self._ask("mkdir", f"{self.folder}/{name}")
                for file in sorted(file for file in path.iterdir() if file.is_file()):
                    self._put(file, f"{name}/{file.name}")
                self._sent[path] = f"{self.folder}/{name}"
            else:
                self._put(path, f"{name}.{suffix}")
        return self._sent[path]

    def _put(self, path: Path, name: str) -> None:
        if path in self._sent:
            return
        there = f"{self.folder}/{name}"
        try:
            adb.quoted([there])
        except ValueError:
            reason = f"the name of {path.name} has characters that no phone is sent: rename it"
            raise ChildFailed(reason, how="refused") from None
        status, said = self._adb(["push", str(path.absolute()), there], TRANSFER_S)
        if status:
            raise self._failed(f"cannot send {path.name}", said)
        self._sent[path] = there

    def _ask(self, *words: str) -> str:
        """What a command there says. Raises ChildFailed when it fails."""
        status, said = self._shell(adb.quoted(words), ASK_S)
        if status:
            raise ChildFailed(f"`{words[0]}` failed there with {status}: {_last(said)}")
        return said.strip()

    def _shell(self, script: str, timeout_s: float) -> tuple[int, str]:
        """(exit status, output with errors) of a script there; adb itself tells the status on newer phones only."""
        _, said = self._adb(["shell", f"{{ {script}; }} 2>&1; echo {self._token} $?"], timeout_s)
        before, _, after = said.rpartition(self._token)
        if not re.fullmatch(r" \d{1,3}\s*", after):
            self._lost = self._lost or "the adb connection ended"
            raise self._failed(self._lost, said)
        return int(after), before

    def _adb(self, words: list[str], timeout_s: float) -> tuple[int, str]:
        if self._lost:
            raise ChildFailed(self._lost, how="lost")
        try:
            return adb.run(["-s", self._serial, *words], timeout_s)
        except ChildFailed as failure:
            # programs end by a limit of their own before this one
            self._lost = str(failure) if failure.how == "lost" else ""
            raise

    def _failed(self, what: str, said: str) -> ChildFailed:
        """The failure, with adb's own last words. Reports are shared: they do not name the phone's number."""
        last = _last(said).replace(self._serial, "…")
        if _LOST.search(last):
            self._lost = what = "the adb connection ended"
        return ChildFailed(f"{what}: {last}" if last else what, how="lost" if self._lost else "error")

    def _heat(self) -> dict[str, Any]:
        """`celsius` of the battery, None where it is not said, and `status`: from 1 on Android slows down for heat."""
        _, battery = self._shell("dumpsys battery", ASK_S)
        _, thermal = self._shell("dumpsys thermalservice", ASK_S)  # Android 10 and newer
        tenths = re.search(r"^ *temperature: (-?\d{1,4}) *$", battery, re.MULTILINE)
        status = re.search(r"^Thermal Status: (\d)\s*$", thermal, re.MULTILINE)
        return {"celsius": int(tenths[1]) / 10 if tenths else None, "status": int(status[1]) if status else 0}

    def _cool(self) -> float:
        """Waits until the phone is about as cool as at the start, or long enough; for how many seconds."""
        waited, heat = 0.0, self._heat()
        if self._start_celsius is None:
            self._start_celsius = heat["celsius"]
        while waited < COOL_S and (heat["status"] or self._warmer(heat["celsius"])):
            self._sleep(LOOK_S)
            waited, heat = waited + LOOK_S, self._heat()
        return waited

    def _warmer(self, celsius: float | None) -> bool:
        if celsius is None or self._start_celsius is None:
            return False
        return celsius > self._start_celsius + COOL_CELSIUS


def _version(tool: Path) -> str:
    """These programs do not tell their version."""
    return f"{tool.name} (sha256 {file_digest(tool)[:12]})"


def block_runs(spec: dict[str, Any], expected_ns: float) -> int:
    """How many runs of about `expected_ns` a timed block takes, by `worker.repeat`'s rule: those of its seconds, and
    its round's share of the fewest `queries`, as long as they take no more than five times the seconds.
    """
    own, longest = (_count(times * spec["block_s"], expected_ns, MIN_BLOCK_RUNS) for times in (1, LONGEST_BLOCKS))
    wanted = -(-spec.get("queries", 0) // spec.get("rounds", 1))
    return min(max(own, wanted), longest)


def _count(seconds: float, expected_ns: float, least: int) -> int:
    return min(MOST_RUNS, max(least, math.ceil(seconds * 1e9 / expected_ns)))


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, with a mean or samples that can be. ValueError otherwise: a program may print anything."""
    times = [*facts.get("samples_ns", []), *(facts[k] for k in ("mean_ns", "median_ns", "max_ns") if k in facts)]
    if not times or not all(0 < value < math.inf for value in times):
        raise ValueError("a time that is not above 0")
    if "samples_ns" not in facts and facts["n"] < 1:
        raise ValueError("it made no run")
    if not all(0 <= v < math.inf for v in facts.values() if isinstance(v, int | float)):
        raise ValueError("a number that is not at least 0")
    return facts


def _ended(tool: str, status: int, said: str, timeout_s: float) -> str:
    if status == 124 or status == 137:
        how = f"was killed: no result within {math.ceil(timeout_s)} s, or out of memory"
    elif status > 128:
        how = f"was killed by {KILLED_BY.get(status - 128, f'signal {status - 128}')}"
    else:
        how = f"ended with exit status {status}"
    last = _last(said)
    return f"{tool} {how}" + (f" (last words: {last})" if last else "")


def _how(status: int) -> FailureKind:
    """How a program failed whose shell says this status; 128 and more is a signal, 124 that of a `timeout`."""
    if status == 124 or status > 128:
        return how_by(KILLED_BY.get(status - 128, ""))
    return "ended-early"


def _last(said: str) -> str:
    lines = [line for line in map(adb.readable, said[-4096:].splitlines()) if line]
    return lines[-1] if lines else ""
