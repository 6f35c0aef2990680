"""Latency and answers of shipped bytes: every visit is a fresh child process that holds one artifact in one runtime.

Rounds visit all cells in a new seeded order, so that a drift of the machine falls on all of them alike; the parent
sleeps while a child runs and never imports a runtime. See `worker.py` for what a visit records. The children run on
this machine, or on another `host`.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import catalog, held_memory, model_files
from compress.child import HERE, ChildFailed, Host, readable, workspace
from compress.errors import InputRejected, Unmeasurable
from compress.progress import Progress
from compress.types import Artifact, Failure, Measurement
from compress.worker import START_ALLOWANCE_S, load_adapter

# Real inputs that a visit draws from; 64 is the least that keeps one hot input from flattering the result.
POOL_SIZE = 128
ANSWER_BATCH = 64
INSPECT_MEMORY_BYTES = 8 << 30
# Failures of opening that are the machine's, not the file's: see runtimes/__init__.py
NOT_THE_FILE = frozenset(["RuntimeError", "ImportError", "ModuleNotFoundError", "OSError"])


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How long to measure: rounds, and for each visit the least warm-up (runs and seconds) and the timed block, which
    goes on for up to five times as long until there are the fewest `queries` of all rounds together.
    """

    name: str
    rounds: int
    warmup_runs: int
    warmup_s: float
    block_s: float
    queries: int = 0
    extra_rounds: int = 3  # the first rounds, in which visits look at more than the latency

    @property
    def paced_s(self) -> float:
        """Of queries at a rate, which leave the processor idle for most of the time, more seconds are needed."""
        return 5 * self.block_s


