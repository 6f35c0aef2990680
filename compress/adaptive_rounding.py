"""Adaptive rounding: each weight is rounded up or down so that its layer's outputs, not its weights, come nearest.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound). Layer by layer in the
order of the graph, with V one number for each weight,

    h(V) = clip(1.2 σ(V) − 0.1, 0, 1)                                              equation 23
    W̃    = s · clip(⌊W / s⌋ + h(V), −127, 127)                                     equation 22
    loss = mean of (W x − W̃ x̂)² / var(W x) + λ mean of (1 − |2 h(V) − 1|^β)        equations 24, 25

x are the float file's inputs of the layer and x̂ the quantized file's, the layers before rounded already (asymmetric
reconstruction). β falls from 20 to 2 after the first fifth, in which the second term is absent; λ = 0.01, Adam at 1e-2.
Deviations: outputs are compared before the activation, and both terms are means, the first in units of the outputs'
variance, so that λ means the same for every layer. A layer keeps its nearest rounding where the other is no better.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress import qdq
from compress.calibrate import Outputs
from compress.progress import counter

IMAGES = 128
BATCH = 32
LAMBDA = 0.01
BETA = (20.0, 2.0)
WARMUP = 0.2  # of the steps are without the second term
LEARNING_RATE = 1e-2


def round_adaptively(prepared: Path, quantized: Path, images: np.ndarray, *, steps: int, seed: int) -> dict[str, Any]:
    """Rewrite the int8 weights of convolutions in the file `quantized`, which was written from the float file
    `prepared`, over (at most `IMAGES` of) the uint8 images `[N,H,W,C]`. Returns facts.
    """
    import onnx

    images = images[:IMAGES]
    model, original = onnx.load(quantized), onnx.load(prepared)
    floats = {node.name: node for node in original.graph.node}
    due = [layer for layer in qdq.quantized_layers(model) if layer.node.name in floats and layer.node.op_type == "Conv"]
    show, changed, gained = counter("rounding", "layers"), 0, 0
    for number, layer in enumerate(due):
        inputs = _values(model, layer.node.input[0], images)
        wanted = _values(original, floats[layer.node.name].output[0], images)
        better, moved = _layer(original, layer, floats[layer.node.name], inputs, wanted, steps, seed + number)
        gained += better
        changed += moved
        show(number + 1, len(due))
    onnx.save(model, quantized)
    return {"rounded_layers": gained, "weights_rounded_otherwise": changed}


def _values(model: Any, name: str, images: np.ndarray) -> np.ndarray:
    """float32 `[N,C,H,W]` of one tensor."""
    return np.concatenate([values[name] for values in Outputs(model, (name,)).of(images)])


def _layer(
    original: Any, layer: qdq.QuantizedLayer, source: Any, inputs: np.ndarray, wanted: np.ndarray, steps: int, seed: int
) -> tuple[bool, int]:
    import torch
    import torch.nn.functional as F
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in original.graph.initializer}
    weight = torch.from_numpy(numpy_helper.to_array(constants[source.input[1]]).copy())
    stored = numpy_helper.to_array(layer.weight)
    scale, zero = (
        torch.from_numpy(np.atleast_1d(value).astype(np.float32)).reshape(-1, 1, 1, 1)
        for value in (layer.scale, layer.zero)
    )
    bias = torch.from_numpy(numpy_helper.to_array(constants[source.input[2]]).copy()) if len(source.input) > 2 else None
    lists = {a.name: list(a.ints) for a in source.attribute}
    strides, dilations = (lists.get(name, [1, 1]) for name in ("strides", "dilations"))
    groups = next((a.i for a in source.attribute if a.name == "group"), 1)
    top, left, bottom, right = lists.get("pads", [0, 0, 0, 0])
    x = F.pad(torch.from_numpy(inputs), (left, right, top, bottom))
    y = torch.from_numpy(wanted)

    def answer(weights: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return F.conv2d(batch, weights, bias, stride=strides, dilation=dilations, groups=groups)

    floor = torch.floor(weight / scale)
    part = (weight / scale - floor).clamp(0.01, 0.99)
    floor = floor + zero
    v = torch.logit((part + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=LEARNING_RATE)
    variance = y.var().clamp(min=1e-12)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        index = torch.randint(len(x), (BATCH,), generator=generator)
        h = (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)
        tried = scale * ((floor + h).clamp(layer.low, layer.high) - zero)
        loss = F.mse_loss(answer(tried, x[index]), y[index]) / variance
        share = (step / steps - WARMUP) / (1 - WARMUP)
        if share > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - share)
            loss = loss + LAMBDA * (1 - (2 * h - 1).abs() ** beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = (floor + (v > 0)).clamp(layer.low, layer.high)
        nearest = torch.from_numpy(stored.astype(np.float32))
        errors = [F.mse_loss(answer(scale * (q - zero), x), y).item() for q in (nearest, found)]
    if not errors[1] < errors[0]:
        return False, 0
    layer.weight.CopyFrom(numpy_helper.from_array(found.numpy().astype(stored.dtype), layer.weight.name))
    return True, int((found != nearest).sum())
