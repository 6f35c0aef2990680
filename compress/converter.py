"""The converting child: one ONNX file into one runtime's own format, by that runtime's adapter, locked up.

    python -P converter.py SPEC.json

SPEC.json: `adapter` (its file), `source` (a copy of the ONNX file), `folder` (where the files go), `precision`,
`result` (where the JSON result goes, by atomic rename), `writable` (the one folder that may be written to),
`file_bytes` (the largest file) and `cap_s` (wall clock); `images` (.npy) where the adapter looks at some. The result
holds the adapter's facts and `locks`, as `sandbox.enter` tells them; a failure is a result too, as of `worker.py`.
"""

import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from compress import sandbox, worker


def convert(spec: dict[str, Any]) -> dict[str, Any]:
    """Locks this process up, then lets the adapter write into the folder."""
    locks = sandbox.enter(spec["writable"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (spec["file_bytes"], spec["file_bytes"]))
    adapter = worker.load_adapter(spec["adapter"])
    looked_at = {"images": Path(spec["images"])} if "images" in spec else {}
    facts = adapter.convert(Path(spec["source"]), Path(spec["folder"]), spec["precision"], **looked_at)
    return {**facts, "locks": locks}


def main(spec_path: str) -> int:
    """Exit status 0 with a result, 1 with a result that states a failure."""
    spec = json.loads(Path(spec_path).read_text())
    worker.limit(spec)
    try:
        result, status = convert(spec), 0
    except Exception as error:
        traceback.print_exc()
        result, status = {"error": _in_words(error), "kind": type(error).__name__, "stage": "convert"}, 1
    partial = Path(spec["result"]).with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, spec["result"])
    return status


def _in_words(error: Exception) -> str:
    """The first line of what went wrong, with the kind of a failure that is not said for people."""
    said = getattr(error, "message", "")
    return said or f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
