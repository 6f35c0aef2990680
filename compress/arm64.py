"""The ARM kit: a folder in which the aarch64 wheels of the runtimes run on an x86-64 Linux machine.

Made once by `build` (no root, no container, nothing installed), used by `answers`. It holds qemu's user emulation, a
small Debian with Python, and the wheels. It proves answers, never speed: an emulated time says nothing about a phone.
"""

import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compress import debian, kit_folder
from compress.child import PASSED_ON, WORKER, ChildFailed, readable, workspace
from compress.errors import CompressError
from compress.store import Store

FORMAT = 1
MANIFEST = "manifest.json"
# bookworm's own qemu 7.2 dies of SIGSEGV when onnxruntime or LiteRT is imported; trixie's Python has no wheels here.
EMULATOR_SUITE, PYTHON_SUITE = "trixie", "bookworm"
PYTHON = "3.11"
PYTHON_PACKAGES = [f"python{PYTHON}", "libstdc++6", "libgomp1"]
# The newest glibc that a wheel may ask for is bookworm's 2.36. pip takes each platform literally, so all are named.
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + ["manylinux2014_aarch64"]
# What proves that a package works, where that is not the module of its own name.
MODULES = {"ai-edge-litert": "ai_edge_litert.interpreter", "mnn": "MNN"}
# Downloads, indexes and the unpacked kit lie side by side for a moment: 0.55 GB.
NEEDED_BYTES = 800_000_000
# All that qemu knows: SVE2, i8mm, bf16 and SME too. `cortex-a76` is a phone of 2019: fp16 and dot product, no more.
CPU = "max"
# qemu looks here before it looks at the machine's: ONNX Runtime dies on import where these cannot be read, and answers
# that depend on the host's number of cores would not be the same everywhere.
CPU_LISTS = ("possible", "present")
IMPORT_ALL = """import importlib, sys
print(sys.version.split()[0])
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
"""


def build(folder: Path, packages: dict[str, str], *, mirror: str = "", tell: Callable[[str], None] = print) -> None:
    """Makes the kit `folder`, complete or not at all, with these packages (name -> version) of the Python index.

    `mirror` is the URI of a Debian archive; empty takes that of this machine's apt. Downloads 182 MB, takes 40 s of CPU
    time, and leaves 330 MB. Raises CompressError.
    """
    _check_machine()
    with kit_folder.made(folder, NEEDED_BYTES) as (kit, work):
        kit.mkdir()
        uri = mirror or debian.mirror(debian.sources())
        files = _emulator(kit, work, uri, tell) | _python(kit, work, uri, tell)
        files |= _wheels(kit, work, packages, tell)
        facts = {"format": FORMAT, **_prove(kit, work, packages, tell), "packages": packages, "files": files}
        (kit / MANIFEST).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def default_folder() -> Path:
    """Where the kit is looked for: `$COMPRESS_ARM64_KIT`, or a folder of the store."""
    named = os.environ.get("COMPRESS_ARM64_KIT", "")
    return Path(named) if named else Store.default().root / "kit-arm64"


def manifest(kit: Path) -> dict:
    """What the kit was made of: versions, and the SHA-256 of each file. Raises CompressError when it is no kit."""
    path = kit / MANIFEST
    hint = f"make it with: compress kit arm64 {kit}"
    if not path.is_file():
        raise CompressError(f"{kit} is not an ARM kit: it has no {MANIFEST}", code="E-KIT-UNUSABLE", hint=hint)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CompressError(
            f"{path} is not JSON: {error}", code="E-KIT-UNUSABLE", hint=f"remove {kit}; {hint}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CompressError(
            f"{kit} was made by another version of this program", code="E-KIT-UNUSABLE", hint=f"remove {kit}; {hint}"
        )
    return content


def command(kit: Path, script: Path, *arguments: str, cpu: str = CPU) -> list[str]:
    """How to run a Python script in the kit, as the named processor (`qemu-aarch64 -cpu help` lists them)."""
    root = kit.absolute() / "root"
    # -S: without it the host's site-packages would be found, as qemu shows what the root lacks from the host.
    # -P: without it the script's folder comes first on the path, and compress/types.py hides Python's.
    interpreter = [str(root / "usr/bin" / f"python{PYTHON}"), "-P", "-S", "-B"]
    return [str(kit.absolute() / "qemu-aarch64"), "-cpu", cpu, "-L", str(root), *interpreter, str(script), *arguments]


def environment(kit: Path, threads: int = 1) -> dict[str, str]:
    """All that a process in the kit is told: nothing that holds credentials, and no search path of the host's."""
    passed = {name: os.environ[name] for name in PASSED_ON & {"PATH", "HOME"} if name in os.environ}
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**passed, **pools, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(kit.absolute() / "site"), "PYTHONNOUSERSITE": "1"}


