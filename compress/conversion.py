"""Convert an ONNX artifact into a runtime's own format, and let through only what answers as the artifact does.

The adapter converts in a child process that is locked up (see `converter.py`): a copy of the file, one folder to write
into, no network where the system allows that, a home of its own, a `pip` that fails, limits on time, memory and disk.
"""

import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, catalog, evaluate, float_twin, litert_kit, model_files, numerics, stats
from compress.child import CONVERTER, ChildFailed, readable, run_child, workspace
from compress.environment import versions
from compress.errors import CompressError, Unmeasurable
from compress.progress import say
from compress.store import Step, Store, bytes_in, file_digest, folder_digest
from compress.types import Artifact, Failure

VERSIONS = {"convert": 3, "float_twin": 1, "numerics": 3}
TIMEOUT_S = 900.0
MEMORY_BYTES = 12 << 30
# What a converter may fill: its largest file, and all of its folder
FILE_BYTES, FOLDER_BYTES = 4 << 30, 8 << 30
# An int8 artifact's own rule: runtimes round otherwise than ONNX Runtime does, so single answers differ.
LEAST_AGREEMENT, MOST_LOST_POINTS = 0.98, 1.0
INTEGER_PRECISIONS = ("int8", "int8_weights")


def converts(runtime: str, plugins: tuple[Path, ...] = ()) -> bool:
    """Whether the runtime has a format of its own."""
    return hasattr(catalog.load("runtimes", runtime, plugins).module, "convert")


def converted(
    store: Store, artifact: Artifact, runtime: str, plugins: tuple[Path, ...] = ()
) -> tuple[Artifact, dict[str, Any]]:
    """The ONNX artifact as the runtime reads it, and the facts of its conversion: `seconds`, `tools` (package →
    version), `notes`, `locks` (see `sandbox.enter`). Raises Unmeasurable with the reason where there is none.
    """
    module = catalog.load("runtimes", runtime, plugins).module
    if artifact.precision not in module.TOLERANCE:
        can = ", ".join(module.TOLERANCE)
        raise Unmeasurable(f"{runtime} takes no {artifact.precision} file; it takes {can}", code="E-RUNTIME-FORMAT")
    if not converts(runtime, plugins):
        _refuse_missing(runtime, plugins)
        return artifact, {}
    step = _step(store, artifact, runtime, module, plugins)
    facts = step.facts
    made = dataclasses.replace(
        artifact, path=step.folder / "made", format=module.FORMAT, digest=facts["digest"],
        size_bytes=facts["size_bytes"],
    )  # fmt: skip
    return made, facts


def failure_of(error: CompressError) -> Failure:
    """Why a runtime is given no file, from the error that said so. Its kind is how the child failed, where one did."""
    if isinstance(error.__cause__, ChildFailed):
        return Failure(error.message, error.__cause__.how)
    return Failure(error.message, "unavailable" if error.code == "E-RUNTIME-UNAVAILABLE" else "refused")


def _refuse_missing(runtime: str, plugins: tuple[Path, ...]) -> None:
    reason = bench.runtime_state(runtime, plugins)["unavailable"]
    if reason:
        raise Unmeasurable(reason, code="E-RUNTIME-UNAVAILABLE")


def _step(store: Store, artifact: Artifact, runtime: str, module: Any, plugins: tuple[Path, ...]) -> Step:
    adapter, kit = bench.runtime_file(runtime, plugins), module.kit() if hasattr(module, "kit") else None
    parts = {
        "version": VERSIONS["convert"],
        "artifact": artifact.digest,
        "precision": artifact.precision,
        "adapter": file_digest(adapter),
        "versions": versions("onnx", *catalog.packages("runtimes", runtime, plugins)),
        **({"kit": litert_kit.packages(kit)} if kit else {}),
    }

    def make(folder: Path) -> dict[str, Any]:
        _refuse_missing(runtime, plugins)
        say(f"  converting {artifact.stage} to {module.FORMAT} for {runtime}" + f" in {kit}" * bool(kit))
        with workspace(store.root / "scratch") as work:
            facts = _in_child(artifact, adapter, work, plugins, kit)
            shutil.rmtree(folder / "made", ignore_errors=True)  # of a process that was killed before it was done
            (work / "files").replace(folder / "made")
        made = sorted(path for path in (folder / "made").rglob("*") if path.is_file())
        if not made:
            raise Unmeasurable(
                f"{runtime} converted {artifact.stage} without an error and without a file", code="E-CONVERSION"
            )
        return {
            **facts,
            "files": [str(path.relative_to(folder / "made")) for path in made],
            "size_bytes": sum(path.stat().st_size for path in made),
            "digest": folder_digest(folder / "made"),
        }

    return store.step("convert", parts, make, say)


