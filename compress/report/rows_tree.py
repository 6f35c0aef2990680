"""What a soft decision tree answers, leaf by leaf, and how some images get there."""

import base64
import io
from typing import Any

import numpy as np

from compress.report import format as fmt

MOST_LEVELS = 5  # of inner nodes whose filters are shown; a deeper tree would not be readable
_MOST_PIXELS = 512  # a side


def tree_row(facts: dict[str, Any]) -> dict[str, Any] | None:
    """Of a report with a tree: each leaf's `best` class and its `probability`, the share of the images that reach each
    node, and each sample's turns and answer. None without a tree.

    Raises ValueError where the parts do not fit each other.
    """
    tree = facts.get("tree")
    if not tree:
        return None
    names, depth, leaves = facts["dataset"]["class_names"], tree["depth"], tree["leaves"]
    nodes = len(leaves) - 1
    if not 1 <= depth <= 16 or len(leaves) != 2**depth or len(tree["reached"]) != nodes + len(leaves):
        raise ValueError(
            f"a tree of depth {depth} has 2^{depth} leaves and one inner node less, got {len(leaves)} leaves"
        )
    if any(len(leaf) != len(names) for leaf in leaves):
        raise ValueError("a leaf of the tree has another number of classes than the data")
    if len(tree["filters"]) + 1 not in {2**levels for levels in range(1, min(depth, MOST_LEVELS) + 1)}:
        raise ValueError(f"{len(tree['filters'])} filters are no whole levels of a tree of depth {depth}, five at most")
    for data in (*tree["filters"], *(sample["image"] for sample in tree["samples"])):
        pixels(data)
    best = [max(range(len(leaf)), key=leaf.__getitem__) for leaf in leaves]
    images = tree["reached"][0]
    return {
        "leaves": [{"best": names[k], "probability": leaf[k]} for k, leaf in zip(best, leaves, strict=True)],
        "used_leaves": sum(1 for count in tree["reached"][nodes:] if count),
        "share": [count / images if images else 0.0 for count in tree["reached"]],
        "samples": [_sample(sample, depth, best, leaves, names) for sample in tree["samples"]],
    }


def _sample(
    sample: dict[str, Any], depth: int, best: list[int], leaves: list[list[float]], names: list[str]
) -> dict[str, Any]:
    path = sample["path"]
    if len(path) != depth + 1 or path[0] != 0:
        raise ValueError("a path of the tree does not go from its root to a leaf")
    turns = []
    for node, child in zip(path, path[1:], strict=False):
        if child not in (2 * node + 1, 2 * node + 2):
            raise ValueError(f"a path of the tree goes from node {node} to node {child}, which is not below it")
        turns.append("right" if child == 2 * node + 2 else "left")
    leaf = path[-1] - (2**depth - 1)
    answer = names[best[leaf]]
    return {
        "turns": turns,
        "leaf": leaf,
        "answer": answer,
        "probability": leaves[leaf][best[leaf]],
        "right": answer == sample["label"],
    }


def pixels(data: str) -> np.ndarray:
    """Base64 of a small PNG file as uint8 `[H,W,4]`. Raises ValueError for anything else."""
    from PIL import Image  # only a report with a tree needs it

    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]) as picture:
            if max(picture.size) > _MOST_PIXELS:
                raise ValueError(f"{picture.size[0]} x {picture.size[1]} pixels, allowed are {_MOST_PIXELS} a side")
            return np.asarray(picture.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture of the tree cannot be shown: {error}") from error


def path_words(document: dict[str, Any]) -> list[str]:
    """Each sample's path in words: `3: right, left → 3, 91.0 %`."""
    return [
        f"{sample['label']}: {', '.join(found['turns'])} → {found['answer']}, {fmt.percent(found['probability'])}"
        for sample, found in zip(document["tree"]["samples"], document["derived"]["tree"]["samples"], strict=True)
    ]