_TIERS = (
    Tier(name="smoke", rounds=5, warmup_runs=5, warmup_s=0.1, block_s=0.15, extra_rounds=0),
    # as many queries as p90, p99 and p99.9 need
    Tier(name="quick", rounds=5, warmup_runs=10, warmup_s=0.5, block_s=1.0, queries=64),
    Tier(name="standard", rounds=10, warmup_runs=10, warmup_s=1.0, block_s=2.0, queries=662),
    Tier(name="rigorous", rounds=30, warmup_runs=30, warmup_s=3.0, block_s=10.0, queries=6636),
)
TIERS: Mapping[str, Tier] = {tier.name: tier for tier in _TIERS}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: an artifact in a runtime (a catalogue name) at a number of threads and a batch size; or
    one that is known not to be measurable: `refused` says why. With `fps`, queries come at that rate in a second block
    of each visit.
    """

    name: str
    artifact: Artifact
    runtime: str
    threads: int
    batch: int = 1
    fps: float = 0.0
    refused: Failure = Failure()


def measure(
    cells: Sequence[Cell],
    images: np.ndarray,
    tier: Tier,
    *,
    seed: int,
    scratch: Path,
    on_visit: Callable[[int, int], None] = lambda done, total: None,
    plugins: tuple[Path, ...] = (),
    timeout_s: float = 0.0,
    host: Host = HERE,
    memory: bool = False,
) -> list[Measurement]:
    """One Measurement a cell, in the order of `cells`; a failed cell states its reason and kind and stops no other.

    `images`: real images, uint8 `[N,H,W,C]`. `on_visit(done, total)` is called between visits. `timeout_s` is for one
    visit; 0 derives it from the tier. With `memory`, that is looked at in visits of their own for each cell.
    Raises UsageError for an unknown runtime, ValueError for two cells of one name.
    """
    if len({cell.name for cell in cells}) < len(cells):
        raise ValueError(f"cells need names of their own, got {[cell.name for cell in cells]}")
    timed_s = 20 * (tier.warmup_s + tier.block_s) + 2 * tier.paced_s
    visits: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in cells}
    failures: dict[str, Failure] = {}
    with workspace(scratch) as work:
        specs = _prepare(cells, images, seed, work, plugins, failures, host)
        plan = [
            (number, position, cells[index])
            for number in range(tier.rounds)
            for position, index in enumerate(visit_order(seed, number, len(cells)))
        ]
        total = len(plan) + memory * len(cells)
        for done, (number, position, cell) in enumerate(plan):
            on_visit(done, total)
            if cell.name in failures:
                continue
            spec = specs[cell.name] | asdict(tier) | {"seed": [seed, number], "paced_s": tier.paced_s}
            # every other load is a cold one; what needs no pairing by round is looked at in the first rounds only
            spec |= {"cold": number % 2 == 1, "extra_s": tier.block_s / 4 if number < tier.extra_rounds else 0.0}
            spec |= {"placed": number == 0}
            try:
                visit = host.visit(spec, work, timeout_s or spec["start_allowance_s"] + timed_s, plugins)
            except ChildFailed as failure:
                failures[cell.name] = Failure(readable(failure, spec["model"], cell.artifact.path), failure.how)
                continue
            visits[cell.name].append(visit | {"round": number, "position": position})
        held: dict[str, dict[str, Any]] = {}
        for done, cell in enumerate(cells if memory else []):
            on_visit(len(plan) + done, total)
            if cell.name not in failures:
                spec = specs[cell.name] | {"seed": [seed, 0]}
                held[cell.name] = held_memory.of_cell(
                    spec, cell.artifact.path, work, plugins, host, compare=tier.extra_rounds > 0
                )
        on_visit(total, total)
    return [_measurement(c, visits[c.name], failures.get(c.name, Failure()), held.get(c.name)) for c in cells]


def sustained(
    cells: Sequence[Cell],
    images: np.ndarray,
    seconds: float,
    *,
    seed: int,
    scratch: Path,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
    plugins: tuple[Path, ...] = (),
    host: Host = HERE,
) -> dict[str, dict[str, Any]]:
    """What each cell is like when it works without a pause for `seconds`, by its name: `windows` (see `worker.py`) or
    the reason in `failure`. One cell after another, in a seeded random order: the machine is as warm as the one before
    left it. Raises as `measure`.
    """
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, Failure] = {}
    with workspace(scratch) as work:
        specs = _prepare(cells, images, seed, work, plugins, failures, host)
        for done, index in enumerate(visit_order(seed, 0, len(cells))):
            cell = cells[index]
            on_cell(done, len(cells))
            if cell.name in failures:
                found[cell.name] = {"windows": [], "failure": failures[cell.name].reason}
                continue
            spec = specs[cell.name] | {"mode": "sustained", "seed": [seed, 0], "sustained_s": seconds}
            try:
                visit = host.run(spec, work, spec["start_allowance_s"] + 30 + 2 * seconds, plugins)
                found[cell.name] = {"windows": visit["windows"], "energy": visit["energy"], "failure": ""}
            except ChildFailed as failure:
                found[cell.name] = {"windows": [], "failure": readable(failure, spec["model"], cell.artifact.path)}
        on_cell(len(cells), len(cells))
    return found


def visit_order(seed: int, round_number: int, count: int) -> list[int]:
    """The order in which a round visits `count` cells: a function of its arguments alone."""
    return np.random.default_rng([seed, round_number]).permutation(count).tolist()


def answers(
    artifact: Artifact,
    runtime: str,
    images: np.ndarray,
    *,
    threads: int,
    scratch: Path,
    plugins: tuple[Path, ...] = (),
    timeout_s: float = 0.0,
    host: Host = HERE,
) -> np.ndarray:
    """Logits float32 `[N,K]` of uint8 images `[N,H,W,C]`, each asked exactly once, of the artifact's own bytes.

    Shows its progress, since it is not timed.

    Raises InputRejected when the file is not what it should be, Unmeasurable when the runtime gives no answer.
    """
    return answers_and_facts(
        artifact, runtime, images, threads=threads, scratch=scratch, plugins=plugins, timeout_s=timeout_s, host=host
    )[0]


def answers_and_facts(
    artifact: Artifact,
    runtime: str,
    images: np.ndarray,
    *,
    threads: int,
    scratch: Path,
    plugins: tuple[Path, ...] = (),
    timeout_s: float = 0.0,
    host: Host = HERE,
) -> tuple[np.ndarray, dict[str, Any]]:
    """As `answers`, and what the child said beside: `effective` settings, `runtime_version`, seconds of its stages."""
    if len(images) == 0:
        raise Unmeasurable(
            f"no image to ask {artifact.path} about",
            code="E-IMAGES-NONE",
            hint="name a data set with at least one image",
        )
    _check_shape(artifact, images)
    adapter = load_adapter(str(runtime_file(runtime, plugins)))
    if adapter.FORMAT != artifact.format:
        raise Unmeasurable(
            f"{artifact.path} cannot run in {runtime}: {_other_format(runtime, adapter.FORMAT, artifact.format)}",
            code="E-RUNTIME-FORMAT",
        )
    with workspace(scratch) as work:
        copy = model_files.private_copy(artifact, work / "model")
        np.save(work / "images.npy", images)
        spec = _spec("answers", runtime, copy, threads, plugins) | {
            "images": str(work / "images.npy"),
            "batch": ANSWER_BATCH,
            "logits": str(work / "logits.npy"),
            "unproved": True,
        }
        try:
            with Progress(f"{artifact.stage} in {runtime}", len(images), "images") as bar:
                start_s = getattr(adapter, "START_ALLOWANCE_S", START_ALLOWANCE_S)
                allowed_s = timeout_s or start_s + 0.5 * len(images)
                facts = host.run(spec, work, allowed_s, plugins, bar.to)
        except ChildFailed as failure:
            if failure.how == "unavailable":
                reason = str(failure).partition(f"{failure.kind}: ")[2]
                raise Unmeasurable(
                    f"{artifact.path} cannot run in {runtime}: {reason}", code="E-RUNTIME-UNAVAILABLE"
                ) from failure
            text = readable(failure, str(copy), artifact.path)
            if failure.stage == "load" and failure.kind not in NOT_THE_FILE:
                raise model_files.rejected(artifact.path, text) from failure
            # a converted file lies in the store, under a name that says nothing
            name = artifact.path if artifact.format in ("onnx", "torch") else artifact.stage
            raise Unmeasurable(f"{name} gave no answers in {runtime}: {text}", code="E-RUNTIME-FAILED") from failure
        logits = np.load(work / "logits.npy")
    classes = len(artifact.class_names) or logits.shape[1]
    if logits.shape != (len(images), classes):
        raise InputRejected(
            f"{artifact.path} answers with shape {list(logits.shape)}, expected {[len(images), classes]}",
            code="E-ONNX-SHAPE",
            hint="the output must be logits, one column a class of the manifest",
        )
    return logits, facts


def inspect_onnx(path: Path, scratch: Path) -> dict[str, Any]:
    """`inputs` and `outputs` (name, shape, type), `metadata` and `producer` of an ONNX file, opened in a child only.

    Raises InputRejected naming the file when it is missing, malformed, too large or refers to files beside it;
    Unmeasurable when ONNX Runtime itself cannot be used.
    """
    model_files.check(path)
    with workspace(scratch) as work:
        reason = runtime_state("ort_cpu")["unavailable"]
        if reason:
            raise Unmeasurable(f"cannot inspect {path}: {reason}", code="E-RUNTIME-UNAVAILABLE")
        (work / "model").mkdir()
        copy = shutil.copyfile(path, work / "model" / "model.onnx")
        spec = _spec("inspect", "ort_cpu", copy, 1, ()) | {"memory_bytes": INSPECT_MEMORY_BYTES}
        try:
            return HERE.run(spec, work, START_ALLOWANCE_S, ())
        except ChildFailed as failure:
            raise model_files.rejected(path, readable(failure, str(copy), path)) from failure


def runtime_state(name: str, plugins: Sequence[Path] = (), host: Host = HERE) -> dict[str, Any]:
    """`unavailable` (the reason, or ""), `version`, `format` that it reads, and `start_allowance_s` of a runtime on
    `host`. Asked in a child, for some take seconds to import; one that can be used is asked once a process.
    """
    try:
        return _usable(name, tuple(plugins), host)
    except _NotUsable as error:
        return error.state


class _NotUsable(Exception):
    """What a runtime says that cannot be used: it may become usable, so that nothing is remembered of it."""

    def __init__(self, state: dict[str, Any]):
        super().__init__(state["unavailable"])
        self.state = state


@functools.cache
def _usable(name: str, plugins: tuple[Path, ...], host: Host) -> dict[str, Any]:
    with workspace(Path(tempfile.gettempdir())) as work:
        spec = {"mode": "probe", "adapter": str(runtime_file(name, plugins))}
        try:
            state = host.run(spec, work, START_ALLOWANCE_S, plugins)
        except ChildFailed as failure:
            state = {"unavailable": str(failure), "version": "", "format": "", "start_allowance_s": 0.0}
    if state["unavailable"]:
        raise _NotUsable(state)
    return state


def runtime_file(name: str, plugins: tuple[Path, ...] = ()) -> Path:
    """The adapter's file; UsageError for an unknown name."""
    return catalog.path_of("runtimes", name, plugins)


