"""Statistics against values frozen from scipy 1.17, closed forms, and simulated coverage."""

import math

import numpy as np
import pytest

from compress import stats

# Agreement asked of closed formulas in double precision; a wrong degree of freedom is off by more than 1e-2.
CLOSE = {"rel": 1e-12, "abs": 1e-15}


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),  # scipy.stats.t.ppf
    [
        (0.975, 1, 12.706204736174694),
        (0.975, 2, 4.302652729749462),
        (0.975, 4, 2.7764451051977934),
        (0.975, 9, 2.262157162798205),
        (0.975, 29, 2.045229642132703),
        (0.995, 3, 5.840909309733355),
        (0.9, 120, 1.288646233656378),
    ],
)
def test_t_quantile(probability, freedom, expected):
    assert stats.t_quantile(probability, freedom) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),  # scipy.stats.binomtest(...).proportion_ci(method="wilson")
    [
        (0, 10, 0.0, 0.27753279986288926),
        (93, 100, 0.8625048526092649, 0.9656807389327273),
        (9339, 10000, 0.9288618039000096, 0.9386049623139172),
        (10, 10, 0.7224672001371109, 1.0),
        (1, 500, 0.00035313639455927456, 0.011240706705146757),
    ],
)
def test_wilson(correct, n, low, high):
    assert stats.wilson(correct, n) == pytest.approx((low, high), **CLOSE)


def test_wilson_refuses_impossible_counts():
    for correct, n in [(0, 0), (-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="correct"):
            stats.wilson(correct, n)


@pytest.mark.parametrize(
    ("b", "c", "p"),  # scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue
    [
        (0, 0, 1.0),
        (0, 5, 0.0625),
        (3, 9, 0.14599609375),
        (10, 10, 1.0),
        (120, 80, 0.005685155996750306),
        (700, 640, 0.10697992524490962),
    ],
)
def test_mcnemar(b, c, p):
    # scipy's own p value for large counts comes from an incomplete beta function, good to about 1e-11.
    assert stats.mcnemar_exact(b, c) == pytest.approx(p, rel=1e-10)
    assert stats.mcnemar_exact(c, b) == stats.mcnemar_exact(b, c)


def test_mcnemar_of_many_pairs_does_not_overflow():
    assert 0 < stats.mcnemar_exact(2400, 2600) < 0.01


@pytest.mark.parametrize(
    ("b", "c", "n", "low", "high"),  # by maximising the constrained likelihood numerically and solving for z = 1.96
    [
        (9, 3, 44, -0.29478560566310824, 0.020095799679025354),
        (0, 4, 50, 0.0029445914432974286, 0.1883824691834284),
        (251, 249, 10000, -0.004598372132211133, 0.004197077682336763),
        (30, 12, 360, -0.0873246799731377, -0.015396192636999661),
    ],
)
def test_paired_difference_is_the_score_interval(b, c, n, low, high):
    # The numerical search behind the expected values stops near the square root of double precision (1e-8).
    assert stats.paired_difference(b, c, n) == pytest.approx(((c - b) / n, low, high), abs=1e-8)


def test_paired_difference_without_discordant_images_has_a_width():
    z_squared = 1.959963984540054**2
    bound = z_squared / (50 + z_squared)
    assert stats.paired_difference(0, 0, 50) == pytest.approx((0.0, -bound, bound), **CLOSE)


def test_paired_difference_at_the_extremes():
    assert stats.paired_difference(0, 20, 20)[2] == pytest.approx(1.0)
    assert stats.paired_difference(20, 0, 20)[1] == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="b \\+ c"):
        stats.paired_difference(3, 3, 5)


def test_paired_difference_covers_the_truth_at_small_counts():
    generator, truth, campaigns = np.random.default_rng(3), -0.03, 1000
    draws = generator.multinomial(200, [0.05, 0.02, 0.93], size=campaigns)
    intervals = [stats.paired_difference(int(b), int(c), 200) for b, c, _ in draws]
    covered = sum(low <= truth <= high for _, low, high in intervals)
    # 1,000 campaigns at a true 95 % stay within 930..970 (2.9 standard errors); a 90 % interval does not.
    assert 930 <= covered <= 975


def test_paired_ratio():
    baseline, cell = [10.0, 11.0, 10.5, 10.2, 10.8], [5.0, 5.4, 5.5, 5.0, 5.3]
    # exp of scipy.stats.ttest_1samp(log ratios, 0).confidence_interval()
    expected = (2.0041338195751157, 1.934748232178336, 2.0760077719479293)
    assert stats.paired_ratio(baseline, cell) == pytest.approx(expected, **CLOSE)


