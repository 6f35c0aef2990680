"""Images as a bad camera, a dark room or a stingy network leaves them: five corruptions at three severities.

The kinds are among those of Hendrycks and Dietterich 2019 ("Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations"); severities lie in the range of their ImageNet-C and CIFAR-10-C and are not theirs, so
numbers compare networks with each other, not with published ones. All is made here from the images at hand: the same
images, severity and seed give the same bytes.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from compress import randomness

SEVERITIES = (1, 2, 3)
_NOISE = (0.04, 0.08, 0.12)  # standard deviation, of the range of a pixel
_BLUR = (0.015, 0.025, 0.04)  # radius (standard deviation), of the shorter side
_JPEG = (40, 20, 10)  # quality
_BRIGHTNESS = (0.1, 0.2, 0.3)  # added, of the range of a pixel
_CONTRAST = (0.6, 0.4, 0.25)  # of the distance from the image's mean that is left


def noise(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Gaussian noise, each value of each image its own."""
    index = np.arange(len(images))[:, None]
    counters = np.arange(images[0].size)[None]
    drawn = randomness.normal(randomness.derive("noise", severity, seed), index, counters).astype(np.float32)
    return _pixels(images + 255 * _NOISE[severity - 1] * drawn.reshape(images.shape))


def blur(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Gaussian blur."""
    # below a third of a pixel nothing would change
    radius = max(0.3 * severity, _BLUR[severity - 1] * min(images.shape[1:3]))
    return _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def jpeg(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Compressed as JPEG and read again."""

    def through(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG[severity - 1])
        return Image.open(buffer, formats=("JPEG",))

    return _each(images, through)


def brightness(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Overexposed: brighter everywhere, what is beyond white is cut off."""
    return _pixels(images + np.float32(255 * _BRIGHTNESS[severity - 1]))


def contrast(images: np.ndarray, severity: int, seed: int) -> np.ndarray:
    """Flat, as in fog: each value nearer to the image's mean."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)
    return _pixels(mean + np.float32(_CONTRAST[severity - 1]) * (images - mean))


# each takes images uint8 [N,H,W,C], a severity from SEVERITIES and a seed, and gives new ones
KINDS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    function.__name__: function for function in (noise, blur, jpeg, brightness, contrast)
}


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    out = np.empty_like(images)
    for index, image in enumerate(images):
        grey = image.shape[2] == 1
        out[index] = np.asarray(change(Image.fromarray(image[..., 0] if grey else image))).reshape(image.shape)
    return out
