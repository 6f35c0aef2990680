"""What the benchmark itself costs, and whether it repeats: eight cells in the tier `standard`, and the runtime `null`.

Claims: the parent's own CPU while children are timed is under 1 % of the time; a query of a runtime that does nothing
takes under 1 % of 1 ms; eight cells, with the A/A control and the visits that look at memory, take under six minutes.
Every run is kept; where two of one kind of machine are an hour apart, the difference of their log speed-ups must
contain 0 in at least 15 of the 16 comparisons named here.
"""

import argparse
import dataclasses
import math
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import record

from compress import bench, child, environment, files, measuring, plan, recipe, stats
from compress.errors import Unmeasurable
from compress.progress import Progress
from compress.store import Store, read_json

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
MOST_CPU, MOST_OVERHEAD_NS, MOST_S, APART, LEAST_ALIKE = 0.01, 10_000, 360.0, timedelta(hours=1), 15
FILES, THREADS, OTHER = ("teacher", "distilled", "int8"), (1, 2), "openvino"
NULL = "null"
# named beforehand: (slow, fast)
COMPARISONS = (
    *((f"{a}/ort_cpu/{t}", f"{b}/ort_cpu/{t}") for t in THREADS for a, b in
      (("teacher", "distilled"), ("teacher", "int8"), ("distilled", "int8"))),
    *((f"{name}/ort_cpu/1", f"{name}/ort_cpu/2") for name in FILES),
    *((f"{name}/ort_cpu/1", f"{name}/{OTHER}/1") for name in FILES[1:]),
    (f"distilled/{OTHER}/1", f"int8/{OTHER}/1"),
    *(("teacher/ort_cpu/1", f"{name}/{OTHER}/1") for name in FILES[1:]),
    *(("teacher/ort_cpu/1", f"{name}/ort_cpu/2") for name in FILES[1:]),
)  # fmt: skip


def cells() -> tuple[list[bench.Cell], bench.Cell]:
    """The eight cells with the control, as every report has one, and the cell that does nothing."""
    artifacts = {artifact.stage: artifact for artifact in files.open_run(RUN)[0]}
    wanted = [(name, "ort_cpu", threads) for threads in THREADS for name in FILES]
    wanted += [(name, OTHER, 1) for name in FILES[1:]] + [("distilled", NULL, 1)]
    made = [
        bench.Cell(name=f"{name}/{runtime}/{threads}", artifact=artifacts[name], runtime=runtime, threads=threads)
        for name, runtime, threads in wanted
    ]
    return [*made[:-1], dataclasses.replace(made[0], name=made[0].name + measuring.TWIN)], made[-1]


class Watch:
    """The parent's CPU time while it waits for children, and for how long it waited."""

    def __init__(self) -> None:
        self.cpu_s = self.waited_s = 0.0
        self.wait = child._wait

    def __call__(self, *given: Any) -> bool:
        cpu, started = time.process_time(), time.monotonic()
        try:
            return self.wait(*given)
        finally:
            self.cpu_s += time.process_time() - cpu
            self.waited_s += time.monotonic() - started


def measured(tier: bench.Tier, seed: int, store: Store) -> dict[str, Any]:
    """One run: what it took, what it cost, and the median of each round of each cell."""
    images, scratch = plan.load_data(recipe.Recipe(), store).report.images, store.root / "scratch"
    (wanted, nothing), watch = cells(), Watch()
    (null,) = bench.measure([nothing], images, tier, seed=seed, scratch=scratch)
    child._wait = watch  # type: ignore[assignment]
    started, begun = time.monotonic(), datetime.now().astimezone().isoformat(timespec="seconds")
    with Progress("benchmark", len(wanted) * (tier.rounds + 1), "visits") as bar:
        found = bench.measure(
            wanted, images, tier, seed=seed, scratch=scratch, on_visit=lambda done, _: bar.to(done), memory=True
        )
    seconds = time.monotonic() - started
    child._wait = watch.wait
    failed = next((m for m in (null, *found) if m.failure), None)
    if failed:
        raise Unmeasurable(f"{failed.cell} could not be measured: {failed.failure}")
    here = environment.capture()
    medians = {m.cell: [float(np.median(visit["samples_ns"])) for visit in m.visits] for m in found}
    null_ns = [float(np.median(visit["samples_ns"])) for visit in null.visits]
    return {
        "begun": begun, "cpu_model": here.cpu_model, "isa": list(here.isa), "tier": tier.name,
        "seconds": round(seconds, 1),
        "parent_cpu_share": watch.cpu_s / watch.waited_s, "null_ns": record.spread(null_ns),
        "round_medians_ns": medians,
    }  # fmt: skip


def log_speedup(run: dict[str, Any], slow: str, fast: str) -> tuple[float, float, int]:
    """(mean, standard error, rounds) of the log of the speed-up, paired by round."""
    pairs = zip(run["round_medians_ns"][slow], run["round_medians_ns"][fast], strict=True)
    logs = np.log([a / b for a, b in pairs])
    return float(logs.mean()), float(logs.std(ddof=1) / math.sqrt(len(logs))), len(logs)


def compared(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Each named comparison: the difference of the two runs' log speed-ups with its 95 % interval (Welch)."""
    rows = []
    for slow, fast in COMPARISONS:
        (a, s, n), (b, t, m) = (log_speedup(run, slow, fast) for run in (first, second))
        error = math.hypot(s, t)
        freedom = error**4 / (s**4 / (n - 1) + t**4 / (m - 1)) if error else n + m - 2
        half = stats.t_quantile(0.975, max(1, math.floor(freedom))) * error  # fewer are on the safe side
        rows.append({"slow": slow, "fast": fast, "first": math.exp(a), "second": math.exp(b), "difference": b - a,
                     "low": b - a - half, "high": b - a + half, "alike": abs(b - a) <= half})  # fmt: skip
    return rows


def apart(runs: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The latest two runs of the same tier on such a machine with an hour between them; processors of one name may
    have other instructions.
    """
    for index in reversed(range(len(runs))):
        last = runs[index]
        for run in reversed(runs[:index]):
            older = datetime.fromisoformat(last["begun"]) - datetime.fromisoformat(run["begun"])
            if older >= APART and all(run.get(key) == last.get(key) for key in ("tier", "cpu_model", "isa")):
                return run, last
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="standard", choices=list(bench.TIERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=record.RECORDS / "harness.json", help="file to go on writing")
    options = parser.parse_args()
    runs = read_json(options.record)["runs"] if options.record.exists() else []
    runs.append(measured(bench.TIERS[options.tier], options.seed + len(runs), Store.default()))
    record.write(options.record, {"runs": runs})  # what took minutes is kept, whatever becomes of the comparison
    pair, run = apart(runs), runs[-1]
    repeats = compared(*pair) if pair else []
    alike = sum(row["alike"] for row in repeats)
    record.write(options.record, {"runs": runs, "comparisons": repeats, "alike": alike})
    print(f"parent {run['parent_cpu_share']:.2%} of the time, a query of nothing {run['null_ns']['median']:.0f} ns, "
          f"eight cells, the control and their memory {run['seconds']:.0f} s"
          + (f", {alike} of {len(repeats)} comparisons alike" if repeats else ", no run an hour before"))  # fmt: skip
    cheap = run["parent_cpu_share"] < MOST_CPU and run["null_ns"]["median"] < MOST_OVERHEAD_NS
    quick = run["tier"] != "standard" or run["seconds"] < MOST_S
    holds = cheap and quick and (not repeats or alike >= LEAST_ALIKE)
    return record.CLAIM_HOLDS if holds else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
