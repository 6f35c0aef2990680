"""A/A control: the same ONNX file measured under two names must show no difference.

The claim: the interval of the ratio contains 1 and is no wider than ±5 %. A machine or a protocol that fails this
makes differences up, and no speed-up measured with it means anything. With `--runs`, so many comparisons, one after the
other, and how many of their intervals leave 1 out: of 95 % intervals one in twenty does, and the claim is then that no
more do, as far as so many runs can tell.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import record

from compress import bench, files, measuring, plan, recipe, stats
from compress.errors import Unmeasurable, UsageError, unknown
from compress.progress import say
from compress.store import Store
from compress.types import Artifact, Measurement

SYNTHETIC_IMAGES = 128
WIDEST = 0.05


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="ONNX file to measure")
    parser.add_argument("--data", default="", help="data set or folder that the images come from [random images]")
    parser.add_argument("--runtime", default="ort_cpu", help="runtime [ort_cpu]")
    parser.add_argument("--threads", type=int, default=1, help="threads [1]")
    parser.add_argument("--tier", default="standard", help=f"{', '.join(bench.TIERS)} [standard]")
    parser.add_argument("--runs", type=int, default=1, help="comparisons, each with the next seed [1]")
    parser.add_argument("--seed", type=int, default=0, help="of the order of visits and the inputs [0]")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "aa_control.json", help="file to write")
    return parser.parse_args()


def images_for(artifact: Artifact, data: str, seed: int, store: Store) -> tuple[np.ndarray, str]:
    """(uint8 images `[N,H,W,C]`, what they are)."""
    if data:
        report = plan.load_data(recipe.from_values({"data": data}), store).report
        return report.images, f"{report.name}, report split"
    channels, height, width = artifact.input_shape
    shape = (SYNTHETIC_IMAGES, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), "synthetic random images"


def round_medians_ns(measurement: Measurement) -> list[float]:
    """One median a round, in the order of rounds; raises Unmeasurable for a cell that failed."""
    if measurement.failure:
        raise Unmeasurable(f"{measurement.cell} could not be measured: {measurement.failure}")
    return [stats.median(visit["samples_ns"]) for visit in sorted(measurement.visits, key=lambda v: v["round"])]


def facts_of(first: list[float], second: list[float]) -> dict[str, Any]:
    ratio, low, high = stats.paired_ratio(first, second)
    return {
        "ratio": {"value": ratio, "low": low, "high": high, "confidence": 0.95, "n_rounds": len(first)},
        "verdict": stats.aa_verdict(low, high),
        "round_medians_ns": {"first": first, "second": second},
    }


def main() -> int:
    options = arguments()
    if options.tier not in bench.TIERS:
        raise unknown("tier", options.tier, list(bench.TIERS), where="--tier")
    if options.runs < 1:
        raise UsageError("--runs takes a number from 1 up", code="E-OPTION-VALUE")
    store = Store.default()
    artifact = files.open_onnx(options.onnx, store.root / "scratch")
    images, note = images_for(artifact, options.data, options.seed, store)
    cells = [
        bench.Cell(name=name, artifact=artifact, runtime=options.runtime, threads=options.threads)
        for name in ("first", "first" + measuring.TWIN)
    ]
    tier = bench.TIERS[options.tier]
    runs, measured = [], []
    for number in range(options.runs):
        say(f"{tier.rounds} rounds of two visits, {number + 1} of {options.runs} ...")
        measured = bench.measure(cells, images, tier, seed=options.seed + number, scratch=store.root / "scratch")
        runs.append({"seed": options.seed + number} | facts_of(*(round_medians_ns(m) for m in measured)))
    left_out = sum(not run["ratio"]["low"] <= 1 <= run["ratio"]["high"] for run in runs)
    low, high = stats.wilson(left_out, len(runs))
    setting = {k: getattr(options, k) for k in ("runtime", "threads", "tier")}
    versions = {"runtime_version": measured[0].runtime_version, "artifact_digest": artifact.digest}
    rate = {"count": left_out, "n": len(runs), "low": low, "high": high}
    record.write(options.record, setting | versions | {"images": note, "leave_1_out": rate, "runs": runs})
    print(f"{artifact.path.name} in {options.runtime}, {options.threads} thread(s), tier {options.tier}, {note}")
    for run in runs:
        ratio, medians = run["ratio"], [stats.median(found) / 1e6 for found in run["round_medians_ns"].values()]
        print(f"  {medians[0]:.3f} and {medians[1]:.3f} ms, ratio {ratio['value']:.4f} ({ratio['low']:.4f} to "
              f"{ratio['high']:.4f}, 95 %): {run['verdict']}")  # fmt: skip
    print(f"  {left_out} of {len(runs)} intervals leave 1 out ({low:.1%} to {high:.1%})")
    first = runs[0]["ratio"]
    close = 1 - WIDEST <= first["low"] <= 1 <= first["high"] <= 1 + WIDEST
    holds = close if len(runs) == 1 else low <= 0.05
    return record.CLAIM_HOLDS if holds else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
