"""The one place where it is decided how a file becomes pixels: for training, calibration, evaluation and benchmark.

The decisions: JPEG, PNG, WebP and BMP only, told by content and not by name; one frame; at most 64 megapixels; the EXIF
orientation applied; transparency laid over white; 16-bit grey scaled to 8 bits; colour profiles ignored; grey by the
ITU-R 601 weights; resized so that the image covers the target (antialiased bilinear), centre crop.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from compress.errors import InputRejected

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})

PREPROCESSING = {
    "version": 1,
    "formats": list(FORMATS),
    "orientation": "EXIF applied",
    "transparency": "over white",
    "sixteen_bit_grey": "divided by 257, rounded",
    "colour": "RGB or ITU-R 601 grey, colour profiles ignored",
    "resize": "cover the target, antialiased bilinear, centre crop",
    "range": "uint8 divided by 255",
    "layout": "NCHW",
}

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def shown(path: Path | str) -> str:
    """The path as text that can always be printed: control characters and undecodable bytes are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def decode(path: Path, *, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image as uint8 `[H,W,channels]`, `channels` 1 or 3, resized and cropped to `size` (H, W) unless None.

    Raises InputRejected naming the full path and the reason.
    """
    with _regular_file(path) as file:
        try:
            with _open(file) as image:
                upright = _upright(image)
                flat = _flatten(upright, "L" if channels == 1 else "RGB")
                pixels = np.asarray(flat if size is None else _cover(flat, size), dtype=np.uint8)
        except Exception as error:  # the decoders raise nearly every type on damaged bytes
            raise rejected(path, _reason(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def probe(path: Path) -> tuple[int, int, str]:
    """(width, height, mode) from the header alone, orientation applied; raises InputRejected as `decode` does."""
    with _regular_file(path) as file:
        try:
            with _open(file) as image:
                # the method of the base class: that of PNG would decode all pixels in search of a late EXIF chunk
                turned = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
                width, height = image.size[::-1] if turned else image.size
                return width, height, image.mode
        except Exception as error:  # as in `decode`
            raise rejected(path, _reason(error)) from error


def rejected(path: Path, reason: str) -> InputRejected:
    """The error for one image."""
    return InputRejected(
        f"cannot use the image {shown(path)}: {reason}",
        code="E-IMAGE-UNREADABLE",
        hint="repair or remove the file, or use `--on-bad skip`",
    )


def _regular_file(path: Path) -> BinaryIO:
    """Open for reading; never a FIFO or device, which might block for ever, even if swapped in after the check."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise rejected(path, "not a regular file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise rejected(path, unreadable(path, error)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise rejected(path, "not a regular file")
    return os.fdopen(handle, "rb")


def unreadable(path: Path, error: OSError) -> str:
    """Why a file cannot be opened."""
    if os.path.islink(path) and isinstance(error, FileNotFoundError):
        return f"the link points to {shown(os.readlink(path))}, which does not exist"
    return f"cannot be read: {error.strerror or error}"


class _Refused(Exception):
    """An image that the decoder would accept and we do not."""


def _open(file: BinaryIO) -> Image.Image:
    if os.fstat(file.fileno()).st_size == 0:
        raise _Refused("the file is empty (0 bytes)")
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(
            f"{image.width} x {image.height} is {image.width * image.height / 1e6:.0f} megapixels; "
            f"at most {MAX_PIXELS // 10**6} are allowed"
        )
    # MPO is what many telephones write: a JPEG with a preview behind it, and the first frame is the photograph
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _Refused(f"it is an animation of {getattr(image, 'n_frames', 'several')} frames; one frame is allowed")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"its content is not an image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it declares far more than the {MAX_PIXELS // 10**6} megapixels that are allowed"
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, _Refused) else f"cannot be decoded: {text}"


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    transpose = _TRANSPOSE.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if transpose is None else image.transpose(transpose)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the largest centred box of the target's shape: equal to resize, then crop, but safe for 30000 x 1."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    box_width, box_height = width * scale, height * scale
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
