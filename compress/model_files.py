"""Model files as a child is given them: checked, copied to where nothing can change them, or refused by name."""

import shutil
import stat
from pathlib import Path

from compress.errors import InputRejected
from compress.store import file_digest, folder_digest
from compress.types import Artifact

LARGEST_ONNX_BYTES = 2 << 30  # protobuf's own limit


def check(path: Path) -> None:
    """Raises InputRejected unless `path` is a regular file that an ONNX model can be."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputRejected(
            f"cannot open {path}: {error.strerror}", code="E-FILE-READ", hint="check the path"
        ) from error
    if not stat.S_ISREG(state.st_mode):
        raise InputRejected(f"{path} is not a regular file", code="E-FILE-READ", hint="name the .onnx file itself")
    if state.st_size == 0:
        raise InputRejected(f"{path} is empty (0 bytes)", code="E-FILE-READ", hint="export it again")
    if state.st_size > LARGEST_ONNX_BYTES:
        raise InputRejected(f"{path} has {state.st_size} bytes; an ONNX file ends at 2 GiB", code="E-FILE-READ")


def private_copy(artifact: Artifact, folder: Path) -> Path:
    """A copy that nothing can change during the measurement and that has no neighbours to refer to; its digest is
    checked. Only a network's folder (format `torch`) is verified by whoever loads it.
    """
    if artifact.path.is_dir():
        copy = Path(shutil.copytree(artifact.path, folder))
        found = artifact.digest if artifact.format == "torch" else folder_digest(copy)
    else:
        check(artifact.path)
        folder.mkdir()
        copy = Path(shutil.copyfile(artifact.path, folder / f"model{artifact.path.suffix}"))
        found = file_digest(copy)
    if found != artifact.digest:
        raise InputRejected(
            f"{artifact.path} is not the file of its manifest: sha256 {found[:12]}…, expected {artifact.digest[:12]}…",
            code="E-RUN-CHANGED",
            hint="make the artifact again",
        )
    return copy


def rejected(path: Path, reason: str) -> InputRejected:
    """The error for a file that a runtime cannot open, in its words."""
    hint = "export it again, or check the download"
    if "external data" in reason.lower():
        reason, hint = f"it refers to other files ({reason})", "save it again with its weights inside the file"
    return InputRejected(f"{path} is not a usable model file: {reason}", code="E-ONNX-MALFORMED", hint=hint)