def test_paired_ratio_is_blind_to_a_drift_that_hits_both():
    drift = np.array([1.0, 3.0, 9.0, 27.0])
    ratio, low, high = stats.paired_ratio(list(2 * drift), list(drift))
    assert (ratio, low, high) == pytest.approx((2.0, 2.0, 2.0), rel=1e-12)


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_paired_ratio_refuses_what_has_no_interval(one, other):
    with pytest.raises(ValueError, match="at least 2"):
        stats.paired_ratio(one, other)


def test_bootstrap_median_is_reproducible_and_within_the_data():
    rounds = [1.0, 1.2, 1.1, 5.0, 1.15]
    low, high = stats.bootstrap_median(rounds, seed=4)
    assert (low, high) == stats.bootstrap_median(rounds, seed=4)
    assert 1.0 <= low <= 1.15 <= high <= 5.0
    with pytest.raises(ValueError, match="2 rounds"):
        stats.bootstrap_median([1.0], seed=0)


def test_bootstrap_median_covers_the_truth():
    generator, campaigns = np.random.default_rng(1), 300
    samples = generator.lognormal(0.0, 0.05, size=(campaigns, 10))
    intervals = [stats.bootstrap_median(row, seed=0, resamples=1000) for row in samples]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    # 95 % of 300 is 285 with a standard error of 3.8; the standard-error-only mistake (68 %) gives 204.
    assert covered >= 270


def test_median():
    assert stats.median([3, 1, 2]) == 2.0
    with pytest.raises(ValueError):
        stats.median([])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.03, 1.2, "faster"),
        (1.01, 1.2, "inconclusive"),
        (0.5, 0.97, "slower"),
        (0.5, 0.99, "inconclusive"),
        (0.99, 1.01, "no difference"),
        (0.98, 1.02, "no difference"),
        (0.9, 1.1, "inconclusive"),
    ],
)
def test_speed_verdict(low, high, verdict):
    assert stats.speed_verdict(low, high) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.009, 0.0, "kept"), (-0.02, -0.011, "lost"), (-0.02, 0.0, "undecided"), (-0.01, 0.0, "undecided")],
)
def test_accuracy_verdict(low, high, verdict):
    assert stats.accuracy_verdict(low, high, 0.01) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "ok"),
        (0.981, 1.019, "ok"),
        (1.0, 1.03, "ok"),
        (1.005, 1.03, "inconclusive"),
        (0.97, 1.015, "inconclusive"),
        (0.951, 1.049, "inconclusive"),
        (1.01, 1.06, "inconclusive"),
        (1.021, 1.03, "invalid"),
        (0.9, 0.979, "invalid"),
    ],
)
def test_aa_verdict(low, high, verdict):
    assert stats.aa_verdict(low, high) == verdict


def test_aa_verdict_rarely_cries_wolf():
    generator, campaigns = np.random.default_rng(0), 400
    noise = generator.lognormal(0.0, 0.01, size=(campaigns, 2, 10))
    verdicts = [stats.aa_verdict(*stats.paired_ratio(one, other)[1:]) for one, other in noise]
    assert verdicts.count("invalid") == 0
    # By construction 5 % of 95 % intervals miss 1: 20 of 400, with a standard error of 4.4.
    assert verdicts.count("ok") >= 360


def test_pareto():
    points = [(1.0, 0.9), (2.0, 0.95), (2.0, 0.9), (3.0, 0.95), (1.0, 0.9), (0.5, 0.1)]
    assert stats.pareto(points) == [0, 1, 4, 5]
    assert stats.pareto([]) == []


@pytest.mark.parametrize(("q", "needed"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_percentile_needs_enough_queries(q, needed):
    assert stats.percentile_allowed(q, needed)
    assert not stats.percentile_allowed(q, needed - 1)
    assert not stats.percentile_allowed(q, 0)


def test_percentile_is_a_fraction():
    with pytest.raises(ValueError, match="fraction"):
        stats.percentile_allowed(99, 1000)


def test_verdicts_of_an_injected_slowdown():
    generator, campaigns = np.random.default_rng(5), 200
    verdicts = []
    for _ in range(campaigns):
        base, slow = generator.lognormal(0, 0.01, 10), 1.05 * generator.lognormal(0, 0.01, 10)
        _, low, high = stats.paired_ratio(base, slow)
        verdicts.append(stats.speed_verdict(low, high))
    assert verdicts.count("slower") >= 0.95 * campaigns
    assert math.isclose(stats.paired_ratio([1, 1], [1.05, 1.05])[0], 1 / 1.05)
