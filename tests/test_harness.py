"""What benchmarks/harness.py says of two runs: those that belong together, and how far their speed-ups differ."""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness


def run(begun: str, seed: int, slower: float = 1.0, cpu_model: str = "A") -> dict:
    """Ten rounds of each cell of the comparisons, 2 % apart; `slower` is a factor on the int8 file alone."""
    draw = np.random.default_rng(seed)
    names = sorted({name for pair in harness.COMPARISONS for name in pair})
    scale = {name: 1e6 * (slower if name.startswith("int8") else 1.0) for name in names}
    medians = {name: (scale[name] * np.exp(draw.normal(0, 0.02, 10))).tolist() for name in names}
    return {"begun": begun, "tier": "standard", "cpu_model": cpu_model, "round_medians_ns": medians}


def test_runs_that_agree_and_one_that_does_not():
    first, same, other = run("", 0), run("", 1), run("", 2, slower=1.3)
    rows = harness.compared(first, same)
    assert len(rows) == 16 and sum(row["alike"] for row in rows) >= harness.LEAST_ALIKE
    # both sides of a comparison may be int8: such a ratio is as it was
    found = {(row["slow"], row["fast"]): row for row in harness.compared(first, other)}
    for (slow, fast), row in found.items():
        expected = math.log(1.3) * (slow.startswith("int8") - fast.startswith("int8"))
        assert abs(row["difference"] - expected) < 0.05 and row["alike"] == (expected == 0), (slow, fast)


def test_only_runs_an_hour_apart_on_one_kind_of_machine_are_compared():
    times = ("2026-01-01T10:00:00+00:00", "2026-01-01T10:30:00+00:00", "2026-01-01T11:10:00+00:00")
    runs = [run(time, number) for number, time in enumerate(times)]
    assert harness.apart(runs) == (runs[0], runs[2])
    assert harness.apart(runs[1:]) is None
    assert harness.apart([runs[0] | {"cpu_model": "B"}, runs[2]]) is None
