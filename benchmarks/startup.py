"""Start-up and reuse: `compress --help`, one `compress run`, the same again, and again with another `--quantize` only.

The claims: help in under 0.3 s; the run in at most 120 s; the same command again in under 3 s with nothing recomputed;
another `--quantize` trains nothing. Store and output are fresh temporary folders.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

from compress.errors import CompressError, UsageError
from compress.store import read_json

RUN = "--student mobilenet --kd fitnet --quantize int8"
OTHER_QUANTIZE = "int8:calibrator=percentile"
HELP_LIMIT_S, RUN_LIMIT_S, AGAIN_LIMIT_S = 0.3, 120.0, 3.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="timed calls of --help [20]")
    parser.add_argument("--run-flags", default=RUN, help=f"flags of `compress run`; empty: leave it out [{RUN}]")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "startup.json", help="file to write")
    return parser.parse_args()


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of wall time; raises CompressError with the end of its messages when the command fails."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise CompressError(f"`{shlex.join(command)}` ended with exit code {done.returncode}:\n{tail}")
    return seconds


def finished_steps(store: Path) -> dict[str, bool]:
    """The finished steps in a store, by folder name, and whether each was a training."""
    manifests = {path.parent.name: read_json(path) for path in store.glob("steps/*/manifest.json")}
    return {folder: "phases" in manifest["facts"] for folder, manifest in manifests.items()}


def quantized_otherwise(flags: list[str]) -> list[str]:
    """The same flags but for the value of `--quantize`.

    >>> quantized_otherwise(["--kd", "kd", "--quantize", "int8"])
    ['--kd', 'kd', '--quantize', 'int8:calibrator=percentile']
    """
    if "--quantize" not in flags:
        raise UsageError("--run-flags need `--quantize NAME`, so that a run can differ by it alone")
    at = flags.index("--quantize")
    return [*flags[:at], "--quantize", OTHER_QUANTIZE, *flags[at + 2 :]]


def measure_help(program: str, runs: int) -> list[float]:
    """Seconds of each `compress --help` after one that warms the disk's cache."""
    environment = dict(os.environ)
    timed([program, "--help"], environment)
    return [timed([program, "--help"], environment) for _ in range(runs)]


def measure_runs(program: str, flags: list[str]) -> dict[str, dict]:
    """Seconds and newly finished steps of: the run in an empty store, the same again, another quantization."""
    variants = {"first": flags, "again": flags, "other_quantize": quantized_otherwise(flags)}
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="compress-startup-") as folder:
        store = Path(folder) / "store"
        environment = {**os.environ, "COMPRESS_STORE": str(store)}
        before: dict[str, bool] = {}
        for name, own in variants.items():
            print(f"run: {name} ...", file=sys.stderr)
            seconds = timed([program, "run", *own, "--out", str(Path(folder) / "out")], environment)
            after = finished_steps(store)
            new = sorted(after.keys() - before.keys())
            rows[name] = {
                "flags": shlex.join(own),
                "seconds": seconds,
                "new_steps": [step.rpartition("-")[0] for step in new],
                "new_trainings": sum(after[step] for step in new),
            }
            before = after
    return rows


def claims(help_s: list[float], runs: dict[str, dict]) -> dict[str, bool]:
    held = {"help_under_0.3_s": record.spread(help_s)["median"] < HELP_LIMIT_S}
    if runs:
        held["run_within_120_s"] = runs["first"]["seconds"] <= RUN_LIMIT_S
        held["again_under_3_s"] = runs["again"]["seconds"] < AGAIN_LIMIT_S
        held["again_recomputes_nothing"] = not runs["again"]["new_steps"]
        held["other_quantize_trains_nothing"] = not runs["other_quantize"]["new_trainings"]
        # guards the line above: were trainings not recognised, it would hold for ever
        held["first_run_trained"] = runs["first"]["new_trainings"] > 0
    return held


def main() -> int:
    options = arguments()
    if options.runs < 1:
        raise UsageError(f"--runs must be at least 1, got {options.runs}")
    program = Path(sys.executable).with_name("compress")
    if not program.exists():
        raise UsageError(f"there is no `compress` beside {sys.executable}", hint="install the package: make install")
    help_s = measure_help(str(program), options.runs)
    runs = measure_runs(str(program), shlex.split(options.run_flags)) if options.run_flags else {}
    held = claims(help_s, runs)
    record.write(options.record, {"help_seconds": record.spread(help_s), "runs": runs, "claims": held})
    print(
        f"compress --help   {record.spread(help_s)['median']:.3f} s, median of {len(help_s)}, max {max(help_s):.3f} s"
    )
    for name, row in runs.items():
        print(f"run, {name:15} {row['seconds']:8.2f} s   new steps: {', '.join(row['new_steps']) or 'none'}")
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    return record.CLAIM_HOLDS if all(held.values()) else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
