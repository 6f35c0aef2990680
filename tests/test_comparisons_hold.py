"""The comparison of two artifacts, on simulated machines whose truth is known: nothing is invented, and what is there
is found.

Noise is of one round's median, in logarithms, as the neighbours, the scheduler and the clock make it.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from compress import bench, stats

CAMPAIGNS = 1000
ROUNDS = bench.TIERS["standard"].rounds
Noise = Callable[[np.random.Generator, int], np.ndarray]


def gauss(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.normal(0, 0.02, n)


def log_normal(draw: np.random.Generator, n: int) -> np.ndarray:
    return np.log1p(0.01 * draw.lognormal(0, 1, n))


def bimodal(draw: np.random.Generator, n: int) -> np.ndarray:
    return np.where(draw.random(n) < 0.5, 0.0, 0.05) + draw.normal(0, 0.005, n)


def spikes(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.normal(0, 0.02, n) + 0.5 * (draw.random(n) < 0.01)


NOISES = [gauss, log_normal, bimodal, spikes]


def at_most(share: float, count: int, n: int) -> bool:
    """Whether `count` of `n` is compatible with a rate of at most `share`: Wilson's lower end."""
    return stats.wilson(count, n)[0] <= share


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("noise", NOISES)
def test_the_same_artifact_twice_is_seldom_called_different(noise: Noise, drift: float):
    draw = np.random.default_rng(1)
    different = invalid = 0
    machine = np.exp(np.linspace(0, drift, ROUNDS))
    for _ in range(CAMPAIGNS):
        one, two = (machine * np.exp(noise(draw, ROUNDS)) for _ in range(2))
        _, low, high = stats.paired_ratio(one, two)
        different += stats.speed_verdict(low, high) in ("faster", "slower")
        invalid += stats.aa_verdict(low, high) == "invalid"
    assert at_most(0.05, different, CAMPAIGNS) and at_most(0.05, invalid, CAMPAIGNS)


def power(slowdown: float, spread: float) -> tuple[float, float]:
    """(share called slower, share whose interval excludes 1) of campaigns with a true slow-down."""
    logs = np.random.default_rng(2).normal(-math.log1p(slowdown), spread, (CAMPAIGNS, ROUNDS))
    bounds = [stats.paired_ratio(np.ones(ROUNDS), np.exp(-campaign))[1:] for campaign in logs]
    called = sum(stats.speed_verdict(low, high) == "slower" for low, high in bounds)
    return called / CAMPAIGNS, sum(high < 1 for _, high in bounds) / CAMPAIGNS


def test_a_slow_down_of_five_percent_is_found():
    assert power(0.05, 0.02)[0] >= 0.95
    assert power(0.05, 0.02)[1] >= 0.99


def test_a_slow_down_of_one_percent_is_no_difference_beyond_the_band():
    assert power(0.01, 0.02)[0] <= 0.05


def test_three_percent_is_seen_but_seldom_called():
    """Inside of what the band leaves: the interval tells it from nothing, the word waits for more rounds."""
    called, excluded = power(0.03, 0.02)
    assert excluded >= 0.95 and 0.1 < called < 0.5


@pytest.mark.parametrize("rounds", [bench.TIERS[name].rounds for name in ("quick", "standard", "rigorous")])
def test_intervals_hold_the_truth_as_often_as_they_say(rounds: int):
    campaigns = 3000
    logs = np.random.default_rng(3).normal(0.1, 0.02, (campaigns, rounds))
    held = 0
    for campaign in logs:
        _, low, high = stats.paired_ratio(np.exp(campaign), np.ones(rounds))
        held += low <= math.exp(0.1) <= high
    assert 0.93 <= held / campaigns <= 0.97


@pytest.mark.parametrize("rounds", [10, 30])
def test_intervals_of_a_median_hold_it_as_often_as_they_say(rounds: int):
    campaigns = 1500
    draw = np.random.default_rng(4)
    held = sum(
        low <= 1.0 <= high
        for low, high in (
            stats.bootstrap_median(np.exp(draw.normal(0, 0.02, rounds)), seed, resamples=1000)
            for seed in range(campaigns)
        )
    )
    low, high = stats.wilson(held, campaigns)
    assert high >= 0.93 and low <= 0.97, held / campaigns


def test_interleaving_cancels_what_the_machine_does_meanwhile():
    """The machine becomes 10 % slower, bit by bit. Measured one after the other, that is half of it on the second of
    two equal artifacts; round by round, it is on both.
    """
    cells = 2
    visits = cells * ROUNDS
    machine = np.linspace(1.0, 1.1, visits)
    one_after_the_other = machine[:ROUNDS], machine[ROUNDS:]
    assert abs(stats.paired_ratio(*one_after_the_other)[0] - 1) > 0.04
    ratios = []
    for seed in range(200):
        times = np.empty((ROUNDS, cells))
        for number in range(ROUNDS):
            for position, cell in enumerate(bench.visit_order(seed, number, cells)):
                times[number, cell] = machine[number * cells + position]
        ratios.append(stats.paired_ratio(times[:, 0], times[:, 1])[0])
    assert max(abs(ratio - 1) for ratio in ratios) < 0.006 and abs(np.mean(ratios) - 1) < 0.0005


def test_equal_seeds_visit_in_equal_order():
    orders = [[bench.visit_order(7, number, 8) for number in range(ROUNDS)] for _ in range(2)]
    assert orders[0] == orders[1] != [bench.visit_order(8, number, 8) for number in range(ROUNDS)]
    first = [order[0] for order in (bench.visit_order(0, number, 4) for number in range(400))]
    assert min(first.count(cell) for cell in range(4)) > 70, "each cell comes first as often as the others"
