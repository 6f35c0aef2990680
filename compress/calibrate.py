"""Calibration: the range of every activation of an ONNX file over real images, by one of several rules.

Images stream through in small batches, twice: once for the extremes, once for histograms over these. What is kept of
them is two numbers and `BINS` counts a tensor, so memory does not grow with the number of images. All rules but
min-max look at the same histogram. Ranges always hold zero, which must be exact: padding and ReLU give zeros.

    minmax       what was seen
    percentile   without the `1 − percentile` of values that are farthest out, half at each end
    mse          least expected squared error of rounding and clipping (Banner et al. 2019, with the histogram for the
                 assumed distribution)
    entropy      least KL divergence of the rounded distribution from the seen one (Migacz 2017, for ranges of two ends)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputRejected
from compress.progress import counter
from compress.worker import to_inputs

RULES = ("minmax", "percentile", "mse", "entropy")
BINS = 2048
LEVELS = 256
# ranges that are tried: these parts of what was seen, at either end
SHARES = np.linspace(1.0, 0.3, 71)
BATCH_BYTES = 2**26  # of all activations of one batch
MOST_IN_A_BATCH = 16

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of each tensor the extremes, and counts int64 `[BINS]` of equal bins between them."""

    extremes: Ranges
    counts: dict[str, np.ndarray]
    zeros: dict[str, np.ndarray]  # as `counts`, of the values that are exactly 0, as most are behind a ReLU


