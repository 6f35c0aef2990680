"""The LiteRT kit: an environment of its own for LiteRT's converter, which only conversions start.

litert-torch takes no torch from some version on, and pip exchanges a newer one for an older; what runs here may have
been tested with the newer one. Made once by `build`, found by the adapter.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from compress import debian, kit_folder
from compress.errors import CompressError
from compress.store import Store

MANIFEST = "kit.json"
# what the converting child imports beside the converter: it reads the ONNX file
BESIDE = ("onnx>=1.21",)
# torch with its libraries, unpacked
NEEDED_BYTES = 9_000_000_000
TIMEOUT_S = 3600.0
_INSTALLED = """import importlib.metadata as m, json, pathlib, sys
import ai_edge_litert.interpreter, litert_torch, onnx
found = {name: m.version(name) for name in ("litert-torch", "ai-edge-litert", "torch", "onnx")}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found, indent=1, sort_keys=True) + "\\n")
"""
_INDEX_HINT = "is the Python index in reach, and is there a litert-torch for this Python and machine?"
_VENV_HINT = "Debian and Ubuntu have it in a package of its own: apt install python3-venv"


def default_folder() -> Path:
    """Where the kit is looked for: `$COMPRESS_LITERT_KIT`, or a folder of the store."""
    named = os.environ.get("COMPRESS_LITERT_KIT", "")
    return Path(named) if named else Store.default().root / "kit-litert"


def python(kit: Path) -> Path:
    """The kit's interpreter."""
    return kit.absolute() / "bin" / "python"


def packages(kit: Path) -> dict[str, str]:
    """Package → version of what converts in the kit; empty where there is no kit whose interpreter is still there."""
    path = kit / MANIFEST
    if not (path.is_file() and python(kit).exists()):
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:  # damaged: as good as none
        return {}


def build(folder: Path, converter: str, *, tell: Callable[[str], None] = print) -> None:
    """Makes the kit `folder`, complete or not at all: a virtual environment with the `converter`, as pip names it,
    proved by importing it. Leaves 6.6 GB, because of torch, and takes three minutes. Raises CompressError.
    """
    with kit_folder.made(folder, NEEDED_BYTES) as (kit, work):
        tell("a virtual environment")
        _step([sys.executable, "-m", "venv", str(kit)], work, _VENV_HINT)
        tell(f"{converter} and what it needs: 6.6 GB because of torch")
        pip = ["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        _step([str(python(kit)), *pip, converter, *BESIDE], work, _INDEX_HINT)
        tell("importing it")
        # it may move then: only its interpreter is started, never a script that names its old place
        _step([str(python(kit)), "-I", "-c", _INSTALLED, str(kit / MANIFEST)], work, _INDEX_HINT)


def _step(command: list[str], work: Path, hint: str) -> None:
    """Runs the command. Raises CompressError with its last lines."""
    log = work / "log.txt"
    told = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    status = debian.supervise(command, work, told, TIMEOUT_S, log)
    if status is None:
        raise CompressError(
            f"making the LiteRT kit: not done within {TIMEOUT_S:g} s; stopped", code="E-PIP", hint=_INDEX_HINT
        )
    if status:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR:", "Error:"))] or lines[-2:]
        raise CompressError(
            f"making the LiteRT kit: {'; '.join(errors[-2:])[:600] or f'exit status {status}'}", code="E-PIP", hint=hint
        )
