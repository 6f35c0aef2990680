"""What the comparison of two artifacts can tell apart: the share of campaigns that call a known slow-down by its name.

Campaigns are simulated: the logarithm of each round's ratio is the slow-down plus normal noise, and the verdict comes
from `compress.stats` as in a report. POWER.md is made from the record by `power.py --page`.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import record

from compress import bench, stats
from compress.store import read_json, write_atomic

PAGE = Path(__file__).with_name("POWER.md")
TIERS = ("quick", "standard", "rigorous")
SPREADS, SLOWDOWNS = (0.01, 0.02, 0.03), (0.0, 0.01, 0.03, 0.05, 0.10)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=4000, help="simulated for each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="only write POWER.md, from the record")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "power.json", help="file to write")
    return parser.parse_args()


def row_of(tier: str, spread: float, slowdown: float, campaigns: int, seed: int) -> dict[str, Any]:
    """Shares of the campaigns with each verdict, and with an interval that excludes 1, or holds the truth."""
    rounds = bench.TIERS[tier].rounds
    truth = -math.log(1 + slowdown)
    logs = np.random.default_rng([seed, rounds, round(1000 * spread), round(1000 * slowdown)]).normal(
        truth, spread, (campaigns, rounds)
    )
    found = {"slower": 0, "faster": 0, "excludes_1": 0, "holds_truth": 0}
    for campaign in logs:
        _, low, high = stats.paired_ratio(np.ones(rounds), np.exp(-campaign))
        word = stats.speed_verdict(low, high)
        found["slower"] += word == "slower"
        found["faster"] += word == "faster"
        found["excludes_1"] += not low <= 1 <= high
        found["holds_truth"] += low <= math.exp(truth) <= high
    shares = {key: count / campaigns for key, count in found.items()}
    return {"tier": tier, "rounds": rounds, "spread": spread, "slowdown": slowdown, **shares}


def page(content: dict[str, Any]) -> str:
    lines = [
        "# What a comparison can tell apart", "",
        f"{content['campaigns']:,} simulated campaigns a row, seed {content['seed']}: each round's ratio is the true",
        "one with normal noise of the spread given. `slower` needs the 95 % interval wholly beyond the band of 2 %.",
        "Made by `python benchmarks/power.py`, from [records/power.json](records/power.json).", "",
        "| tier, rounds | spread of a round's ratio | true slow-down | called slower | interval excludes 1 "
        "| interval holds the truth |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in content["rows"]:
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("slower", "excludes_1", "holds_truth"))
        truth = f"{100 * row['spread']:.0f} % | {100 * row['slowdown']:.0f} %"
        lines.append(f"| {row['tier']}, {row['rounds']} | {truth} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = arguments()
    if not options.page:
        rows = [
            row_of(tier, spread, slowdown, options.campaigns, options.seed)
            for tier in TIERS
            for spread in SPREADS
            for slowdown in SLOWDOWNS
        ]
        record.write(options.record, {"campaigns": options.campaigns, "seed": options.seed, "rows": rows})
    write_atomic(PAGE, page(read_json(options.record)).encode())


if __name__ == "__main__":
    main()
