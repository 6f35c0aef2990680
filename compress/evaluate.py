"""Evaluate: what an artifact's own bytes answer, counted. Facts only; intervals are made in `report/rows.py`."""

import math
from typing import Any

import numpy as np

from compress.errors import Unmeasurable

_ONE_SIDED_95 = 1.645  # standard errors of a normal distribution
BINS, RESAMPLES = 15, 500  # of the calibration error


def counts(logits: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None = None) -> dict[str, Any]:
    """Counts over labelled images, logits `[N,K]`, labels `[N]`; `baseline` are another artifact's logits.

    `baseline_only` are images that the baseline alone gets right, `this_only` the reverse, `agree` equal top-1.
    """
    right = logits.argmax(1) == labels
    facts: dict[str, Any] = {"n": len(labels), "correct": int(right.sum()), "top5_correct": None}
    if logits.shape[1] > 5:
        top5 = np.argpartition(-logits, 4, axis=1)[:, :5]
        facts["top5_correct"] = int((top5 == labels[:, None]).any(1).sum())
    if baseline is not None:
        base_right = baseline.argmax(1) == labels
        facts["baseline_correct"] = int(base_right.sum())
        facts["baseline_only"] = int((base_right & ~right).sum())
        facts["this_only"] = int((right & ~base_right).sum())
        facts["agree"] = int((logits.argmax(1) == baseline.argmax(1)).sum())
    return facts


def refuse_nan(logits: np.ndarray, what: str) -> None:
    """Raises Unmeasurable where logits `[N,K]` are no numbers, or endless: the largest of them would be no answer. Of
    log-probabilities -inf is a number.
    """
    broken = int((np.isnan(logits) | np.isposinf(logits)).any(1).sum())
    if broken:
        raise Unmeasurable(
            f"{what}: for {broken:,} of {len(logits):,} images its logits are not all numbers",
            code="E-RUNTIME-FAILED",
            hint="weights or activations that overflow make them so: look at the network that the file was made from",
        )


def class_counts(logits: np.ndarray, labels: np.ndarray, baseline: np.ndarray) -> dict[str, list[int]]:
    """`counts` of each class apart: lists of `n`, `correct`, `teacher_only` and `this_only`, as long as there are
    classes; `baseline` are the teacher's logits.
    """
    right, base_right = logits.argmax(1) == labels, baseline.argmax(1) == labels
    chosen = {
        "n": np.ones(len(labels), bool), "correct": right, "teacher_only": base_right & ~right,
        "this_only": right & ~base_right,
    }  # fmt: skip
    return {k: np.bincount(labels[mask], minlength=logits.shape[1]).tolist() for k, mask in chosen.items()}


def divergence_nats(logits: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """KL(softmax(baseline) ‖ softmax(logits)) over images, logits `[N,K]`: its `mean` and its 95th percentile `p95`. Of
    files of equal accuracy it tells those that answer otherwise ("Accuracy is Not All You Need", arXiv 2407.09141).
    """
    other, own = (_log_softmax(z) for z in (baseline, logits))
    with np.errstate(invalid="ignore"):  # a class of probability 0 adds nothing, whatever its logarithm
        each = np.where(np.isneginf(other), 0.0, np.exp(other) * (other - own)).sum(1)
    each = np.maximum(each, 0.0)  # which rounding may miss
    return {"mean": float(each.mean()), "p95": float(np.quantile(each, 0.95))}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logs = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return logs - np.log(np.exp(logs).sum(1, keepdims=True))


def confidence(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What softmax says of its own answers, logits `[N,K]`, labels `[N]`: `bins`, of about equally many images each, by
    the probability of the answer (`n`, `probability`, its mean, and `correct`), `low` and `high`, the 95 % interval of
    their calibration error by resampling images, `nll_nats` and `brier`, means over images.

    Equal numbers of images and not equal widths, since most answers are sure (Nixon et al. 2019, "Measuring Calibration
    in Deep Learning").
    """
    logs = _log_softmax(logits)
    rows = np.arange(len(labels))
    sure, right = np.exp(logs.max(1)), (logs.argmax(1) == labels).astype(np.float64)
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    truth = np.zeros_like(logs)
    truth[rows, labels] = 1
    low, high = _resampled(sure - right, parts, len(labels))
    return {
        "bins": [
            {"n": len(part), "probability": float(sure[part].mean()), "correct": int(right[part].sum())}
            for part in parts
        ],
        "low": low, "high": high, "nll_nats": float(-logs[rows, labels].mean()),
        "brier": float(((np.exp(logs) - truth) ** 2).sum(1).mean()),
    }  # fmt: skip


def _resampled(gap: np.ndarray, parts: list[np.ndarray], count: int) -> tuple[float, float]:
    """The 95 % interval of Σ |sum of the gaps of a bin| / N over resamples of the images of each bin."""
    draw, errors = np.random.default_rng(0), np.zeros(RESAMPLES)
    for part in parts:
        picks = draw.integers(0, len(part), (RESAMPLES, len(part)))
        errors += np.abs(gap[part][picks].sum(1)) / count
    low, high = np.quantile(errors, [0.025, 0.975])
    return float(low), float(high)


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T of softmax(z/T) with the least negative log-likelihood on these images (Guo et al. 2017, section 4.2), by
    golden section over log T, 0.05 to 20: the likelihood has one hump in 1/T.
    """
    z = logits.astype(np.float64) - logits.max(1, keepdims=True)
    chosen = z[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scaled = z * math.exp(-log_temperature)
        return float((np.log(np.exp(scaled).sum(1)) - chosen * math.exp(-log_temperature)).mean())

    low, high, golden = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        first, second = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, second) if loss(first) < loss(second) else (first, high)
    return math.exp((low + high) / 2)


def noise_images(facts: dict[str, Any]) -> float:
    """One standard error of the difference of right answers from the baseline's, in images: that of paired counts,
    √(b + c − (b − c)²/n). At least that of one image, since none that differs is no proof that none would.
    """
    lost, won = facts["baseline_only"], facts["this_only"]
    return float(max(1.0, lost + won - (lost - won) ** 2 / facts["n"]) ** 0.5)


def drop_points(facts: dict[str, Any]) -> float:
    """Top-1 lost against the baseline, in percentage points (negative when gained)."""
    return 100.0 * (facts["baseline_correct"] - facts["correct"]) / facts["n"]


def most_drop_points(facts: dict[str, Any]) -> float:
    """The top-1 lost against the baseline that there may be on other images, in points: the upper end of its one-sided
    95 % interval.
    """
    return drop_points(facts) + 100.0 * _ONE_SIDED_95 * noise_images(facts) / facts["n"]


def fewest_images(drop: float) -> float:
    """How many images it takes at least to show with 95 % confidence that no more than `drop` points are lost: as many
    as when no answer differs. Infinite for 0 points.
    """
    return math.ceil(100.0 * _ONE_SIDED_95 / drop) if drop > 0 else math.inf
