"""How commands end: what was written, the verdict, the command to type next. And what they refuse before any work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from compress import files, out_place
from compress.cli import eval as eval_command
from compress.cli.main import compress as group
from compress.cli.main import main
from compress.errors import CompressError
from compress.progress import QUIET_VARIABLE

ROOT = Path(__file__).parents[1]
RUN, REPORT = ROOT / "models" / "digits-mobilenet", ROOT / "reports" / "digits-mobilenet"
STUDENT, INT8 = str(RUN / "student.onnx"), str(RUN / "student.int8.onnx")


@pytest.fixture
def compress(tmp_path, monkeypatch, capsys):
    """`compress …` as the entry point runs it, in an empty folder, with a store beside it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv(QUIET_VARIABLE, "")
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        print(f"$ compress {' '.join(map(str, arguments))}\n{shown.err}")
        return subprocess.CompletedProcess(sys.argv, stopped.value.code or 0, shown.out, shown.err)

    return run


def tree() -> dict[str, bytes]:
    """Every file of the folder that the command ran in, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(Path().rglob("*"))}


RUNS = "next   compress run --dry-run"
VERDICT = r"student.int8.onnx against student.onnx: (kept|lost|undecided), [-+\d.]+ points \(.*\); allowed to lose 1"
ENDS = [
    ("list methods fitnet", 0, [f"{RUNS} --kd fitnet"]),
    ("list data digits", 0, [f"{RUNS} --data digits"]),
    ("list pruners taylor", 0, [f"{RUNS} --prune 0.5 --pruner taylor"]),
    ("list quantizers int8", 0, [f"{RUNS} --quantize int8"]),
    ("list runtimes ncnn", 0, [f"{RUNS} --runtimes ncnn"]),
    ("list nets torchvision:resnet18", 0, [f"{RUNS} --student torchvision:resnet18"]),
    ("list recipe", 0, [f"{RUNS} --set KEY=VALUE"]),
    ("list targets", 0, [f"{RUNS} --target NAME"]),
    pytest.param(
        "list nets mlp:depth=1,hidden=8 --input 1x8x8 --classes 10", 0, [f"{RUNS} --student mlp:depth=1,hidden=8"],
        marks=pytest.mark.slow,
    ),
    ("explain", 0, ["next   compress explain CODE"]),
    ("explain --json", 0, ["next   compress explain CODE"]),
    ("explain E-DEVICE", 0, ["next   compress doctor"]),
    ("explain E-OPTION", 0, ["next   compress COMMAND --help"]),
    ("explain E-CHECKPOINT-NAN", 0, ["next   that, then the command that failed once more"]),
    ("store clean", 0, ["removed 0 entries from .*", "next   compress store list"]),
    (f"gate {REPORT} --max-size 500kB", 0, [".*: int8 may ship", f"next   compress verify {RUN}"]),
    (f"gate {REPORT} --max-size 500kB --json --junit g.xml", 0,
     ["wrote  g.xml", ".*: int8 may ship", f"next   compress verify {RUN}"]),
    (f"gate {REPORT} --max-size 1kB", 3, [".*: int8 may not ship", f"next   compress report {REPORT}/report.json"]),
    (f"gate {REPORT} --max-drop 0.01", 4, [".*: int8 cannot be told", "next   measure again, .*"]),
    (f"eval {STUDENT} {INT8} --json", 0, [VERDICT, f"next   compress bench {STUDENT} {INT8}"]),
    (f"eval {STUDENT} --data digits", 0, [f"next   compress bench {STUDENT} --data digits"]),
    (f"convert {STUDENT} --to ort_cpu,ort_mobile --out app", 0,
     ["wrote  app/ort_cpu/, app/ort_mobile/", "next   python app/ort_cpu/example.py"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "last"), ENDS, ids=lambda value: value.replace(str(ROOT), "") if isinstance(value, str) else ""
)
def test_a_command_ends_with_what_it_wrote_the_verdict_and_the_next(compress, line, code, last):
    done = compress(*line.split())
    assert done.returncode == code
    said = done.stderr.splitlines()[-len(last) :]
    assert len(said) == len(last)
    for got, wanted in zip(said, last, strict=True):
        assert got == wanted or re.fullmatch(wanted, got), got
    assert "next   " not in done.stdout
    if "--json" in line:
        json.loads(done.stdout)


def test_latency_alone_ends_so_too(compress):
    shutil.copy(STUDENT, "mine.onnx")
    bench = compress("bench", "mine.onnx", "--synthetic", "--tier", "smoke", "--out", "ab")
    assert bench.returncode in (0, 4)
    assert bench.stderr.splitlines()[-2:] == ["wrote  ab/report.html", "next   compress eval mine.onnx --data NAME"]
    report = compress("report", "ab")
    assert report.returncode == 0 and report.stderr == "next   compress gate ab --max-latency 3ms\n"
    gate = compress("gate", "ab", "--max-latency", "10s")
    assert gate.returncode in (0, 4) and gate.stderr.splitlines()[-1].startswith("next   ")
    out_place.check_report(Path("ab"))  # it is not a run's: measuring again may overwrite it


def test_the_verdict_of_eval_is_that_of_the_margin(tmp_path, capsys):
    def says(lost: int, won: int, margin_points: float) -> str:
        named = [type("Named", (), {"path": tmp_path / name})() for name in ("a.onnx", "b.onnx")]
        rows = [{"teacher_only": 0, "this_only": 0, "n": 1000}, {"teacher_only": lost, "this_only": won, "n": 1000}]
        eval_command._say_verdicts(named, rows, margin_points)
        return capsys.readouterr().err

    assert says(1, 1, 1.0).startswith("b.onnx against a.onnx: kept, ")
    assert says(100, 0, 1.0).startswith("b.onnx against a.onnx: lost, -10.0 points (")
    assert says(100, 0, 20.0).startswith("b.onnx against a.onnx: kept, ")
    assert says(10, 0, 1.0).startswith("b.onnx against a.onnx: undecided, ")
    assert says(10, 0, 1.0).endswith("; allowed to lose 1\n")


# --- where it is written is looked at first


# what is missing is not looked for before the place: the data sets, models and weights named here are nowhere
WRITERS = {
    "run": "run --data nowhere --out {}",
    "bench": "bench nowhere.onnx --synthetic --out {}",
    "convert": f"convert {STUDENT} --to ort_cpu --data nowhere --out {{}}",
    "export": "export --net resnet20 --checkpoint nowhere.pth --out {}/model.onnx",
    "quantize": "quantize nowhere.onnx --data nowhere --out {}/model.onnx",
}


@pytest.mark.parametrize("line", WRITERS.values(), ids=list(WRITERS))
def test_a_folder_that_may_not_be_written_is_refused_before_the_work(compress, monkeypatch, line):
    """The system says so of other users' folders, and to all but root of one whose bits forbid it."""
    Path("shut").mkdir()
    Path("shut", "mine.txt").write_text("mine")
    before, shut = tree(), Path("shut").resolve()
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).resolve() == shut))
    done = compress(*line.format("shut").split())
    assert done.returncode == 1 and tree() == before
    assert re.match(r"error\[E-WRITE\]: the output folder \S*shut is not writable\n  hint: name a wri", done.stderr)