def _prepare(
    cells: Sequence[Cell],
    images: np.ndarray,
    seed: int,
    work: Path,
    plugins: tuple[Path, ...],
    failures: dict[str, Failure],
    host: Host,
) -> dict[str, dict[str, Any]]:
    """Each usable cell's worker spec, by name; the others' failures go into `failures`."""
    count = min(POOL_SIZE, len(images))
    chosen = np.random.default_rng([seed]).choice(len(images), size=count, replace=False)
    np.save(work / "images.npy", images[np.sort(chosen)])
    failures |= {cell.name: cell.refused for cell in cells if cell.refused}
    cells = [cell for cell in cells if not cell.refused]
    states = {name: runtime_state(name, plugins, host) for name in dict.fromkeys(cell.runtime for cell in cells)}
    specs: dict[str, dict[str, Any]] = {}
    for index, cell in enumerate(cells):
        try:
            _check_shape(cell.artifact, images)
            failure = _unusable(cell.runtime, cell.artifact.format, states[cell.runtime])
            copy = model_files.private_copy(cell.artifact, work / f"model{index}")
        except InputRejected as error:
            failure, copy = Failure(error.message, "refused"), Path()
        if failure:
            failures[cell.name] = failure
            continue
        specs[cell.name] = _spec("latency", cell.runtime, copy, cell.threads, plugins) | {
            "images": str(work / "images.npy"),
            "batch": cell.batch,
            "start_allowance_s": states[cell.runtime]["start_allowance_s"],
            "fps": cell.fps,
        }
    return specs


