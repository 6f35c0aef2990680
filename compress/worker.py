"""The measured child: one artifact in one runtime, timed, answering, or describing itself.

Stand-alone: the standard library, numpy and one adapter file (`runtimes/*.py`) are all that it needs.

    python -P worker.py SPEC.json

SPEC.json: `mode` (`probe`, `latency`, `memory`, `sustained`, `answers`, `inspect`), `adapter` (path of the adapter
file), `result` (where the JSON result goes, by atomic rename), and unless probing `model` and `threads`; further
`images` (.npy, uint8 `[N,H,W,C]`), `batch`, `seed` (a list of whole numbers), `warmup_runs`, `warmup_s`, `block_s`,
`queries` (fewest, of all `rounds`), `logits` (.npy to write); `fps` and `paced_s` where queries are to come at a rate
too; `cold`, to load the model with nothing of it in memory; `extra_s`, for how long one image is asked again and again,
and the CPU's peaks are taken, after the block; `placed`, to ask after that where the model's nodes run; `sustained_s`,
for how long to go on without a pause. Optional: `progress` (a file that grows by a byte for each image answered) and
the limits `cap_s` (wall clock) and `memory_bytes` (address space); `unproved`, to ask the adapter first whether it can
be used here at all.

A failure is a result too: `{"error", "kind", "stage"}` with exit status 1; the traceback goes to standard error.
"""

import ctypes
import gc
import importlib.util
import json
import mmap
import os
import resource
import signal
import statistics
import sys
import time
import timeit
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

WARMUP_KEPT = 50
# So that a slow model's visit still has a median.
MIN_BLOCK_RUNS = 5
MEMORY_QUERIES = 8
# For the queries that a percentile wants, a block may go on for so many times its seconds.
LONGEST_BLOCKS = 5
STEADY_SHARE = 0.02
# for loading and the first inference; an adapter that compiles then declares more
START_ALLOWANCE_S = 120.0
TIMER_RUNS = 201
HARNESS_RUNS, HARNESS_S = 20, 0.02  # at least
NOTHING: Any = SimpleNamespace(run=lambda session, inputs: None)  # an adapter
TIMED = ("latency", "sustained")
LONGEST_WINDOW_S = 60.0
# of both a load and idleness: counters of energy move in steps
LEAST_ENERGY_S = 10.0
NO_COUNTER = "no counter of energy can be read (/sys/class/powercap/intel-rapl:*, often by root only)"
GEMM_SIZE, STREAM_BYTES = 1024, 32 << 20


class Unavailable(Exception):
    """The runtime cannot be used here; the adapter's own sentence."""


class StageFailed(Exception):
    """What went wrong, with the stage in which it did: import, load, first_inference, warmup, block, placement,
    answers and so on.
    """

    def __init__(self, stage: str, cause: Exception):
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.stage = stage
        self.kind = type(cause).__name__


@contextmanager
def stage(name: str, facts: dict[str, Any]) -> Iterator[None]:
    """Adds the block's wall time to `facts` as `<name>_ns`; any exception becomes StageFailed."""
    start = time.perf_counter_ns()
    try:
        yield
    except Exception as error:
        raise StageFailed(name, error) from error
    facts[f"{name}_ns"] = time.perf_counter_ns() - start


