"""How a file stands corrupted images, beside another file on the same ones."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, corruptions
from compress.child import HERE, Host
from compress.types import Artifact, Dataset


def right_answers(
    artifact: Artifact, runtime: str, dataset: Dataset, scratch: Path, *, seed: int = 0, host: Host = HERE
) -> dict[str, np.ndarray]:  # fmt: skip
    """For each kind of corruption which images are answered right, bool `[severities,N]`. Raises as `bench.answers`."""
    found = {}
    threads = host.environment().cores_allowed
    for kind, corrupt in corruptions.KINDS.items():
        images = np.concatenate([corrupt(dataset.images, severity, seed) for severity in corruptions.SEVERITIES])
        logits = bench.answers(artifact, runtime, images, threads=threads, scratch=scratch, host=host)
        answers = logits.argmax(1).reshape(len(corruptions.SEVERITIES), -1)
        found[kind] = answers == dataset.labels
    return found


def facts(
    clean: np.ndarray, corrupted: dict[str, np.ndarray], base_clean: np.ndarray, base_corrupted: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Of a file (`clean` `[N]`, `corrupted` as above: right answers) and another: `kinds`, right answers by kind and
    severity; `lost_points`, of top-1 by the mean corruption; `extra_points`, how many more than the other loses, with
    its 95 % interval over images (`low`, `high`), which both were asked about.
    """
    lost, base_lost = _lost(clean, corrupted), _lost(base_clean, base_corrupted)
    extra = 100 * (lost - base_lost)
    half = 1.96 * float(extra.std(ddof=1)) / math.sqrt(len(extra)) if len(extra) > 1 else math.inf
    mean = float(extra.mean())
    return {
        "n": len(clean),
        "kinds": {kind: right.sum(1).tolist() for kind, right in corrupted.items()},
        "lost_points": 100 * float(lost.mean()),
        "extra_points": mean,
        "low": mean - half if math.isfinite(half) else None,
        "high": mean + half if math.isfinite(half) else None,
    }


def _lost(clean: np.ndarray, corrupted: dict[str, np.ndarray]) -> np.ndarray:
    """For each image, right answers lost by corruption, on average."""
    return clean.astype(np.float64) - np.concatenate(list(corrupted.values())).mean(0)