def in_float(store: Store, artifact: Artifact) -> Artifact:
    """The int8 file's own network without its integers: the same weights as float32, and activations unrounded. Made,
    as all that reads a file of the user's, in a process that is locked up.
    """

    def make(folder: Path) -> dict[str, Any]:
        with workspace(store.root / "scratch") as work:
            _in_child(artifact, Path(float_twin.__file__), work, ())
            (work / "files" / "model.onnx").replace(folder / "model.onnx")
        return {"digest": file_digest(folder / "model.onnx")}

    parts = {"version": VERSIONS["float_twin"], "file": artifact.digest, "versions": versions("onnx")}
    step = store.step("float_twin", parts, make, say)
    return dataclasses.replace(
        artifact, path=step.folder / "model.onnx", digest=step.facts["digest"], precision="float32"
    )


def numbers_of(store: Store, artifact: Artifact, images: np.ndarray) -> dict[str, Any]:
    """What `numerics` counts in an ONNX file, and between its layers for some of `images` (uint8 `[N,H,W,C]`). Raises
    Unmeasurable.
    """
    places = np.unique(np.linspace(0, len(images) - 1, numerics.SAMPLES).round().astype(int))
    samples = np.ascontiguousarray(images[places])

    def make(folder: Path) -> dict[str, Any]:
        with workspace(store.root / "scratch") as work:
            return _in_child(artifact, Path(numerics.__file__), work, (), images=samples)

    parts = {
        "version": VERSIONS["numerics"], "file": artifact.digest, "versions": versions("onnx", "onnxruntime"),
        "images": hashlib.sha256(samples.tobytes()).hexdigest(),
    }  # fmt: skip
    return store.step("numerics", parts, make, say).facts