def load_adapter(path: str) -> ModuleType:
    """The adapter module in the file `path`."""
    module_spec = importlib.util.spec_from_file_location("adapter", path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def start(spec: dict[str, Any], facts: dict[str, Any]) -> tuple[ModuleType, Any]:
    """(adapter, open session); `facts` receives the version and the times of both stages."""
    with stage("import", facts):
        adapter = load_adapter(spec["adapter"])
        if spec.get("unproved") and (reason := adapter.unavailable()):
            raise Unavailable(reason)
        facts["runtime_version"] = adapter.version()
    with stage("load", facts):
        opened = adapter.open_session if spec.get("arena", True) else adapter.open_without_arena
        session = opened(spec["model"], spec["threads"])
        facts["effective"] = adapter.effective(session)
        got = facts["effective"].get("intra_op_threads", spec["threads"])
        if spec["mode"] in TIMED and got != spec["threads"]:  # answers are the same with any number
            raise RuntimeError(f"asked for {spec['threads']} threads, it took {got}")
    return adapter, session


def forget(model: Path) -> bool:
    """Drops the model's file, or the files of its folder, from the page cache; whether nothing of them is left there.

    `posix_fadvise` needs no privilege, but drops only what is written back already, and is free to do nothing.
    """
    files = [path for path in (model.rglob("*") if model.is_dir() else [model]) if path.is_file()]
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not any(pages_in_memory(path) for path in files if path.stat().st_size)


def pages_in_memory(path: Path) -> int:
    """How many pages of a file the page cache holds; mincore(2) asks without reading any."""
    size = path.stat().st_size
    held = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    # private, since mincore says nothing of a shared mapping to those who may not write the file
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_WRITE) as view:
        start = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
        if ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), held):
            return len(held)  # the system does not say
    return sum(state & 1 for state in held)


def to_inputs(images: np.ndarray) -> np.ndarray:
    """A new float32 `[B,C,H,W]` array in [0,1] from uint8 `[B,H,W,C]`."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def draw(pool: np.ndarray, batch: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Endless batches from the pool, with replacement, each in a new buffer; equal seeds give equal batches."""
    generator = np.random.default_rng(seed)
    while True:
        yield to_inputs(pool[generator.integers(0, len(pool), size=batch)])


def timer(adapter: ModuleType | SimpleNamespace) -> Callable[[Any, np.ndarray], tuple[int, int]]:
    """How an inference is timed, in ns, and how much of that copies to and from a device took: by the adapter itself
    where the work is done elsewhere, in another process or on a GPU.
    """
    if hasattr(adapter, "timed"):
        return adapter.timed

    def timed(session: Any, inputs: np.ndarray) -> tuple[int, int]:
        start = time.perf_counter_ns()
        adapter.run(session, inputs)
        return time.perf_counter_ns() - start, 0

    return timed


def repeat(
    adapter: ModuleType, session: Any, queries: Iterator[np.ndarray], runs: int, seconds: float, wanted: int = 0
) -> tuple[list[int], list[int], int]:
    """(wall times, times of copies, total CPU time) in ns of single inferences, until both `runs` and `seconds` are
    reached, and `wanted` runs or five times the seconds. Making the input lies outside all clocks.
    """
    samples: list[int] = []
    transfers: list[int] = []
    cpu_ns = 0
    timed = timer(adapter)
    now = time.perf_counter_ns()
    end, latest = (now + int(times * seconds * 1e9) for times in (1, LONGEST_BLOCKS))
    while len(samples) < runs or (now := time.perf_counter_ns()) < end or (len(samples) < wanted and now < latest):
        inputs = next(queries)
        cpu_start = time.process_time_ns()
        elapsed, copied = timed(session, inputs)
        samples.append(elapsed)
        transfers.append(copied)
        cpu_ns += time.process_time_ns() - cpu_start
    return samples, transfers, cpu_ns


