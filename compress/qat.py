"""Quantization-aware training: the weights and biases of an int8 file, trained through its own rounding.

What is trained is the QDQ file itself, run by torch: scales and zero points stay as calibration left them, weights are
kept in float beside it and rounded at every step, and the gradient goes straight through the rounding (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). BatchNorm is in
the weights already, as in the file that ships, so nothing has to be folded or converted afterwards: the integers of
the trained weights are written over those of the file.

Each weight is trained in units of its channel's scale times 127, since the scales of one depthwise layer differ by
factors of 100 and one learning rate has to suit all.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import qdq
from compress.onnx_torch import Graph

UNIT = 127
BIAS_UNIT = 127 * 255  # of the bias's own step: the largest product of one weight and one activation


class Trained(nn.Module):
    """The QDQ file at `quantized`, which was written from the float file `prepared`, with weights that can be trained.

    Raises InputRejected for a file with an operator that torch has no counterpart of here.
    """

    def __init__(self, prepared: Path, quantized: Path):
        import onnx
        from onnx import numpy_helper

        super().__init__()
        self.model, original = onnx.load(quantized), onnx.load(prepared)
        floats = {node.name: node for node in original.graph.node}
        constants = {tensor.name: tensor for tensor in original.graph.initializer}
        self.layers = [layer for layer in qdq.quantized_layers(self.model) if layer.node.name in floats]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for number, layer in enumerate(self.layers):
            value = numpy_helper.to_array(constants[floats[layer.node.name].input[1]])
            scale = np.broadcast_to(layer.scale, value.shape[layer.axis]).astype(np.float32)
            shape = [-1 if i == layer.axis else 1 for i in range(value.ndim)]
            self.weights.append(nn.Parameter(torch.from_numpy(value / (UNIT * scale.reshape(shape)))))
            zero = np.broadcast_to(layer.zero, len(scale)).astype(np.int32)
            self.register_buffer(f"scale_{number}", torch.from_numpy(scale.copy()), persistent=False)
            self.register_buffer(f"zero_{number}", torch.from_numpy(zero.copy()), persistent=False)
            if layer.bias is not None:
                step = np.broadcast_to(layer.bias_scale, value.shape[layer.axis]).astype(np.float32)
                levels = numpy_helper.to_array(layer.bias).astype(np.float32)
                self.biases.append(nn.Parameter(torch.from_numpy(levels / BIAS_UNIT)))
                self.register_buffer(f"step_{number}", torch.from_numpy(step.copy()), persistent=False)
        names = [name for layer in self.layers for name in layer.node.input[1 : 2 if layer.bias is None else 3]]
        self.graph = Graph(self.model, given=tuple(names))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N,K]` of images float32 `[N,C,H,W]` in [0,1], as the file in exact int8 arithmetic gives them."""
        given, biases = {}, iter(self.biases)
        for number, layer in enumerate(self.layers):
            given[layer.node.input[1]] = self._rounded(number)
            if layer.bias is not None:
                given[layer.node.input[2]] = next(biases) * (BIAS_UNIT * self.get_buffer(f"step_{number}"))
        return self.graph(images, given)

    def _rounded(self, number: int) -> Tensor:
        """The weight of a layer as its integers stand for it."""
        layer, weight, scale = self.layers[number], self.weights[number], self.get_buffer(f"scale_{number}")
        return torch.fake_quantize_per_channel_affine(
            weight * (UNIT * scale.reshape(self._shape(number))), scale, self.get_buffer(f"zero_{number}"), layer.axis,
            layer.low, layer.high,
        )  # fmt: skip

    def _shape(self, number: int) -> list[int]:
        """One number a channel, along the channels of a weight."""
        return [-1 if i == self.layers[number].axis else 1 for i in range(self.weights[number].dim())]

    @torch.no_grad()
    def write(self, target: Path) -> None:
        """Write the file with the trained weights, as integers."""
        import onnx
        from onnx import numpy_helper

        biases, limits = iter(self.biases), np.iinfo(np.int32)
        for number, layer in enumerate(self.layers):
            scale, zero = (
                self.get_buffer(f"{name}_{number}").reshape(self._shape(number)) for name in ("scale", "zero")
            )
            levels = ((self._rounded(number) / scale).round() + zero).numpy()
            stored = numpy_helper.to_array(layer.weight)
            layer.weight.CopyFrom(numpy_helper.from_array(levels.astype(stored.dtype), layer.weight.name))
            if layer.bias is not None:
                steps = np.rint(next(biases).numpy().astype(np.float64) * BIAS_UNIT).clip(limits.min, limits.max)
                layer.bias.CopyFrom(numpy_helper.from_array(steps.astype(np.int32), layer.bias.name))
        onnx.save(self.model, target)


def float_answers(path: Path) -> Any:
    """A float ONNX file as a frozen torch module: the first of the teachers."""
    import onnx

    return Graph(onnx.load(path)).eval().requires_grad_(False)