@pytest.mark.parametrize("line", WRITERS.values(), ids=list(WRITERS))
def test_a_file_in_the_way_of_the_folder_is_named_before_the_work(compress, line):
    Path("file").write_text("in the way")
    before = tree()
    done = compress(*line.format("file").split())
    assert (done.returncode, done.stderr[:20]) in ((1, "error[E-WRITE]: cann"), (2, "error[E-OUT-PLACE]: "))
    assert "file" in done.stderr.splitlines()[0] and tree() == before


def test_what_was_made_to_try_is_taken_away_again(tmp_path):
    out_place.check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CompressError, match="cannot make the output folder .*: File name too long"):
        out_place.check_folder(tmp_path / "a" / ("b" * 300))
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    out_place.check_folder(tmp_path / "there")
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("quantize {model} --data nowhere --out ./sub/../{model}", "is the file that is read"),
        ("export --net resnet20 --checkpoint {model} --out {model}", "is the file that is read"),
        ("export --net resnet20 --checkpoint {model} --out sub", "is a folder"),
        ("export --net resnet20 --checkpoint {model} --out none/model.onnx", "there is no folder none"),
    ],
)
def test_a_file_that_cannot_be_there_is_refused_before_the_work(compress, line, said):
    Path("sub").mkdir()
    Path("mine.onnx").write_bytes(b"mine")
    before = tree()
    done = compress(*line.format(model="mine.onnx").split())
    assert done.returncode == 2 and done.stderr.startswith("error[E-OUT-PLACE]: --out ") and said in done.stderr
    assert tree() == before


