"""What the decoder accepts, how it turns it into pixels, and what it says about everything else."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import images
from compress.errors import InputRejected


def gradient(height: int = 6, width: int = 9) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 20, columns * 20, rows * 10 + columns * 7], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BAD = {
    "truncated.jpg": (noise("JPEG")[:-200], "truncated"),
    "truncated.png": (noise("PNG")[:-200], "cannot be decoded"),
    "truncated.webp": (noise("WEBP")[:-200], "cannot be decoded"),
    "truncated.bmp": (noise("BMP")[:-200], "truncated"),
    "header_only.jpg": (noise("JPEG")[:20], "not an image"),
    "empty.png": (b"", "empty (0 bytes)"),
    "page.jpg": (b"<!DOCTYPE html><html>404 not found</html>", "not an image of JPEG, PNG, WEBP or BMP"),
    "notes.png": (b"remember to label these", "not an image"),
    "vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "moving.gif": (animation("GIF"), "not an image"),
    "moving.webp": (animation("WEBP"), "animation of 2 frames"),
    "moving.png": (animation("PNG"), "animation of 2 frames"),
    "tiff.png": (encoded(Image.new("RGB", (3, 3)), "TIFF"), "not an image"),
    "bomb_over_our_cap.png": (png_that_declares(9000, 8000), "72 megapixels; at most 64"),
    "bomb_warned_about.png": (png_that_declares(10000, 10000), "megapixels"),
    "bomb_refused.png": (png_that_declares(60000, 60000), "megapixels"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_rejected_with_its_path_and_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputRejected) as caught:
        images.decode(path, channels=3)
    print(caught.value)
    assert str(path) in caught.value.message and reason in caught.value.message
    assert "--on-bad skip" in caught.value.hint and caught.value.exit_code == 5


def special_files(folder: Path) -> dict[str, tuple[Path, str]]:
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    return {
        "pipe": (folder / "pipe.png", "not a regular file"),
        "dangling": (folder / "dangling.png", "gone.png, which does not exist"),
        "loop": (folder / "loop.png", "cannot be read"),
        "device": (folder / "device.png", "not a regular file"),
        "folder": (folder / "folder.png", "not a regular file"),
        "absent": (folder / "absent.png", "cannot be read: No such file"),
    }


@pytest.mark.parametrize("kind", ["pipe", "dangling", "loop", "device", "folder", "absent"])
@pytest.mark.parametrize("action", ["decode", "probe"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, action: str, monkeypatch) -> None:
    path, reason = special_files(tmp_path)[kind]
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda p, *rest, **more: opened.append(str(p)) or real(p, *rest, **more))
    with pytest.raises(InputRejected) as caught:
        images.decode(path, channels=3) if action == "decode" else images.probe(path)
    print(caught.value)
    assert str(path) in caught.value.message and reason in caught.value.message
    assert str(path) not in opened


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(noise("PNG"))
    path.chmod(0)
    with pytest.raises(InputRejected, match="Permission denied"):
        images.decode(path, channels=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_all_eight_exif_orientations_give_the_same_array(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.kron(gradient(4, 6), np.ones((16, 16, 1), np.uint8))
    # how a camera that was held so stores the pixels: the inverse of what the tag asks for
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    decoded = images.decode(path, channels=3)
    # PNG is lossless; JPEG at quality 100 rounds twice (3 levels), while a wrong turn differs by 20 levels and more
    tolerance = 0 if kind == "PNG" else 3
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= tolerance
    assert images.probe(path) == (96, 64, "RGB")


def decoded(tmp_path: Path, image: Image.Image, channels: int, kind: str = "PNG", **options) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(encoded(image, kind, **options))
    return images.decode(path, channels=channels)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    pixels = decoded(tmp_path, Image.fromarray(wide), 1)
    assert pixels[..., 0].tolist() == [[0, 1, 128, 255]]
    assert decoded(tmp_path, Image.fromarray(wide), 3).tolist() == np.repeat(pixels, 3, axis=2).tolist()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    assert decoded(tmp_path, rgba, 3).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (40, 255))
    assert decoded(tmp_path, grey, 1).tolist() == [[[255], [40]]]


def test_a_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decoded(tmp_path, palette, 3).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert decoded(tmp_path, palette, 3, transparency=0).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decoded(tmp_path, bits, 1).tolist() == [[[0], [255]]]
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decoded(tmp_path, red, 3, "JPEG", quality=95)
    # a JPEG of one colour is off by a few levels at most; forgetting that CMYK is inverted is off by 255
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_format_is_told_by_content_and_not_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(Image.new("RGB", (5, 4), (9, 9, 9)), kind))
    assert images.decode(path, channels=3).shape == (4, 5, 3)
    assert images.probe(path)[:2] == (5, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30000), (30000, 1), (7, 5)])
def test_odd_shapes_fill_the_target_without_distortion_or_a_huge_buffer(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(encoded(Image.new("RGB", shape[::-1], (1, 2, 3))))
    pixels = images.decode(path, channels=3, size=(96, 96))
    assert pixels.shape == (96, 96, 3) and (pixels == [1, 2, 3]).all()


def test_resizing_keeps_the_centre_and_cuts_the_ends(tmp_path: Path) -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 200
    path = tmp_path / "wide.png"
    path.write_bytes(encoded(Image.fromarray(wide)))
    assert (images.decode(path, channels=3, size=(10, 10)) == 200).all()
    half = images.decode(path, channels=3, size=(5, 10))
    # columns 16 and 17 of the original become column 3; squashed without a crop, it would come from the dark 12 to 15
    assert half[2, 3].tolist() == [200] * 3 and half[2, 1].tolist() == [0] * 3


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    path = tmp_path / "stripes.png"
    path.write_bytes(encoded(Image.fromarray(stripes)))
    small = images.decode(path, channels=3, size=(8, 8)).astype(int)
    # the mean of the stripes is 127.5; taking single pixels would give 0 or 255; the filter at the border leans by some
    assert np.abs(small - 127.5).max() < 20


@pytest.mark.parametrize("name", ["with space.png", "naïve-猫.png", "two\nlines.png", "-rf.png", b"not-utf8-\xff.png"])
def test_unusual_names_are_read_and_can_be_printed(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(noise("PNG"))
    assert images.decode(path, channels=3).shape == (40, 40, 3)
    path.write_bytes(b"")
    with pytest.raises(InputRejected) as caught:
        images.decode(path, channels=3)
    print(caught.value)
    assert "\n" not in caught.value.message
    caught.value.message.encode("utf-8")


def test_the_preprocessing_record_fits_into_json_metadata() -> None:
    assert json.loads(json.dumps(images.PREPROCESSING)) == images.PREPROCESSING