def look(path: Path, images: np.ndarray, *, histograms: bool = True) -> Seen:
    """What every activation of the float ONNX file at `path` takes on uint8 images `[N,H,W,C]`.

    `histograms=False` is for min-max alone, in half the time. Raises InputRejected where an activation is not
    finite.
    """
    outputs = Outputs(path)
    show = counter("calibrating", "images")
    rounds = 2 if histograms else 1
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    done = 0
    for values in outputs.of(images):
        for name, value in values.items():
            least, most = float(value.min()), float(value.max())
            if not np.isfinite((least, most)).all():
                raise InputRejected(
                    f"{path}: `{name}` is not finite on the calibration images, so it has no range",
                    code="E-CALIBRATION-RANGE",
                    hint="mend the file, or leave it in float",
                )
            low[name], high[name] = min(low.get(name, 0.0), least), max(high.get(name, 0.0), most)
        done += outputs.batch_size
        show(min(done, len(images)) // rounds, len(images))
    extremes = {name: (low[name], high[name]) for name in low}
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    zeros = {name: np.zeros(BINS, np.int64) for name in extremes}
    if histograms:
        done = 0
        for values in outputs.of(images):
            for name, value in values.items():
                least, most = extremes[name]
                scale = BINS / (most - least) if most > least else 0.0
                places = np.minimum(((value.ravel() - least) * scale).astype(np.int64), BINS - 1)
                counts[name] += np.bincount(places, minlength=BINS)
                zeros[name] += np.bincount(places[value.ravel() == 0], minlength=BINS)
            done += outputs.batch_size
            show((len(images) + min(done, len(images))) // 2, len(images))
    return Seen(extremes=extremes, counts=counts, zeros=zeros)


class Outputs:
    """The values of all, or of named, float tensors of an ONNX file, batch by batch; nothing is fused, so that each is
    what its node gives.
    """

    def __init__(self, source: Any, names: tuple[str, ...] = ()):
        """`source`: the path of a file, or a model in memory."""
        import onnx
        import onnxruntime
        from onnx import TensorProto, shape_inference

        # shape inference returns a copy: the model that was given stays as it is
        model = shape_inference.infer_shapes(onnx.load(source) if isinstance(source, Path) else source)
        taken = image_input(model.graph)
        self.input = taken.name
        typed = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
        made = [name for node in model.graph.node for name in node.output]
        self.names = tuple(
            name for name in made if name in typed and typed[name].elem_type == TensorProto.FLOAT
        ) if not names else names  # fmt: skip
        there = {output.name for output in model.graph.output}
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in self.names if name not in there
        )
        sizes = [_elements(typed[name]) for name in self.names if name in typed]
        few = max(1, min(MOST_IN_A_BATCH, BATCH_BYTES // max(1, 4 * sum(sizes))))
        self.batch_size = taken.type.tensor_type.shape.dim[0].dim_value or few
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def of(self, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """For each batch of uint8 images `[N,H,W,C]` the tensors by name, the input among them."""
        fixed = isinstance(self.session.get_inputs()[0].shape[0], int)
        for start in range(0, len(images), self.batch_size):
            given = to_inputs(images[start : start + self.batch_size])
            if fixed and len(given) < self.batch_size:  # a file of one batch size gets full batches
                given = np.concatenate([given, np.repeat(given[-1:], self.batch_size - len(given), axis=0)])
            found = self.session.run(list(self.names), {self.input: given})
            yield {self.input: given, **dict(zip(self.names, found, strict=True))}


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits `[N,K]` of a file of our own on uint8 images `[N,H,W,C]`, by the kernels that it will run in.

    In this process: where a file is asked once for each of its layers, children would take longer to start than to
    answer (`bench.answers` is for all else).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    step = taken.shape[0] if isinstance(taken.shape[0], int) else MOST_IN_A_BATCH
    parts = []
    for start in range(0, len(images), step):
        chunk = images[np.minimum(np.arange(start, start + step), len(images) - 1)]  # full batches, the last repeated
        parts.append(session.run(None, {taken.name: to_inputs(chunk)})[0])
    return np.concatenate(parts)[: len(images)]


def image_input(graph: Any) -> Any:
    """The graph's input that is no weight: old files list those as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return next(value for value in graph.input if value.name not in weights)


def _elements(tensor_type: Any) -> int:
    """Elements of one image's tensor: the batch, and what is unknown, count as one."""
    return int(np.prod([d.dim_value or 1 for d in tensor_type.shape.dim[1:]], dtype=np.int64))


def ranges(seen: Seen, rule: str, percentile: float) -> Ranges:
    """The range of each tensor by one of `RULES`; `percentile` is the part of the values inside, for that rule."""
    if rule == "minmax":
        return seen.extremes
    if rule == "percentile":
        return _percentile(seen, percentile)
    if rule == "mse":
        return {name: _searched(seen, name, seen.counts[name], _squared_error) for name in seen.extremes}
    return {name: _searched(seen, name, _without_zeros(seen, name), _divergence) for name in seen.extremes}


def _without_zeros(seen: Seen, name: str) -> np.ndarray:
    """The histogram without what is exactly 0: any range holds it at no cost, and where most values are 0, as behind a
    ReLU, the divergence would be that of this one bin and find the narrowest range best.
    """
    counts = seen.counts[name] - seen.zeros[name]
    return counts if counts.any() else seen.counts[name]


def _percentile(seen: Seen, share: float) -> Ranges:
    """Ranges that hold `share` of the values, with as much left out at one end as at the other."""
    found = {}
    for name, (low, high) in seen.extremes.items():
        heap = seen.counts[name].cumsum() / max(1, seen.counts[name].sum())
        edges = np.linspace(low, high, BINS + 1)
        outside = (1 - share) / 2
        least = edges[np.searchsorted(heap, outside, side="right")]
        most = edges[min(BINS, int(np.searchsorted(heap, 1 - outside)) + 1)]
        found[name] = (min(0.0, float(least)), max(0.0, float(most)))
    return found


def _searched(seen: Seen, name: str, counts: np.ndarray, cost: Callable[..., float]) -> tuple[float, float]:
    """The range of least cost: one end is moved, then the other, from the whole range."""
    low, high = seen.extremes[name]
    if high == low:
        return low, high
    edges = np.linspace(low, high, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    ends = [low, high]
    for end in (1, 0):
        if ends[end] == 0.0:
            continue
        tried = SHARES * float(ends[end])
        costs = [cost(centres, counts, *((low_, ends[1]) if end == 0 else (ends[0], low_))) for low_ in tried]
        ends[end] = float(tried[int(np.argmin(costs))])
    return ends[0], ends[1]


def _rounded(centres: np.ndarray, low: float, high: float) -> np.ndarray:
    """The level, 0 to 255, of each value."""
    scale = (high - low) / (LEVELS - 1)
    return np.clip(np.rint(centres / scale) + np.rint(-low / scale), 0, LEVELS - 1)


def _squared_error(centres: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / (LEVELS - 1)
    values = (_rounded(centres, low, high) - np.rint(-low / scale)) * scale
    # values inside of a bin are spread over it: finer than a level, they are off by the mean of that all the same
    return float((counts * (centres - values) ** 2).sum())


def _divergence(centres: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return np.inf
    seen = np.where(inside, counts, 0).astype(np.float64)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped = seen.copy()
    clipped[first] += counts[:first].sum()
    clipped[last] += counts[last + 1 :].sum()
    levels = _rounded(centres, low, high).astype(np.int64)
    there = (clipped > 0) & inside
    mass = np.bincount(levels[there], weights=seen[there], minlength=LEVELS)
    members = np.bincount(levels[there], minlength=LEVELS)
    spread = (mass / np.maximum(members, 1))[levels[there]]
    p, q = clipped[there] / clipped.sum(), np.maximum(spread, 1e-12) / max(seen.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())