def test_a_missing_model_is_named_before_where_it_would_go(compress):
    done = compress("quantize", "none/model.onnx", "--data", "digits")
    assert done.returncode == 5 and done.stderr.startswith("error[E-FILE-READ]: ")


def test_the_report_of_a_run_is_not_overwritten_by_bench(compress):
    shutil.copytree(REPORT, "report")
    before = tree()
    done = compress("bench", "nowhere.onnx", "--synthetic", "--out", "report")
    assert done.returncode == 2 and "E-OUT-PLACE" in done.stderr and "report of a `compress run`" in done.stderr
    assert tree() == before
    Path("report", "report.json").write_text("{")  # damaged: nobody's
    assert "nowhere.onnx" in compress("bench", "nowhere.onnx", "--synthetic", "--out", "report").stderr


def test_what_convert_has_not_made_is_refused_before_the_work(compress):
    Path("app", "ort_mobile").mkdir(parents=True)
    Path("app", "ort_mobile", "notes.txt").write_text("mine")
    before = tree()
    done = compress("convert", STUDENT, "--to", "ort_cpu,ort_mobile", "--data", "nowhere", "--out", "app")
    assert done.returncode == 5 and "E-OUT-FOREIGN" in done.stderr and tree() == before


# --- a file in a run's folder knows its data


@pytest.fixture
def copy(compress) -> Path:
    """A run's folder with a recipe that is unlike the defaults."""
    shutil.copytree(RUN, "copy")
    recipe = Path("copy", "recipe.toml")
    text = re.sub(r"^max_drop = .*$", "max_drop = 7.5", recipe.read_text(), flags=re.M)
    recipe.write_text(re.sub(r"^calibration_images = .*$", "calibration_images = 321", text, flags=re.M))
    return Path("copy")


def test_a_file_of_a_run_takes_its_data_as_the_folder_does(copy):
    found = files.open_any((copy / "student.onnx",), Path("scratch"))
    by_file, by_folder = (files.data_for((path,), found, "") for path in (copy / "student.onnx", copy))
    assert by_file == by_folder and by_file.calibration_images == 321 and by_file.max_drop == 7.5
    assert files.data_for((copy / "student.onnx",), found, "digits").calibration_images == 512
    (copy / "recipe.toml").write_text('data = "nowhere"\n')
    assert files.data_for((copy / "student.onnx",), found, "").data == "nowhere"


ASKERS = ["eval {}", "bench {} --tier smoke", "convert {} --to ort_cpu --out app"]


@pytest.mark.parametrize("line", ASKERS, ids=lambda line: line.split()[0])
def test_commands_need_no_data_for_a_file_of_a_run(compress, copy, line):
    done = compress(*line.format(copy / "student.onnx").split())
    assert done.returncode in ((0, 4) if line.startswith("bench") else (0,))
    for name in ("recipe.toml", "manifest.json"):
        shutil.copytree(copy, f"without {name}")
        Path(f"without {name}", name).unlink()
        words = [str(Path(f"without {name}", "student.onnx")) if word == "{}" else word for word in line.split()]
        done = compress(*words)
        assert done.returncode == 2 and done.stderr.startswith("error[E-DATA-UNNAMED]: "), name


def test_the_drop_that_the_run_allowed_is_the_margin(compress, copy):
    done = compress("eval", copy / "student.onnx", copy / "student.int8.onnx")
    assert "student.int8.onnx against student.onnx: kept, " in done.stderr and "lose 7.5" in done.stderr


# --- help


def commands(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []
    found = [(command.get_command(click.Context(command), name), name) for name in below]
    return [words, *(more for each, name in found for more in commands(each, (*words, name)))]


@pytest.mark.parametrize("words", commands(group), ids=" ".join)
def test_help_fits_a_terminal(compress, words):
    done = compress(*words, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage: ")
    assert not [line for line in done.stdout.splitlines() if len(line) > 80]
