"""What only emulated ARM can show. Needs a kit (`compress kit arm64 DIR`) at COMPRESS_ARM64_KIT."""

import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

import compress
from compress import arm64, arm64_verify, bench
from compress.errors import CompressError, InputRejected
from compress.store import file_digest

ADAPTERS = Path(compress.__file__).parent / "runtimes"


@pytest.fixture(scope="module")
def kit() -> Path:
    path = os.environ.get("COMPRESS_ARM64_KIT", "")
    if not path or not Path(path, arm64.MANIFEST).is_file():
        pytest.skip("no ARM kit: make one with `compress kit arm64 DIR` and set COMPRESS_ARM64_KIT=DIR")
    return Path(path)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def adapter(folder: Path, body: str) -> Path:
    """An adapter file whose `run` is `body`."""
    path = folder / "made_up.py"
    path.write_text(
        "import os, platform, subprocess, sys, time\nimport numpy as np\n"
        "def version(): return '1'\ndef open_session(path, threads): return path\n"
        f"def effective(session): return {{}}\ndef run(session, inputs):\n    {body}\n"
    )
    return path


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def on_host(path: Path, model: Path, images: np.ndarray) -> np.ndarray:
    spec = importlib.util.spec_from_file_location("on_host", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    session = module.open_session(str(model), 1)
    inputs = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.concatenate([module.run(session, inputs[i : i + 1]) for i in range(len(inputs))])


def test_the_child_is_arm_and_its_answers_come_back(kit, tmp_path):
    body = "return np.array([[platform.machine() == 'aarch64', inputs.max()]], np.float32)"
    images = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    got = arm64.answers(kit, adapter(tmp_path, body), tmp_path / "none", images, timeout_s=120, scratch=tmp_path / "s")
    assert got.tolist() == [[1, 0], [1, 1]]
    assert not os.listdir(tmp_path / "s")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('bad\\x1b[31m')", r"made_up on emulated aarch64 .*: answers: ValueError: bad \[31m"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("os._exit(3)", "exit status 3"),
        ("return np.zeros((9, 9))", r"shape \(9, 9\), expected"),
    ],
)
def test_a_failure_is_readable(kit, tmp_path, body, said):
    with pytest.raises(CompressError, match=said):
        arm64.answers(kit, adapter(tmp_path, body), tmp_path / "none", pictures(1, 4), timeout_s=120)


def test_a_stuck_child_is_stopped_with_all_that_it_started(kit, tmp_path):
    note = tmp_path / "pid"
    body = f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '500']).pid)); time.sleep(500)"
    with pytest.raises(CompressError, match="no result within 8 s; stopped"):
        arm64.answers(kit, adapter(tmp_path, body), tmp_path / "none", pictures(1, 4), timeout_s=8)
    time.sleep(0.1)
    assert not alive(int(note.read_text()))


def converted_folder(folder: Path, runtime: str, files: list[str], golden: tuple[np.ndarray, np.ndarray]) -> None:
    """Makes of these files in `folder` what `compress convert` leaves, as far as `verify` reads it."""
    np.savez(folder / "golden.npz", images=golden[0], logits=golden[1])
    entries = [{"file": name, "sha256": file_digest(folder / name)} for name in files]
    facts = {"runtime": runtime, "source": {"precision": "float32"}, "files": entries}
    (folder / "versions.json").write_text(json.dumps(facts))


def test_ncnn_with_fp16_arithmetic_is_caught(kit, tmp_path, monkeypatch):
    """The wrong rows of the half-precision kernel cost 0.1 of the spread, on ARM alone: `verify` passes our adapter,
    which switches it off, and fails one that does not.
    """
    from faulty_depthwise import faulty_depthwise

    pnnx = Path(sysconfig.get_path("purelib"), "pnnx", "pnnx")
    if "ncnn" not in arm64.manifest(kit)["packages"] or not pnnx.exists():
        pytest.skip("needs ncnn in the kit and pnnx on the host")
    work, folder = tmp_path / "work", tmp_path / "ncnn"
    work.mkdir()
    folder.mkdir()
    faulty_depthwise(work / "model.onnx")
    command = [str(pnnx), "model.onnx", "inputshape=[1,3,14,14]", "fp16=0"]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    files = ["model.ncnn.param", "model.ncnn.bin"]
    for name in files:
        shutil.copyfile(work / name, folder / name)
    images = pictures(4, 14)
    converted_folder(folder, "ncnn", files, (images, on_host(ADAPTERS / "ort_cpu.py", work / "model.onnx", images)))
    ((_, said, well),) = arm64_verify.verify(folder, kit, tmp_path / "s")
    assert well, said
    careless, text = tmp_path / "careless.py", (ADAPTERS / "ncnn.py").read_text()
    careless.write_text(
        text.replace("setattr(session.opt, option, False)", 'setattr(session.opt, option, "fp16" in option)')
    )
    assert careless.read_text() != text
    monkeypatch.setattr(bench, "runtime_file", lambda name: careless)
    ((_, said, well),) = arm64_verify.verify(folder, kit, tmp_path / "s")
    assert not well and "allowed 0.001" in said, said


def test_the_manifest_states_every_file(kit):
    content = json.loads((kit / arm64.MANIFEST).read_text())
    assert {"onnxruntime", "numpy"} <= set(content["packages"])
    assert len([name for name in content["files"] if name.endswith(".deb")]) > 30
    assert all(len(digest) == 64 for digest in content["files"].values())


RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"


def test_a_run_is_asked_on_arm(kit, tmp_path):
    """The students of the published run; the int8 file was made on a CPU whose sums are exact, as ARM's are."""
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    stated = json.loads((run / "manifest.json").read_text())
    stated["artifacts"] = [each for each in stated["artifacts"] if each["stage"] != "teacher"]
    (run / "manifest.json").write_text(json.dumps(stated))
    rows = arm64_verify.verify(run, kit, tmp_path)
    assert len(rows) == 2 and all(well for *_, well in rows), rows
    assert all("in ort_cpu" in what and said.startswith("8/8") for what, said, _ in rows)


def test_wrong_answers_on_arm_are_a_failure(kit, tmp_path):
    """The golden samples are those of another image each: nothing may pass."""
    (tmp_path / "ort_cpu").mkdir()
    model = Path(shutil.copyfile(RUN / "student.onnx", tmp_path / "ort_cpu" / "model.onnx"))
    with np.load(RUN / "student.golden.npz") as golden:
        converted_folder(model.parent, "ort_cpu", [model.name], (golden["images"], golden["logits"][::-1]))
    ((_, said, well),) = arm64_verify.verify(tmp_path, kit, tmp_path / "s")
    assert not well and "allowed 0.001" in said
    model.write_bytes(b"damaged")
    with pytest.raises(InputRejected, match="not the file of versions.json"):
        arm64_verify.verify(tmp_path, kit, tmp_path / "s")


def test_names_that_lead_elsewhere_are_refused(kit, tmp_path):
    entry = {"file": "../model.onnx", "sha256": ""}
    facts = {"runtime": "ort_cpu", "source": {"precision": "float32"}, "files": [entry]}
    (tmp_path / "versions.json").write_text(json.dumps(facts))
    with pytest.raises(InputRejected, match="names files elsewhere"):
        arm64_verify.verify(tmp_path, kit, tmp_path / "s")


def test_a_folder_with_nothing_to_ask(kit, tmp_path):
    with pytest.raises(InputRejected, match="holds nothing that the ARM kit can run"):
        arm64_verify.verify(tmp_path, kit, tmp_path / "s")
