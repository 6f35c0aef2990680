"""Taylor: a channel matters as much as the loss would change without it, to first order.

    saliency(w) = |w · E[∂L/∂w]|;  score(channel) = Σ saliency over everything that goes with it

L is the cross-entropy of the labels, E the mean over `SAMPLES` train images, the network in eval mode.
Source: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", equation 8, on
weights instead of activations as in Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning" (whose
equation 8 squares each term before it adds them). Losses are one unit for all layers, so nothing is divided.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.types import Samples

SAMPLES = 256
CHUNK = 32  # images in one graph: bounds the memory


def saliency(config: object, network: nn.Module, samples: Samples) -> dict[str, Tensor]:
    images = torch.from_numpy(samples.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(samples.labels)
    weights = {name: value for name, value in network.eval().named_parameters() if name.endswith("weight")}
    mean = {name: torch.zeros_like(value) for name, value in weights.items()}
    for some, their_labels in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        loss = F.cross_entropy(network(some), their_labels, reduction="sum") / len(labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for total, gradient in zip(mean.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient
    return {name: (value.detach() * mean[name]).abs() for name, value in weights.items()}


def scores(config: object, parts: list[Tensor]) -> list[Tensor]:
    return [part.sum(0) for part in parts]
