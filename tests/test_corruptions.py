"""Corrupted images are a function of the images; a file's loss is counted beside another's on the very same ones."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from compress import corruptions, robustness
from compress.cli.main import compress as group
from compress.report import plots_corruptions
from compress.report.labels import Labels

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"


@pytest.fixture(scope="module", params=[(8, 8, 1), (40, 32, 3)], ids=["grey", "colour"])
def images(request) -> np.ndarray:
    """Smooth shapes with an edge, as photographs have them."""
    height, width, channels = request.param
    y, x = np.mgrid[0:height, 0:width]
    one = 120 + 60 * np.sin(y / 3)[..., None] + 40 * (x > width // 2)[..., None] + np.zeros(channels)
    return np.clip(np.stack([one - 10 * k for k in range(5)]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_each_is_a_function_of_the_images_and_worse_with_severity(kind, images):
    corrupt = corruptions.KINDS[kind]
    before = images.copy()
    found = [corrupt(images, severity, 3) for severity in corruptions.SEVERITIES]
    assert np.array_equal(images, before)
    for severity, made in zip(corruptions.SEVERITIES, found, strict=True):
        assert made.dtype == np.uint8 and made.shape == images.shape
        assert np.array_equal(made, corrupt(images, severity, 3))
        # one image alone is corrupted as among others
        assert np.array_equal(made[:1], corrupt(images[:1], severity, 3))
    errors = [np.abs(made.astype(float) - images).mean() for made in found]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_noise_has_its_spread_and_depends_on_the_seed():
    flat = np.full((4, 64, 64, 3), 128, np.uint8)
    made = corruptions.noise(flat, 2, 0).astype(float) - 128
    assert made.std() == pytest.approx(0.08 * 255, rel=0.02) and abs(made.mean()) < 0.3
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made, corruptions.noise(flat, 2, 1) - 128.0)


def test_contrast_brightness_and_jpeg_are_what_they_are_called(images):
    low = corruptions.contrast(images, 3, 0).astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert np.allclose(low.mean(axis=(1, 2, 3)), means, atol=0.5)
    assert np.allclose(low.std(axis=(1, 2, 3)), 0.25 * images.std(axis=(1, 2, 3)), rtol=0.05)
    bright = corruptions.brightness(images, 1, 0).astype(float)
    assert np.array_equal(bright, np.minimum(255, np.rint(images + np.float32(25.5))))
    buffer, grey = io.BytesIO(), images.shape[3] == 1
    Image.fromarray(images[2, ..., 0] if grey else images[2]).save(buffer, "JPEG", quality=10)
    expected = np.asarray(Image.open(buffer)).reshape(images[2].shape)
    assert np.array_equal(corruptions.jpeg(images, 3, 0)[2], expected)


def test_what_is_lost_beside_what_another_loses():
    clean, base = np.array([True, True, True, False]), np.array([True, True, True, True])
    own = {"a": np.array([[True, False, False, False]] * 3), "b": np.array([[True, True, False, False]] * 3)}
    other = {"a": np.array([[True, True, True, False]] * 3), "b": np.array([[True, True, True, True]] * 3)}
    found = robustness.facts(clean, own, base, other)
    assert found["kinds"] == {"a": [1, 1, 1], "b": [2, 2, 2]} and found["n"] == 4
    # of the second image half is lost, of the third all; the other loses half of the fourth
    assert found["lost_points"] == pytest.approx(37.5) and found["extra_points"] == pytest.approx(37.5 - 12.5)
    extra = np.array([0, 50, 100, -50.0])
    half = 1.96 * extra.std(ddof=1) / 2
    assert (found["low"], found["high"]) == pytest.approx((25 - half, 25 + half))
    same = robustness.facts(clean, own, clean, own)
    assert (same["extra_points"], same["low"], same["high"]) == (0, 0, 0)


@pytest.mark.slow
def test_the_command_counts_them(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path))
    asked, kept = robustness.right_answers, {}

    def once(artifact, *given, **options):
        if artifact.digest not in kept:
            kept[artifact.digest] = asked(artifact, *given, **options)
        return kept[artifact.digest]

    monkeypatch.setattr(robustness, "right_answers", once)  # the second form of the same numbers asks nothing again
    wanted = ["eval", str(RUN / "student.onnx"), str(RUN / "student.int8.onnx"), "--data", "digits", "--corruptions"]
    done = CliRunner().invoke(group, wanted, catch_exceptions=False)
    assert done.exit_code == 0 and "against the first" in done.output and "contrast" in done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout
    rows = json.loads(CliRunner().invoke(group, [*wanted, "--json"]).stdout)
    first, second = (row["corruptions"] for row in rows)
    assert first["extra_points"] == 0 and first["lost_points"] > 0 and set(second["kinds"]) == set(corruptions.KINDS)
    assert second["low"] <= second["extra_points"] <= second["high"]


def test_the_plot_has_each_mark_where_it_belongs():
    """One file, one kind: 90 % as the images are, 60, 50 and 40 % of the corrupted ones."""
    severities = [{"value": share} for share in (0.6, 0.5, 0.4)]
    row = {"stage": "teacher", "kinds": {"blur": {"mean": {"value": 0.5}, "severities": severities}}}
    row |= {"change_fraction": {"value": -0.4}, "against_teacher_fraction": {"value": None}}
    row["change_fraction"] |= {"low": None, "high": None, "reason": ""}
    labels = Labels(stages=("teacher",), runtimes=("ort_cpu",), many_threads=False, many_batches=False)
    drawn = str(plots_corruptions.corruptions({"derived": {"corruptions": [row]}}, labels))
    clean, mean = (float(x) for x in re.findall(r'<use class="mark s0" x="([\d.]+)"', drawn))
    ends = [float(x) for pair in re.findall(r'class="whisker s0" d="M ([\d.]+) \S+ L ([\d.]+) ', drawn) for x in pair]
    assert ends[0] < mean < ends[1] < clean
    # equal points are equal lengths: the mean lies amid its span, and 40 points below the first row
    assert mean - ends[0] == pytest.approx(ends[1] - mean, abs=0.2)
    assert clean - mean == pytest.approx(4 * (mean - ends[0]), abs=0.5)