def _in_child(
    artifact: Artifact, adapter: Path, work: Path, plugins: tuple[Path, ...], kit: Path | None = None,
    images: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the adapter's `convert` says of what it wrote into `work/files`; in the environment of the `kit` where one
    is named, and with `images` where it looks at such. Raises Unmeasurable with its reason.
    """
    source = model_files.private_copy(artifact, work / "source")
    for name in ("files", "home", "programs"):
        (work / name).mkdir()
    # Some converters install packages on their own account. The environment is the user's.
    for name in ("pip", "pip3", "uv", "conda"):
        stub = work / "programs" / name
        stub.write_text(f'#!/bin/sh\necho "{name} is not to be used while a model is converted" >&2\nexit 1\n')
        stub.chmod(0o755)
    spec = {
        "adapter": str(adapter), "source": str(source), "folder": str(work / "files"), "writable": str(work),
        "precision": artifact.precision, "file_bytes": FILE_BYTES,
    }  # fmt: skip
    if images is not None:
        spec["images"] = str(work / "images.npy")
        np.save(work / "images.npy", images)
    changes = {
        "HOME": str(work / "home"),
        "PATH": os.pathsep.join([str(work / "programs"), os.environ.get("PATH", "")]),
        # whatever way these go to fetch packages
        "PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "CONDA_OFFLINE": "true",
        # switches that the makers of these tools document for leaving out reports of their use
        "DO_NOT_TRACK": "1", "NNCF_CI": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    python = Path(sys.executable)
    if kit:  # which is to see this package, and nothing of what is installed beside it
        (work / "package").mkdir()
        (work / "package" / "compress").symlink_to(CONVERTER.parent)
        python, changes["PYTHONPATH"] = litert_kit.python(kit), str(work / "package")
    try:
        facts = run_child(
            spec, work, TIMEOUT_S, plugins, script=CONVERTER, python=python, watch=_watch(work), changes=changes
        )
    except ChildFailed as failure:
        why = readable(failure, str(source), artifact.path).removeprefix("convert: ")
        raise Unmeasurable(
            f"{adapter.stem} could not convert {artifact.stage}: {why}", code="E-CONVERSION"
        ) from failure
    if file_digest(source) != artifact.digest:
        raise Unmeasurable(
            f"{adapter.stem}'s converter changed its input, {artifact.stage}: nothing of it is kept",
            code="E-CONVERSION",
        )
    return facts


def _watch(work: Path) -> Callable[[int], None]:
    """Ends a child that takes too much. A limit of its address space would break V8 and CUDA, hence resident memory."""

    def look(pid: int) -> None:
        memory = _resident_bytes(pid)
        if memory > MEMORY_BYTES:
            reason = f"it took {memory / 1e9:.1f} GB of memory, allowed are {MEMORY_BYTES / 1e9:.1f}; stopped"
            raise ChildFailed(reason, how="killed")
        filled = bytes_in(work)
        if filled > FOLDER_BYTES:
            reason = f"it wrote {filled / 1e9:.1f} GB, allowed are {FOLDER_BYTES / 1e9:.1f}; stopped"
            raise ChildFailed(reason, how="killed")

    return look


def _resident_bytes(session: int) -> int:
    """The resident memory of all processes of a session; 0 where the system does not say."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # the name in parentheses may hold anything; after it come state, parent, group, session
            of = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            pages += int((folder / "statm").read_text().split()[1]) if of == session else 0
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def gate(
    expected: np.ndarray, got: np.ndarray, labels: np.ndarray, precision: str, tolerance: float, *,
    in_float: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """How a runtime's logits `[N,K]` compare with those `expected` of the same network, and in `why` the reason for
    which they do not count as the same ("" where they do). `in_float` says that integers are compared with a network
    that has none.

    Float: the largest difference is at most `tolerance` of the spread of `expected`; an answer then changes only where
    its margin is less than twice that. Integers, which every runtime rounds otherwise: the same answer for 98 % of the
    images, and top-1 whose loss is not shown, by its 95 % interval, to be more than a point.
    """
    known = labels >= 0
    counts = evaluate.counts(got[known], labels[known], expected[known])
    facts = {
        "images": len(expected),
        "agreement_fraction": float((expected.argmax(1) == got.argmax(1)).mean()),
        "difference_of_spread": _difference(expected, got),
        "tolerance": tolerance,
        "expected_only": counts["baseline_only"],
        "this_only": counts["this_only"],
        "labelled": counts["n"],
        "reference": "the ONNX file in float" if in_float else "the ONNX file",
    }
    return {**facts, "why": _refused(facts, precision)}


def _difference(expected: np.ndarray, got: np.ndarray) -> float | None:
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return None
    return float(np.abs(expected - got).max() / (np.ptp(expected) or 1.0))


def _refused(facts: dict[str, Any], precision: str) -> str:
    difference, agreement, other = facts["difference_of_spread"], facts["agreement_fraction"], facts["reference"]
    if difference is None:
        return f"its logits, or those of {other}, are not all finite numbers"
    if precision not in INTEGER_PRECISIONS:
        allowed = facts["tolerance"]
        over = f"its logits differ by {difference:.2g} of their spread from {other}'s, allowed is {allowed:g}"
        return over if difference > allowed else ""
    if agreement < LEAST_AGREEMENT:
        return f"it answers {agreement:.1%} of the images as {other} does, needed are {LEAST_AGREEMENT:.0%}"
    if facts["labelled"]:
        _, _, high = stats.paired_difference(facts["expected_only"], facts["this_only"], facts["labelled"])
        if 100 * high < -MOST_LOST_POINTS:
            return f"it loses at least {-100 * high:.2f} points of top-1 against {other}, allowed is 1"
    return ""