def paced(
    timed: Callable[[Any, np.ndarray], tuple[int, int]],
    session: Any,
    queries: Iterator[np.ndarray],
    fps: float,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Latencies in ns of queries that come at `fps` a second, whether the one before is done or not: each is counted
    from the moment for which it was scheduled, so that a stall is felt by all that had to wait for it.
    """
    samples: list[int] = []
    start = clock()
    for number in range(max(1, round(seconds * fps))):
        inputs = next(queries)
        scheduled = start + round(number * 1e9 / fps)
        while (early := scheduled - clock()) > 0:
            sleep(early / 1e9)
        begun = clock()
        samples.append(begun - scheduled + timed(session, inputs)[0])
    return samples


def timer_ns() -> float:
    """What reading the clock around an inference takes: around a call that does nothing, in a loop of nothing else."""
    timed, nothing = timer(NOTHING), np.empty(0, dtype=np.float32)
    return statistics.median(timed(None, nothing)[0] for _ in range(TIMER_RUNS))


def harness_ns(queries: Iterator[np.ndarray]) -> float:
    """What all of the harness adds to an inference: one that does nothing, in the loop of real ones, on fresh inputs;
    with what the caches lost meanwhile.
    """
    return statistics.median(repeat(NOTHING, None, queries, HARNESS_RUNS, HARNESS_S)[0])


def same(pool: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """One batch without end, each time in a new buffer: what keeps answers by their content is fast then."""
    while True:
        yield to_inputs(pool[np.arange(batch) % len(pool)])


def peaks(threads: int) -> dict[str, float]:
    """The most that this CPU does with `threads` threads, by numpy: float32 multiply-adds a second in a matrix product
    (its pool has as many as the environment gives), and bytes a second in a + a into another, arrays that few caches
    hold (as in STREAM), each thread a part of them.
    """
    a, c = np.full((GEMM_SIZE, GEMM_SIZE), 0.5, np.float32), np.ones(STREAM_BYTES // 4, np.float32)
    product, total = a.copy(), c.copy()
    parts = list(zip(np.array_split(c, threads), np.array_split(total, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        works = (
            lambda: np.matmul(a, a, out=product),
            lambda: list(pool.map(lambda part: np.add(part[0], part[0], out=part[1]), parts)),
        )
        gemm_ns, stream_ns = (min(timeit.repeat(work, repeat=6, number=1)) * 1e9 for work in works)
    return {
        "peak_gmacs_per_second": GEMM_SIZE**3 / gemm_ns,
        "peak_bytes_per_second": 2 * STREAM_BYTES / stream_ns * 1e9,
    }


def is_steady(warmup_ns: list[int]) -> bool:
    """Whether the last third of the warm-up has the median of the third before it, within 2 %."""
    third = len(warmup_ns) // 3
    if third == 0:
        return False
    last, previous = statistics.median(warmup_ns[-third:]), statistics.median(warmup_ns[-2 * third : -third])
    return abs(last - previous) <= STEADY_SHARE * previous


def started() -> list[Path]:
    """The folders in /proc of the processes that this one started, if any: a browser, say. Only a child of the
    benchmark is the head of its session, where they all are.
    """
    own = os.getpid()
    if os.getsid(0) != own:
        return []
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(folder)
        if fields and int(fields[3]) == own and folder.name != str(own):
            found.append(folder)
    return found


def _stat(folder: Path) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before it may hold anything. Empty when it ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_ns_of(folders: list[Path]) -> int:
    """CPU time of these processes, in steps of the system's clock tick (10 ms)."""
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, folders) if fields)
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def held_bytes(field: str, folders: Sequence[Path]) -> int:
    """A number of kilobytes of the processes with these folders in /proc, in bytes; 0 where the system does not say.

    VmHWM, the most that was resident, is not `ru_maxrss`: Linux carries that over from the parent by fork and exec.
    """
    total = 0
    for folder in folders:
        try:
            lines = (folder / ("smaps_rollup" if field == "Pss" else "status")).read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
    return total


