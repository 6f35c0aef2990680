"""What the report draws of a soft decision tree: filters, leaves, how many images take each way, and some paths."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.network import Network
from compress.report.rows_tree import MOST_LEVELS
from compress.types import Dataset

_SAMPLES = 8
_AT_ONCE = 256  # images
# who sees no colours still sees the sign: orange is the darker of the two on paper
_LEFT, _RIGHT = (194, 86, 10), (0, 114, 178)


def of_tree(network: Network, picture: Callable[..., Any], stage: str, dataset: Dataset) -> dict[str, Any]:
    """Facts for `report.tree`, from all images of `dataset`; `picture` is that of the network's entry."""
    parts = []
    for start in range(0, len(dataset.images), _AT_ONCE):
        images = np.ascontiguousarray(dataset.images[start : start + _AT_ONCE].transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(images).float() / 255
        found = picture(network.body, pixels * network.scale + network.shift)
        parts.append(found.paths.numpy())
    paths = np.concatenate(parts)
    reached = np.bincount(paths.flatten(), minlength=len(found.filters) + len(found.leaves))
    drawn = found.filters[: 2**MOST_LEVELS - 1].numpy()
    return {
        "stage": stage,
        "depth": paths.shape[1] - 1,
        "filters": [_signed_png(weights.mean(0)) for weights in drawn],
        "reached": reached.tolist(),
        "leaves": np.round(found.leaves.double().numpy(), 4).tolist(),
        "samples": [
            {
                "image": _png(dataset.images[i]),
                "label": dataset.class_names[dataset.labels[i]],
                "path": paths[i].tolist(),
            }
            for i in _first_of_each(dataset.labels)
        ],
    }


def _first_of_each(labels: np.ndarray) -> list[int]:
    """The first image of each class, of the first few classes."""
    return [int(i) for i in np.unique(labels, return_index=True)[1][:_SAMPLES]]


def _signed_png(weights: np.ndarray) -> str:
    """Weights `[H,W]` as a picture: the colour is the sign, the opacity the size against the largest."""
    size = np.abs(weights) / max(float(np.abs(weights).max()), 1e-12)
    colours = np.where(weights[..., None] > 0, np.array(_RIGHT), np.array(_LEFT))
    return _png(np.concatenate([colours, np.rint(255 * size)[..., None]], axis=2).astype(np.uint8))


def _png(pixels: np.ndarray) -> str:
    """Pixels uint8 `[H,W,C]`, C of 1, 3 or 4, as base64 of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
