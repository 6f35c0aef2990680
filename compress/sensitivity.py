"""How much accuracy hangs on each layer: mask a part of its channels, leave all others whole, and count."""

import copy
from typing import Any

import numpy as np

from compress import cutting, train
from compress.coupling import joined_unit
from compress.prune import Ranking, samples_of

SHARES = (0.25, 0.5, 0.75)  # of a family's channels, the least important first
IMAGES = 512


def of_families(ranking: Ranking, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How many of at most `IMAGES` of these images (uint8 `[N,H,W,C]`) are right with all channels, and for each family
    with each part of `SHARES` masked.
    """
    samples = samples_of(images, labels, IMAGES)
    images, labels = samples.images, samples.labels
    whole = ranking.network.state_dict()
    masked = copy.deepcopy(ranking.network)

    def correct() -> int:
        return int((train.predict(masked, images).argmax(1) == labels).sum())

    facts: dict[str, Any] = {"images": len(labels), "correct": correct(), "shares": list(SHARES), "families": []}
    for family, scores in zip(ranking.families, ranking.scores, strict=True):
        order, counts = scores.argsort(stable=True), []
        for share in SHARES:
            lowest = order[: round(share * len(order))]
            cutting.mask(masked, joined_unit(family.units[int(i)] for i in lowest))
            counts.append(correct())
        masked.load_state_dict(whole)
        facts["families"].append({"layer": family.layers[0].removeprefix("body."), "correct": counts})
    return facts