def _spec(mode: str, runtime: str, model: Path, threads: int, plugins: tuple[Path, ...]) -> dict[str, Any]:
    adapter = runtime_file(runtime, plugins)
    return {"mode": mode, "adapter": str(adapter), "model": str(model), "threads": threads}


def _measurement(
    cell: Cell, visits: list[dict[str, Any]], failure: Failure, memory: dict[str, Any] | None
) -> Measurement:
    return Measurement(
        cell=cell.name,
        artifact=cell.artifact.stage,
        artifact_digest=cell.artifact.digest,
        runtime=cell.runtime,
        runtime_version=visits[0]["runtime_version"] if visits else "",
        threads=cell.threads,
        batch=cell.batch,
        visits=() if failure else tuple(visits),  # some of the rounds would be no median to compare
        memory=memory,
        failure=failure.reason,
        failure_kind=failure.kind,
    )


def _unusable(runtime: str, format: str, state: dict[str, Any]) -> Failure:
    """Why `runtime` of that state cannot run an artifact of `format`, if it cannot."""
    if not state["unavailable"] and state["format"] != format:
        return Failure(_other_format(runtime, state["format"], format), "refused")
    return Failure(state["unavailable"], "unavailable") if state["unavailable"] else Failure()


def _other_format(runtime: str, reads: str, given: str) -> str:
    return f"{runtime} reads {reads} artifacts, this one is {given}"


def _check_shape(artifact: Artifact, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N,H,W,C], got {images.dtype} {images.shape}")
    _, height, width, channels = images.shape
    if artifact.input_shape != (channels, height, width):
        raise InputRejected(
            f"{artifact.path} takes images of shape {list(artifact.input_shape)} (channels, height, width), "
            f"the data has {[channels, height, width]}",
            code="E-INPUT-SHAPE",
            hint="measure it on the data set that it was made for",
        )
