"""What every script here writes: one JSON record with the machine, the versions, the command and the raw samples."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from compress import environment
from compress.errors import CompressError
from compress.store import write_json

RECORDS = Path(__file__).parent / "records"
CLAIM_HOLDS, CLAIM_FAILS = 0, 3
LOAD_AT_START = environment.load_average()


def run(main: Callable[[], int]) -> NoReturn:
    """End this process with what `main` returns; an error for people ends it with its message and exit code."""
    try:
        sys.exit(main())
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def write(path: Path, facts: dict[str, Any]) -> None:
    """Write `facts` with the machine they belong to, atomically, and say where; raises CompressError if it cannot."""
    captured = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "load_average": {"start": LOAD_AT_START, "end": environment.load_average()},
        "machine": dataclasses.asdict(environment.capture()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, captured | facts)
    print(f"wrote  {path}", file=sys.stderr)


def command(arguments: list[str]) -> str:
    """The command line as it may be published: of an absolute path the last part only.

    >>> command(["benchmarks/startup.py", "--data", "/home/ada/cifar10", "--runs", "5"])
    'python benchmarks/startup.py --data DIR/cifar10 --runs 5'
    """
    script, *rest = arguments
    shown = [f"DIR/{Path(a).name}" if os.path.isabs(a) else a for a in rest]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])


def spread(values: list[float]) -> dict[str, Any]:
    """n, median, least and greatest of at least one value, and the values themselves."""
    return {
        "n": len(values),
        "median": float(np.median(values)),
        "min": min(values),
        "max": max(values),
        "values": values,
    }
