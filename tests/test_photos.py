"""The whole chain on a folder of photographs as people have them: JPEGs of many sizes, some of them turned by EXIF."""

import json

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps
from test_pipeline import compress as command_line

from compress import plan, recipe
from compress.store import Store

SIDE = 16
COUNTS = {"train": 20, "val": 7}  # of each class
COLOURS = {"brick": (180, 80, 60), "moss": (70, 150, 70), "slate": (70, 90, 160)}
ORIENTATIONS = (1, 6, 8, 3)  # as cameras write them: upright, and held in three other ways
AS_HELD = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}


def photograph(generator: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    """Wider than high or the other way round, lighter above than below: a turn shows."""
    width, height = generator.choice(np.arange(36, 72), size=2, replace=False)
    light = np.linspace(1.3, 0.7, height)[:, None, None]
    coarse = generator.normal(0, 25, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray((light * colour + coarse).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photographs(tmp_path):
    """train/ and val/ with a folder for each class, and no test/."""
    generator, root = np.random.default_rng(0), tmp_path / "photographs"
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image, orientation = photograph(generator, colour), ORIENTATIONS[number % len(ORIENTATIONS)]
                stored = image.transpose(AS_HELD[orientation]) if orientation in AS_HELD else image
                exif = Image.Exif()
                exif[0x0112] = orientation
                stored.save(root / split / name / f"IMG_{number:04}.jpg", quality=90, exif=exif)
    return root


def seen(root, split: str) -> np.ndarray:
    """The images of a split as another program would read them, uint8 `[N,H,W,3]`."""
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in sorted((root / split).glob("*/*.jpg"))]
    sizes = {image.size for image in upright}
    assert len(sizes) > 10 and all(width != height for width, height in sizes)
    return np.stack([np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR)) for image in upright])


@pytest.mark.slow
def test_a_folder_of_photographs_goes_through_the_whole_chain(photographs, tmp_path):
    done = command_line(
        tmp_path, "run", "--data", str(photographs), "--student", "shufflenet", "--kd", "kd", "--quantize", "int8",
        "--teacher", "mlp:hidden=32,depth=1", "--epochs", "2", "--max-drop", "100", "--runtimes", "ort_cpu",
        "--set", "teacher_epochs=2", "--set", f"image_size={SIDE}", "--set", "batch_size=16", "--set", "tier=smoke",
        "--set", "least_speedup=0", "--set", "name=photographs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = tmp_path / "models/photographs"
    document = json.loads((tmp_path / "reports/photographs/report.json").read_text())
    images, labels = seen(photographs, "val"), np.repeat(range(3), COUNTS["val"])

    # what is reported is val, turned and cut as other programs do; choices are made on a part of train
    told = document["dataset"]
    assert told["class_names"] == list(COLOURS) and told["report"] == len(labels)
    assert told["train"] + told["select"] == 3 * COUNTS["train"] and told["select"] > 0
    splits = plan.load_data(recipe.from_values(recipe.read(models / "recipe.toml")), Store(tmp_path / "store"))
    assert np.array_equal(splits.report.labels, labels)
    assert np.abs(splits.report.images.astype(int) - images).max() <= 1

    manifest = json.loads((models / "manifest.json").read_text())
    assert manifest["input"]["shape"] == ["batch", 3, SIDE, SIDE]
    right = {row["stage"]: row for row in document["accuracy"]}
    files = {"teacher": "teacher.onnx", "distilled": "student.onnx", "int8": "student.int8.onnx"}
    assert {stage["name"]: stage["decision"] for stage in document["stages"]} == dict.fromkeys(files, "kept")
    for stage, name in files.items():
        session = onnxruntime.InferenceSession(models / name, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        contract = json.loads(metadata["compress.preprocessing"])
        assert contract["size"] == [SIDE, SIDE] and contract["channels"] == 3, name
        assert json.loads(metadata["compress.class_names"]) == list(COLOURS), name
        given = splits.report.images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        (logits,) = session.run(None, {"input": given})
        assert logits.shape == (len(labels), 3) and np.isfinite(logits).all(), name
        assert right[stage]["n"] == len(labels), name
        assert right[stage]["correct"] == (logits.argmax(1) == labels).sum(), name
