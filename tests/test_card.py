"""The card: what it promises is there, its Python runs as it stands, and hostile names stay names."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from test_report import make_facts

from compress import report
from compress.report import card
from compress.worker import to_inputs

ROOT = Path(__file__).parents[1]
NAME = "digits-mobilenet"


def published() -> dict:
    return json.loads((ROOT / "reports" / NAME / "report.json").read_text(encoding="utf-8"))


def blocks(text: str) -> dict[str, str]:
    return dict(re.findall(r"```(\w+)\n(.*?)\n```", text, re.S))


def rendered(document: dict) -> str:
    return card.render(document, [], Path("models/x"), Path("reports/x"))


def test_its_python_answers_as_the_file_does(tmp_path: Path) -> None:
    shutil.copy(ROOT / "models" / NAME / "student.int8.onnx", tmp_path)
    with np.load(ROOT / "models" / NAME / "student.int8.golden.npz") as golden:
        images = golden["images"]
    session = onnxruntime.InferenceSession(str(tmp_path / "student.int8.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": to_inputs(images[:3])})[0].argmax(1)
    code = blocks(rendered(published()))["python"]
    assert len(code.splitlines()) <= 10
    (tmp_path / "answer.py").write_text(code)
    for image, answer in zip(images, expected, strict=False):
        Image.fromarray(image[..., 0]).save(tmp_path / "photo.png")
        done = subprocess.run(
            [sys.executable, "answer.py", "photo.png"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == str(answer), done.stderr


def test_it_tells_what_how_and_how_far() -> None:
    document = report.document_of(make_facts())
    text = rendered(document)
    found = blocks(text)
    assert set(found) == {"python", "cpp", "kotlin", "text"}
    assert all("student.int8.onnx" in found[language] for language in ("python", "kotlin"))
    assert (
        "1, 3, 32, 32" in found["cpp"] and "longArrayOf(1, 3, 32, 32)" in found["kotlin"] and '"RGB"' in found["python"]
    )
    assert document["derived"]["verdict"]["sentence"] in text and "10,000 images" in text
    assert "Example CPU 2.5 GHz" in text and "Licence of the images: not stated" in text
    for language in ("cpp", "kotlin"):
        assert all(found[language].count(a) == found[language].count(b) for a, b in ("{}", "()", "[]"))


@pytest.mark.parametrize("payload", ["`rm -rf ~`", "[x](javascript:1)", "<img src=x onerror=1>", "a|b\n# c\n```"])
def test_hostile_names_stay_names(payload: str) -> None:
    facts = make_facts()
    facts["dataset"]["class_names"] = [payload] * 10
    facts["dataset"]["name"] = facts["run"]["name"] = facts["environment"]["cpu_model"] = payload
    outside = re.sub(r"(`{3,})\w*\n.*?\n\1", "", rendered(report.document_of(facts)), flags=re.S)
    assert not re.search(r"<[a-z/!]", outside) and not re.search(r"(?<!\\)\]\(", outside)
    assert outside.count("\n# ") == 0


def test_a_run_that_ships_nothing_has_no_example() -> None:
    facts = make_facts()
    for artifact in facts["artifacts"]:
        artifact["file"] = ""
    assert "How to use it" not in rendered(report.document_of(facts))
