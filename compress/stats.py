"""Medians, intervals and verdicts: pure functions of plain numbers, with numpy only for resampling.

Intervals are 95 % unless `confidence` says otherwise. A ratio above 1 means that the cell is faster than the baseline.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

# A percentile needs so many queries that, with this confidence, at least two of them lie above it.
PERCENTILE_CONFIDENCE = 0.99
NOISE_BAND = 0.02


def median(values: Sequence[float]) -> float:
    """The median of at least one value; ValueError when there is none."""
    if len(values) == 0:
        raise ValueError("the median of no values does not exist")
    return float(np.median(values))


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of the fraction `correct / n`. ValueError unless 0 <= correct <= n, n > 0."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"need 0 <= correct <= n and n > 0, got correct={correct}, n={n}")
    z = _normal_quantile(confidence)
    share = correct / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends at 0 and n of n are exact; rounding would leave them 1e-18 away.
    low = 0.0 if correct == 0 else (middle - half) / scale
    high = 1.0 if correct == n else (middle + half) / scale
    return low, high


def bootstrap_median(round_medians: Sequence[float], seed: int, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the median over rounds, by resampling whole rounds.

    Queries inside a visit are correlated, so a round is the unit. ValueError below two rounds.
    """
    rounds = np.asarray(round_medians, dtype=np.float64)
    if rounds.size < 2:
        raise ValueError(f"an interval over rounds needs at least 2 rounds, got {rounds.size}")
    picks = np.random.default_rng(seed).integers(0, rounds.size, size=(resamples, rounds.size))
    low, high = np.quantile(np.median(rounds[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)


def paired_ratio(
    baseline_medians: Sequence[float], cell_medians: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """(ratio, low, high) of baseline over cell, paired by round: mean and Student t of the log-ratios.

    Both hold one positive median a round, in the same order. ValueError below two rounds or when lengths differ.
    """
    if len(baseline_medians) != len(cell_medians) or len(cell_medians) < 2:
        raise ValueError(f"need two equal lengths of at least 2, got {len(baseline_medians)} and {len(cell_medians)}")
    logs = [math.log(b / c) for b, c in zip(baseline_medians, cell_medians, strict=True)]
    mean = math.fsum(logs) / len(logs)
    variance = math.fsum((x - mean) ** 2 for x in logs) / (len(logs) - 1)
    half = t_quantile(1 - (1 - confidence) / 2, len(logs) - 1) * math.sqrt(variance / len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t quantile for `probability` in [0.5, 1) and a whole number of degrees of freedom, at least 1."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"need 0.5 <= probability < 1 and freedom >= 1, got {probability}, {freedom}")
    angle = _falling_root(lambda a: 2 * probability - 1 - _t_central(a, freedom), 0.0, math.pi / 2)
    return math.sqrt(freedom) * math.tan(angle)


def _t_central(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) * tan(angle)): the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * total)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p value that `b` and `c` discordant pairs come from a fair coin; 1 when there are none."""
    if b < 0 or c < 0:
        raise ValueError(f"counts cannot be negative, got b={b}, c={c}")
    pairs, tail, term = b + c, 0, 1
    for k in range(min(b, c) + 1):
        tail += term
        term = term * (pairs - k) // (k + 1)
    return min(1.0, 2 * tail / 2**pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, in their order, adjusted for their number by Holm's step-down method (Scandinavian Journal of
    Statistics 6, 1979): calling those below a level significant errs in no more than that share of such families.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired_difference(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """(difference, low, high) of top-1 fractions, student minus teacher, judged on the same `n` images.

    `b`: teacher right and student wrong; `c`: the opposite. The interval is Tango's score interval (Statistics in
    Medicine 17, 1998), which keeps its level when few images or none are discordant, where Wald's has no width.
    ValueError unless b, c >= 0 and 0 < n, b + c <= n.
    """
    if min(b, c) < 0 or n <= 0 or b + c > n:
        raise ValueError(f"need b, c >= 0 and b + c <= n > 0, got b={b}, c={c}, n={n}")
    z, difference = _normal_quantile(confidence), (c - b) / n
    low = _falling_root(lambda d: _tango(c, b, n, d) - z, -1.0, difference)
    high = _falling_root(lambda d: _tango(c, b, n, d) + z, difference, 1.0)
    return difference, low, high


def _tango(gained: int, lost: int, n: int, difference: float) -> float:
    """The score statistic for a true `difference`; it falls from +inf to -inf as `difference` goes from -1 to 1."""
    linear = (2 * n - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    lost_share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * lost_share + difference * (1 - difference))
    excess = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def speed_verdict(low: float, high: float, band: float = NOISE_BAND) -> str:
    """`faster`, `slower`, `no difference` or `inconclusive`, from the interval of baseline over cell.

    `faster` and `slower` need the whole interval beyond 1 ± band, `no difference` the whole interval inside it.
    """
    if low > 1 + band:
        return "faster"
    if high < 1 - band:
        return "slower"
    return "no difference" if 1 - band <= low and high <= 1 + band else "inconclusive"


def accuracy_verdict(low: float, high: float, margin_fraction: float) -> str:
    """`kept`, `lost` or `undecided`, from the interval of student minus teacher and the loss that is allowed."""
    if low > -margin_fraction:
        return "kept"
    return "lost" if high < -margin_fraction else "undecided"


def aa_verdict(low: float, high: float, band: float = NOISE_BAND) -> str:
    """`ok`, `inconclusive` or `invalid`, from the interval of one artifact measured under two names.

    `invalid`: wholly beyond 1 ± band, so the machine makes differences up. `ok`: it contains 1 and is no wider than the
    band, so that a difference beyond the band is no invention of the machine's.
    """
    if low > 1 + band or high < 1 - band:
        return "invalid"
    return "ok" if low <= 1 <= high and high - low <= 2 * band else "inconclusive"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, gain) points that no other beats: lower cost and higher gain are better; ties stay."""

    def beaten(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)

    return [index for index, (cost, gain) in enumerate(points) if not beaten(cost, gain)]


def percentile_allowed(q: float, n: int) -> bool:
    """Whether `n` queries suffice to print percentile `q` (a fraction: 0.99): 64 for p90, 662 for p99.

    Rule: the chance that at most one of `n` lies beyond the percentile is at most 1 %. ValueError unless 0 < q < 1.
    """
    if not 0 < q < 1:
        raise ValueError(f"a percentile is a fraction between 0 and 1, got {q}")
    return n > 0 and q**n + n * q ** (n - 1) * (1 - q) <= 1 - PERCENTILE_CONFIDENCE


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(1 - (1 - confidence) / 2)


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between `low` and `high`, to the last bit, by halving."""
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
