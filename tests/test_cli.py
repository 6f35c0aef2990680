"""The command line as a user meets it: what is printed where, exit codes, and every bad input with its message."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import catalog, progress
from compress.cli.main import main

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"


@pytest.fixture
def compress(tmp_path, monkeypatch, capsys):
    """Runs `compress …` as the entry point does, with a fresh store; returns the exit code and what was printed."""

    def run(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess:
        for name, value in {
            "COMPRESS_STORE": str(tmp_path / "store"), progress.QUIET_VARIABLE: "", **extra,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code or 0
        printed = capsys.readouterr()
        print(f"$ compress {' '.join(map(str, arguments))}\n{printed.err}")
        return subprocess.CompletedProcess(sys.argv, code, printed.out, printed.err)

    return run


SMALL = ("--teacher", "resnet_cifar:depth=8", "--student", "resnet_cifar:depth=8,channels=8,stem=8")


def write_images(folder: Path, classes=("cat", "dog"), count: int = 6, size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_help_names_every_command_and_imports_nothing_heavy(compress):
    done = compress("--help")
    assert done.returncode == 0
    for command in (
        "run",
        "list",
        "eval",
        "export",
        "quantize",
        "convert",
        "bench",
        "report",
        "verify",
        "doctor",
        "explain",
        "kit",
        "store",
    ):
        assert f"  {command} " in done.stdout
        assert compress(command, "--help").returncode == 0
    code = (
        "import sys, compress.cli.main; bad = {'torch', 'onnx', 'onnxruntime', 'sklearn', 'PIL'} & set(sys.modules); "
    )
    assert subprocess.run([sys.executable, "-c", code + "sys.exit(str(bad) if bad else 0)"]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["ruin"], ["`ruin`", "`run`"]),
        (["run", "--student", "mobilnet"], ["`mobilnet`", "`mobilenet`"]),
        (["run", "--teacher", "resnet65"], ["`resnet65`", "`resnet56`"]),
        (["run", "--kd", "fitnets"], ["`fitnets`", "`fitnet`"]),
        (["run", "--kd", "kd:temprature=4"], ["`temprature`", "`temperature`"]),
        (["run", "--kd", "kd:temperature=hot"], ["temperature", "hot", "number"]),
        (["run", "--kd", "kd:temperature=0"], ["temperature", "[0.05, 1000]"]),
        (["run", "--quantize", "int7"], ["`int7`", "`int8`"]),
        (["run", "--prune", "1.5"], ["`prune`", "between 0 and 1", "1.5"]),
        (["run", "--set", "lerning_rate=1"], ["`lerning_rate`", "`learning_rate`"]),
        (["run", "--set", "batch_size"], ["KEY=VALUE"]),
        (["run", "--set", "optimizer=adam"], ["`adam`", "`adamw`"]),
        (["run", "--width", "0.5", "--student", "resnet20"], ["--width", "resnet20"]),
        (["run", "--width", "0.7", "--student", "shufflenet"], ["0.7", "0.5, 1, 1.5, 2"]),
        (["run", "--data", "cifra10"], ["`cifra10`", "`cifar10`"]),
        (["run", "--runtimes", "ort_gpu"], ["`ort_gpu`", "`ort_cpu`"]),
        (["run", "--device", "tpu"], ["`tpu`"]),
        (["run", "--teacher-mean", ".5,.5"], ["teacher_mean", "1 or 3"]),
        (["run", "--teacher-mean", ".5"], ["teacher_mean", "teacher_std"]),
        (["run", "--set", "threads=0"], ["threads", "0"]),
        (["run", "--set", "threads=1000"], ["1000 threads", "affinity"]),
        (["run", "--plugin", "nowhere.py"], ["nowhere.py"]),
        (["bench", "x.onnx"], ["--data", "name the images"]),
        (["list", "metods"], ["`metods`", "`methods`"]),
    ],
)
def test_usage_errors_name_the_value_the_rule_and_the_nearest(compress, arguments, parts):
    done = compress(*arguments)
    assert done.returncode == 2
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""


def test_missing_and_empty_data_folders(compress, tmp_path):
    missing = compress("run", "--data", str(tmp_path / "nowhere"))
    assert missing.returncode == 5 and "nowhere" in missing.stderr
    (tmp_path / "empty").mkdir()
    empty = compress("run", "--data", str(tmp_path / "empty"))
    assert empty.returncode == 5 and "empty" in empty.stderr


def test_class_without_images_and_classes_that_differ(compress, tmp_path):
    write_images(tmp_path / "a")
    (tmp_path / "a" / "bird").mkdir()
    done = compress("run", "--data", str(tmp_path / "a"))
    assert done.returncode == 5 and "bird" in done.stderr
    write_images(tmp_path / "b" / "train")
    write_images(tmp_path / "b" / "test", classes=("cat", "cow"))
    done = compress("run", "--data", str(tmp_path / "b"))
    assert done.returncode == 5 and "cow" in done.stderr


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_image_is_named_and_may_be_skipped(compress, tmp_path, content):
    folder = write_images(tmp_path / "photos", count=12)
    (folder / "cat" / "bad.png").write_bytes(content)
    done = compress("run", "--data", str(folder))
    assert done.returncode == 5 and "bad.png" in done.stderr and "--on-bad skip" in done.stderr
    dry = compress("run", "--data", str(folder), "--on-bad", "skip", "--dry-run", *SMALL)
    assert dry.returncode == 0 and "left out 1" in dry.stderr


def test_teacher_with_another_number_of_classes_and_of_another_architecture(compress, tmp_path):
    import torch

    from compress import catalog

    def checkpoint(spec: str, classes: int) -> Path:
        entry = catalog.load("nets", spec)
        net = entry.module.build(entry.config, classes, (1, 8, 8))
        torch.save(net.state_dict(), tmp_path / "teacher.pth")
        return tmp_path / "teacher.pth"

    done = compress("run", "--teacher", "resnet20", "--teacher-checkpoint", checkpoint("resnet20", 7))
    assert done.returncode == 5 and "number of classes" in done.stderr and "linear.weight" in done.stderr
    done = compress("run", "--teacher", "resnet20", "--teacher-checkpoint", checkpoint("resnet32", 10))
    assert done.returncode == 5 and "unexpected" in done.stderr and "teacher.pth" in done.stderr
    done = compress("run", "--teacher-checkpoint", tmp_path / "teacher.pth")
    assert done.returncode == 2 and "--teacher" in done.stderr
    done = compress("run", "--teacher", "resnet20", "--teacher-checkpoint", tmp_path / "none.pth")
    assert done.returncode == 5 and "none.pth" in done.stderr


def test_untrained_teacher_is_refused_as_one_of_another_label_order_would_be(compress, tmp_path):
    import torch

    from compress import catalog

    entry = catalog.load("nets", "resnet20")
    torch.manual_seed(0)
    torch.save(entry.module.build(entry.config, 10, (1, 8, 8)).state_dict(), tmp_path / "random.pth")
    done = compress("run", "--teacher", "resnet20", "--teacher-checkpoint", tmp_path / "random.pth")
    assert done.returncode == 5 and "chance" in done.stderr


def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(compress, tmp_path):
    import pickle

    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return Path.touch, (canary,)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    done = compress("run", "--teacher", "resnet20", "--teacher-checkpoint", tmp_path / "evil.pth")
    assert done.returncode == 5 and "evil.pth" in done.stderr
    assert not canary.exists()


def test_output_folder_that_cannot_be_written(compress, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = compress("run", "--out", str(tmp_path / "file"))
    assert done.returncode == 1 and "--out" in done.stderr and str(tmp_path / "file") in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_second_run_into_the_same_folder_is_refused(compress, tmp_path):
    from compress.store import exclusive

    lock = tmp_path / "models" / ".same.lock"
    with exclusive(lock, lambda who: None):
        done = compress("run", "--set", "name=same")
    assert done.returncode == 1 and "already writing" in done.stderr and "same" in done.stderr


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x07\x12\x07pytorch:" + b"\xff" * 200])
def test_malformed_onnx_given_to_bench_and_eval(compress, tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    for arguments in (["bench", "bad.onnx", "--synthetic"], ["eval", "bad.onnx", "--data", "digits"]):
        done = compress(*arguments)
        assert done.returncode == 5 and "bad.onnx" in done.stderr
    done = compress("verify", str(tmp_path))
    assert done.returncode == 5 and "manifest" in done.stderr


def test_bad_recipe_files(compress, tmp_path):
    (tmp_path / "broken.toml").write_text('student = "mobilenet\n')
    done = compress("run", "--recipe", "broken.toml")
    assert done.returncode == 5 and "broken.toml" in done.stderr and "line 1" in done.stderr
    (tmp_path / "unknown.toml").write_text('studnet = "mobilenet"\n')
    done = compress("run", "--recipe", "unknown.toml")
    assert done.returncode == 2 and "unknown.toml" in done.stderr and "`student`" in done.stderr
    done = compress("run", "--recipe", "none.toml")
    assert done.returncode == 5 and "none.toml" in done.stderr


def test_plugin_brings_a_network_of_the_users_own(compress, tmp_path):
    (tmp_path / "tiny.py").write_text(
        '"""A net of my own."""\nfrom torch import nn\n\n'
        "def build(config, num_classes, input_shape):\n"
        "    c, h, w = input_shape\n    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))\n"
    )
    done = compress("list", "nets", "--plugin", "tiny.py")
    assert "tiny" in done.stdout and "A net of my own." in done.stdout
    done = compress("run", "--plugin", "tiny.py", "--student", "tiny", "--dry-run", *SMALL[:2])
    assert done.returncode == 0 and "tiny" in done.stdout
    assert "unknown network" in compress("run", "--student", "tiny", "--dry-run").stderr


def test_what_cannot_be_pruned_is_refused_before_any_training(compress):
    done = compress("run", "--student", "soft_tree", "--kd", "cross_entropy", "--prune", "0.3")
    assert done.returncode == 2 and "`soft_tree` has no channels to prune" in done.stderr
    assert "epochs" not in done.stdout and "images/s" not in done.stderr


def test_cuda_is_not_replaced_by_the_cpu_in_silence(compress):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = compress("run", "--device", "cuda")
    assert done.returncode == 2 and "CUDA" in done.stderr


def test_doctor_and_store_speak_of_this_machine(compress, monkeypatch):
    found = json.loads(compress("doctor", "--json").stdout)
    assert found["machine"]["threads"] >= 1 and found["machine"]["disk_free_bytes"] > 0
    rows = {row["name"]: row for row in found["runtimes"]}
    assert list(rows) == list(catalog.names("runtimes"))  # each was asked in a process of its own
    assert rows["ort_cpu"]["precisions"] and not rows["ort_cpu"]["unavailable"]
    monkeypatch.setattr("compress.cli.doctor._runtime", lambda name, *given: rows[name])
    monkeypatch.setattr("compress.bench.runtime_state", lambda name: {})
    done = compress("doctor")
    assert "threads" in done.stdout
    said = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:1].strip())
    for name in rows:
        assert re.match(r"ok, version \d|.*(pip install|compress kit|install your|install Node)", said[name]), name
    assert compress("store", "list").returncode == 0
    assert compress("store", "clean", "--all").returncode == 0
    assert compress("store", "list", COMPRESS_STORE_GB="many").returncode in (0, 2)
    assert compress("store", "clean", COMPRESS_STORE_GB="many").returncode == 2


def test_list_shows_knobs_with_their_sentences(compress):
    done = compress("list", "methods", "kd")
    assert "temperature" in done.stdout and "Hinton" in done.stdout
    assert "learning_rate" in compress("list", "recipe").stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (
            "compress run --student mobilenet_v",
            {"mobilenet_v1", "mobilenet_v3", "mobilenet_v3_large", "mobilenet_v3_small"},
        ),
        ("compress run --kd fit", {"fitnet"}),
        ("compress run --runtimes ort_cpu,ncn", {"ort_cpu,ncnn"}),
        ("compress bench --runtimes open", {"openvino"}),
        ("compress convert --to mn", {"mnn"}),
        ("compress ga", {"gate"}),
        ("compress list qu", {"quantizers"}),
        ("compress list methods fitn", {"fitnet"}),
        ("compress export --net resnet5", {"resnet56"}),
        ("compress gate --runtime openv", {"openvino"}),
        ("compress quantize --quantize floa", {"float16"}),
    ],
)
def test_the_shell_completes_names(words, offered):
    """Through the entry point, as a shell asks; and torch is not imported for it."""
    code = (
        "import sys; from compress.cli.main import main\ntry: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    asked = {"_COMPRESS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    line = [sys.executable, "-c", f"import sys; sys.argv = ['compress']; exec({code!r})"]
    done = subprocess.run(line, env={**os.environ, **asked}, capture_output=True, text=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered, done.stderr
    assert done.stderr.strip().endswith("False")


def test_quiet_keeps_the_data_and_the_warnings(compress, tmp_path):
    wanted = ("eval", str(RUN / "student.onnx"), "--data", "digits")
    loud, quiet = compress(*wanted), compress("--quiet", *wanted)
    assert loud.returncode == quiet.returncode == 0
    assert "student.onnx" in loud.stdout and quiet.stdout.endswith(loud.stdout)
    assert "next   compress bench" in loud.stderr and quiet.stderr == ""
    refused = compress("--quiet", "eval", "missing.onnx", "--data", "digits")
    assert refused.returncode == 5 and refused.stderr.startswith("error[E-FILE-READ]: ")


def test_quiet_says_warnings_all_the_same(capsys, monkeypatch):
    monkeypatch.setenv(progress.QUIET_VARIABLE, "1")
    progress.say("  student: exporting")
    progress.say("warning: only 12 images to calibrate with")
    assert capsys.readouterr().err == "warning: only 12 images to calibrate with\n"