def latency(spec: dict[str, Any]) -> dict[str, Any]:
    """One visit: load, first inference, warm-up, timed block."""
    facts: dict[str, Any] = {}
    celsius = [hottest_celsius()]
    pool = np.load(spec["images"])
    queries = draw(pool, spec["batch"], spec["seed"])
    if spec.get("cold"):
        facts["cold"] = forget(Path(spec["model"]))
    adapter, session = start(spec, facts)
    fixed = facts["effective"].get("fixed_batch", 0)
    if fixed and spec["batch"] != fixed:
        raise StageFailed("load", RuntimeError(f"it takes batches of {fixed} only, asked for {spec['batch']}"))
    first = next(queries)
    with stage("first_inference", facts):
        adapter.run(session, first)
    with stage("warmup", {}):
        warmup_ns, *_ = repeat(adapter, session, queries, spec["warmup_runs"], spec["warmup_s"])
    # of the fastest core, which is one that works: idle ones are clocked as the system likes
    megahertz = [clock_megahertz(which=max)]
    gc.disable()
    others = started()
    others_cpu_ns = cpu_ns_of(others)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    with stage("block", facts):
        wanted = -(-spec.get("queries", 0) // spec.get("rounds", 1))
        samples_ns, transfers_ns, cpu_ns = repeat(adapter, session, queries, MIN_BLOCK_RUNS, spec["block_s"], wanted)
    cpu_ns += cpu_ns_of(others) - others_cpu_ns
    megahertz.append(clock_megahertz(which=max))
    celsius.append(hottest_celsius())
    if spec.get("fps"):
        with stage("paced", facts):
            facts["paced_samples_ns"] = paced(timer(adapter), session, queries, spec["fps"], spec["paced_s"])
    if spec.get("extra_s"):
        with stage("repeated", facts):
            repeated_ns, *_ = repeat(adapter, session, same(pool, spec["batch"]), MIN_BLOCK_RUNS, spec["extra_s"])
            facts["repeated_median_ns"] = statistics.median(repeated_ns)
        # of work that is done elsewhere, on a GPU or in a browser, this CPU's peaks say nothing
        facts |= {} if hasattr(adapter, "timed") else peaks(spec["threads"])
    if spec.get("placed") and hasattr(adapter, "placement"):
        with stage("placement", facts):
            nodes = adapter.placement(spec["model"], spec["threads"], first)
        facts["effective"]["nodes"] = [{"provider": name, "count": count} for name, count in nodes.items()]
    return {
        **facts,
        "warmup_ns": warmup_ns[:WARMUP_KEPT],
        "steady": is_steady(warmup_ns),
        "samples_ns": samples_ns,
        "transfer_ns": statistics.median(transfers_ns),
        "timer_ns": timer_ns(),
        "harness_ns": harness_ns(queries),
        "cpu_ns_per_inference": cpu_ns / len(samples_ns),
        "involuntary_switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches,
        "megahertz": megahertz,
        "celsius": celsius,
    }


def memory(spec: dict[str, Any]) -> dict[str, Any]:
    """The model loaded and asked a few times, with nothing timed: the most memory that this process, and what it
    started, held (`peak_rss_bytes`), what this one held before it knew of a runtime (`empty_rss_bytes`), their part of
    what is shared with others at the end (`pss_bytes`), and this one's of GPUs' memory (`gpu_bytes`), which runtimes do
    not give back before they end.
    """
    facts: dict[str, Any] = {}
    queries = draw(np.load(spec["images"], mmap_mode="r"), spec["batch"], spec["seed"])
    own = Path("/proc/self")
    empty_rss_bytes = held_bytes("VmHWM", [own])
    adapter, session = start(spec, facts)
    with stage("memory", facts):
        for _ in range(MEMORY_QUERIES):
            adapter.run(session, next(queries))
    processes = [own, *started()]
    return {
        "peak_rss_bytes": held_bytes("VmHWM", processes),
        "empty_rss_bytes": empty_rss_bytes,
        "pss_bytes": held_bytes("Pss", processes),
        "gpu_bytes": gpu_bytes(),
    }


class _OfProcess(ctypes.Structure):
    """`nvmlProcessInfo_t` of nvml.h, as the third version of its call fills it in."""

    _fields_ = [
        ("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("part", ctypes.c_uint),
    ]  # fmt: skip


def gpu_bytes() -> int:
    """What the NVIDIA driver counts as this process's of all GPUs' memory. 0 without one, and where the driver does not
    tell: in a container it may know processes by other numbers, and some GPUs' drivers (WDDM's) do not count.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    gpus, total, uncounted = ctypes.c_uint(), 0, 2**64 - 1
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(gpus)):
        return 0
    for number in range(gpus.value):
        gpu, running, count = ctypes.c_void_p(), (_OfProcess * 256)(), ctypes.c_uint(256)
        if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(gpu)):
            continue
        if nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu, ctypes.byref(count), running):
            continue
        own = (p.bytes for p in running[: count.value] if p.pid == os.getpid() and p.bytes != uncounted)
        total += sum(own)
    return total


def sustained(spec: dict[str, Any]) -> dict[str, Any]:
    """The model without a pause for `sustained_s`, with no warm-up: `windows` of a minute, or of a tenth of the time,
    each with its queries' number, median and 90th percentile, and the machine's temperature and clock at its end; and
    `energy`, of the processor in that time, where it is counted.
    """
    facts: dict[str, Any] = {}
    queries = draw(np.load(spec["images"]), spec["batch"], spec["seed"])
    meter = Meter(energy_counters() if spec["sustained_s"] >= LEAST_ENERGY_S else [])
    meter.idle()
    adapter, session = start(spec, facts)
    with stage("first_inference", facts):
        adapter.run(session, next(queries))
    windows: list[dict[str, Any]] = []
    window_s = min(LONGEST_WINDOW_S, spec["sustained_s"] / 10)
    begun = time.monotonic()
    with stage("sustained", facts):
        meter.read()
        for number in range(1, round(spec["sustained_s"] / window_s) + 1):
            left_s = begun + number * window_s - time.monotonic()
            samples_ns, *_ = repeat(adapter, session, queries, 1, max(0.0, left_s))
            meter.add()
            windows.append(
                {
                    "end_s": round(time.monotonic() - begun, 3),
                    "n": len(samples_ns),
                    "median_ns": statistics.median(samples_ns),
                    "p90_ns": float(np.quantile(samples_ns, 0.9)),
                    "celsius": hottest_celsius(),
                    "megahertz": clock_megahertz(),
                }
            )
    meter.idle()
    why = f"it takes {LEAST_ENERGY_S:.0f} s of work" if spec["sustained_s"] < LEAST_ENERGY_S else NO_COUNTER
    return {**facts, "windows": windows, "energy": meter.facts(why)}


class Meter:
    """The energy that the processor takes, by its counters, while it works and while it is idle. One that cannot be
    read any more, or a list of none, makes it tell nothing, and spoils nothing else.
    """

    def __init__(self, counters: Sequence[Path]):
        self.counters, self.joules, self.seconds = list(counters), 0.0, 0.0
        self.idle_watts: list[float] = []
        self._last: tuple[float, list[int]] = (0.0, [])

    def read(self) -> None:
        """From here on energy counts."""
        try:
            self._last = time.monotonic(), [int((folder / "energy_uj").read_text()) for folder in self.counters]
        except (OSError, ValueError):
            self.counters = []

    def since(self) -> tuple[float, float]:
        """(joules, seconds) since the last reading; a counter that came to its end has begun again at 0."""
        (began, before), used = self._last, 0
        self.read()
        try:
            for folder, old, now in zip(self.counters, before, self._last[1], strict=True):
                used += (now - old) % (int((folder / "max_energy_range_uj").read_text()) + 1)
        except (OSError, ValueError):
            self.counters = []
        return used / 1e6, self._last[0] - began

    def add(self) -> None:
        """What was taken since the last reading was work. To be called before a counter has come round twice."""
        joules, seconds = self.since() if self.counters else (0.0, 0.0)
        self.joules, self.seconds = self.joules + joules, self.seconds + seconds

    def idle(self) -> None:
        """Wait, and see what is taken meanwhile."""
        if self.counters:
            self.read()
            time.sleep(LEAST_ENERGY_S)
            joules, seconds = self.since()
            self.idle_watts.append(joules / seconds if seconds else 0.0)

    def facts(self, why_not: str) -> dict[str, Any]:
        """`joules` in `seconds` of work and the `idle_watts` before and after, or the `reason` for which there are
        none.
        """
        if not self.counters:
            return {"reason": why_not}
        return {"joules": self.joules, "seconds": self.seconds, "idle_watts": self.idle_watts, "reason": ""}


def energy_counters(root: Path = Path("/sys/class/powercap")) -> list[Path]:
    """The folders of the processor packages' energy counters, as far as this user may read them. Those of a package's
    parts (`intel-rapl:0:1`), and of the whole board (`psys`), would count the same energy again.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            if (folder / "name").read_text().startswith("package") and int((folder / "energy_uj").read_text()) >= 0:
                found.append(folder)
        except (OSError, ValueError):  # most systems let only root read
            continue
    return found


def hottest_celsius(root: Path = Path("/sys/class/thermal")) -> float | None:
    """The hottest of the machine's thermal zones; None where it shows none, as most virtual machines."""
    return _extreme(root.glob("thermal_zone*/temp"), max, 1e-3)


def clock_megahertz(
    root: Path = Path("/sys/devices/system/cpu"), which: Callable[[list[float]], float] = min
) -> float | None:
    """The slowest core's clock, or with `max` the fastest one's; None where the system does not say."""
    return _extreme(root.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), which, 1e-3)


def _extreme(paths: Iterator[Path], which: Callable[[list[float]], float], scale: float) -> float | None:
    found = []
    for path in paths:
        try:
            found.append(int(path.read_text()) * scale)
        except (OSError, ValueError):  # a sensor that is asleep
            continue
    return which(found) if found else None


def answers(spec: dict[str, Any]) -> dict[str, Any]:
    """Writes the logits float32 `[N,K]` of every image, each asked once, in order."""
    facts: dict[str, Any] = {}
    images = np.load(spec["images"], mmap_mode="r")
    adapter, session = start(spec, facts)
    fixed = facts["effective"].get("fixed_batch", 0)
    step, parts = fixed or spec["batch"], []
    # a byte for each image answered: a size can be read at any moment, a number might be half written
    with stage("answers", facts), open(spec.get("progress", os.devnull), "ab", buffering=0) as progress:
        for begin in range(0, len(images), step):
            chunk = images[begin : begin + step]
            padding = fixed - len(chunk) if fixed else 0
            asked = np.concatenate([chunk, np.repeat(chunk[-1:], padding, axis=0)]) if padding else chunk
            logits = np.asarray(adapter.run(session, to_inputs(asked)), dtype=np.float32)
            if logits.ndim != 2 or len(logits) != len(asked):
                raise ValueError(
                    f"the output of {len(asked)} images has shape {logits.shape}, expected [images, classes]"
                )
            parts.append(logits[: len(chunk)])
            progress.write(b"." * len(chunk))
        save(Path(spec["logits"]), np.concatenate(parts))
    return facts


def save(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file that is either complete or absent."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def inspect(spec: dict[str, Any]) -> dict[str, Any]:
    """The file's inputs, outputs and metadata, as the runtime sees them."""
    facts: dict[str, Any] = {}
    adapter, session = start(spec, facts)
    return {**facts, **adapter.describe(session)}


def probe(spec: dict[str, Any]) -> dict[str, Any]:
    """Whether the runtime can be used here, and what it reads."""
    with stage("import", {}):
        adapter = load_adapter(spec["adapter"])
        reason, version = adapter.unavailable(), ""
        if not reason:
            try:
                version = adapter.version()
            except Exception as error:  # it is there and cannot be imported: half installed, or damaged
                mend = getattr(adapter, "REQUIRES", "")
                reason = f"{type(error).__name__}: {error}" + (f"; pip install --force-reinstall '{mend}'" * bool(mend))
        return {
            "unavailable": reason,
            "format": adapter.FORMAT,
            "start_allowance_s": getattr(adapter, "START_ALLOWANCE_S", START_ALLOWANCE_S),
            "version": version,
        }


MODES = {
    "probe": probe,
    "latency": latency,
    "memory": memory,
    "sustained": sustained,
    "answers": answers,
    "inspect": inspect,
}


def limit(spec: dict[str, Any]) -> None:
    """Makes sure that this process ends: with its parent, and in any case after `cap_s`; no core dumps."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    signal.alarm(int(spec.get("cap_s", 0)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "memory_bytes" in spec:
        resource.setrlimit(resource.RLIMIT_AS, (spec["memory_bytes"], spec["memory_bytes"]))


def main(spec_path: str) -> int:
    """Exit status 0 with a result, 1 with a result that states a failure."""
    spec = json.loads(Path(spec_path).read_text())
    limit(spec)
    try:
        result, status = MODES[spec["mode"]](spec), 0
    except StageFailed as failure:
        traceback.print_exc()
        result, status = {"error": str(failure), "kind": failure.kind, "stage": failure.stage}, 1
    path = Path(spec["result"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, path)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