def answers(
    kit: Path,
    adapter: Path,
    model: Path,
    images: np.ndarray,
    threads: int = 1,
    timeout_s: float = 600.0,
    cpu: str = CPU,
    scratch: Path | None = None,
) -> np.ndarray:
    """Logits float32 `[N,K]` of images uint8 `[N,H,W,C]` from a runtime adapter in the kit, each image asked alone.

    Whatever the child started is gone on return. Raises CompressError: it failed, died or took too long.
    """
    manifest(kit)
    with workspace(scratch or Path(tempfile.gettempdir())) as work:
        np.save(work / "images.npy", images)
        files = {name: str(work / name) for name in ("images.npy", "logits.npy", "result.json")}
        spec = {
            "mode": "answers",
            "adapter": str(adapter.absolute()),
            "model": str(model.absolute()),
            "threads": threads,
            "batch": 1,
            "images": files["images.npy"],
            "logits": files["logits.npy"],
            "result": files["result.json"],
            "cap_s": int(timeout_s) + 10,
        }
        (work / "spec.json").write_text(json.dumps(spec))
        asked = command(kit, WORKER, str(work / "spec.json"), cpu=cpu)
        told = environment(kit, threads) | {"TMPDIR": str(work)}
        status = debian.supervise(asked, work, told, timeout_s, work / "log.txt")
        failure = _failure(work, status, timeout_s)
        if failure:
            reason = readable(ChildFailed(failure), str(model.absolute()), model)
            raise CompressError(f"{adapter.stem} on emulated aarch64 ({cpu}): {reason}", code="E-ARM64")
        return np.load(work / "logits.npy")


def _failure(work: Path, status: int | None, timeout_s: float) -> str:
    """Why there are no answers; empty when there are."""
    if status is None:
        return f"no result within {timeout_s:g} s; stopped"
    if (work / "result.json").exists():
        content = json.loads((work / "result.json").read_text())
        return f"{content['stage']}: {content['error']}" if "error" in content else ""
    lines = (work / "log.txt").read_text(errors="replace").strip().splitlines()
    last = f" (last words: {lines[-1][:300]})" if lines else ""
    # qemu dies of the signal that the emulated process died of
    ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    return f"the child {ended} and no result{last}"


def _check_machine() -> None:
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and machine in ("aarch64", "arm64"):
        raise CompressError(
            "this machine is aarch64: its own runtimes are the ones that the kit would emulate", code="E-KIT-MACHINE"
        )
    if (system, machine) != ("Linux", "x86_64"):
        raise CompressError(
            f"the ARM kit is made and used on x86-64 Linux; this is {system} {machine}", code="E-KIT-MACHINE"
        )


def _emulator(kit: Path, work: Path, uri: str, tell: Callable[[str], None]) -> dict[str, str]:
    tell(f"qemu of Debian {EMULATOR_SUITE}")
    debs = debian.fetch(["qemu-user"], EMULATOR_SUITE, "amd64", uri, work / "emulator", closure=False)
    # the package has forty emulators, and 465 MB
    debian.unpack_one(debs[0], "usr/bin/qemu-aarch64", kit / "qemu-aarch64")
    return _hashes(debs)


def _python(kit: Path, work: Path, uri: str, tell: Callable[[str], None]) -> dict[str, str]:
    tell(f"Python {PYTHON} of Debian {PYTHON_SUITE} for arm64")
    debs = debian.fetch(PYTHON_PACKAGES, PYTHON_SUITE, "arm64", uri, work / "python", closure=True)
    root = kit / "root"
    root.mkdir()
    for deb in debs:
        debian.unpack(deb, root)
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in CPU_LISTS:
        (cpus / name).write_text("0\n")
    return _hashes(debs)


def _wheels(kit: Path, work: Path, packages: dict[str, str], tell: Callable[[str], None]) -> dict[str, str]:
    pinned = [f"{name}=={version}" for name, version in packages.items()]
    tell(f"aarch64 wheels: {', '.join(pinned)}")
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    pip, wheels = [sys.executable, "-m", "pip", "--disable-pip-version-check"], work / "wheels"
    wheels.mkdir()
    debian.step("fetching aarch64 wheels", [*pip, "download", *target, "--dest", str(wheels), *pinned], work)
    files = sorted(wheels.glob("*.whl"))
    # two steps, as the hash of a wheel that was installed straight from the index is not to be had
    alone = ["--no-index", "--no-deps", "--no-compile", "--target", str(kit / "site")]
    debian.step("unpacking aarch64 wheels", [*pip, "install", *target, *alone, *map(str, files)], work)
    return _hashes(files)


def _prove(kit: Path, work: Path, packages: dict[str, str], tell: Callable[[str], None]) -> dict[str, str]:
    """The versions of qemu and Python, after each package was imported in the kit.

    Python also writes the bytecode of all that is imported, which later runs then find: half the time of an import.
    """
    tell("importing each of them in the kit")
    modules = [MODULES.get(name, name.replace("-", "_")) for name in packages]
    script = work / "import_all.py"
    script.write_text(IMPORT_ALL)
    run = [word for word in command(kit, script, *modules) if word != "-B"]
    said = debian.step("importing the aarch64 wheels", run, work, environment(kit)).split()
    qemu = debian.step("starting qemu", [str(kit / "qemu-aarch64"), "--version"], work).split()
    return {"qemu": qemu[2], "python": said[0]}


def _hashes(files: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
