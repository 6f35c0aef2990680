"""Evaluate: what an artifact's own bytes answer, counted. Facts only; intervals are made in `report/rows.py`."""

import math
from typing import Any

import numpy as np

_ONE_SIDED_95 = 1.645  # standard errors of a normal distribution


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
