"""Hessian, "optimal brain damage": a channel matters as much as the loss would change without it, to second order.

    saliency(w) = ½ w² · h,  h = E[(∂L/∂w)²];  score(channel) = Σ saliency over everything that goes with it

L is the cross-entropy of the labels of one image, E the mean over `SAMPLES` train images, the network in eval mode.
Source: LeCun et al. 1990, "Optimal Brain Damage", equation 5, with the diagonal of the Hessian taken from the squared
gradients of single images (the empirical Fisher information, equal to it where the network fits its labels).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.types import Samples

SAMPLES = 128


def saliency(config: object, network: nn.Module, samples: Samples) -> dict[str, Tensor]:
    images = torch.from_numpy(samples.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(samples.labels)
    weights = {name: value for name, value in network.eval().named_parameters() if name.endswith("weight")}
    curvature = {name: torch.zeros_like(value) for name, value in weights.items()}
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(network(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for total, gradient in zip(curvature.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient**2 / len(images)
    return {name: 0.5 * value.detach() ** 2 * curvature[name] for name, value in weights.items()}


def scores(config: object, parts: list[Tensor]) -> list[Tensor]:
    return [part.sum(0) for part in parts]
