"""The README's commands and claims are run: it is the product's face.

    python tests/test_readme.py --renew

writes its reference of the command line anew, from `--help`.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from compress.cli.main import compress as group
from compress.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Every `$ …` line of the console blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line[2:].partition(" #")[0].strip() for line in lines if line.startswith("$ ")]


COMMANDS = commands()
# what only reads: run as it stands
READERS = [
    c
    for c in COMMANDS
    if c.split()[1] in ("list", "verify", "eval", "bench", "report", "gate", "store") and "--on" not in c
]
# it asks every runtime in a process: test_cli.py runs it
DOCTOR = ["compress doctor"]
# what needs another machine: test_remote.py runs these on a server of its own, test_adb.py on a stand-in
ELSEWHERE = [c for c in COMMANDS if "--on" in c]
RUNS = [c for c in COMMANDS if c.startswith("compress run")]
QUANTIZES = [c for c in COMMANDS if c.startswith("compress quantize")]
CONVERTS = [c for c in COMMANDS if c.startswith("compress convert")]


BEGIN, END = "<!-- from --help -->\n", "<!-- until here -->\n"


def reference() -> str:
    """Every command's `--help`, each to be unfolded."""
    parts = []
    for name in group.list_commands(click.Context(group)):
        shown = CliRunner().invoke(group, [name, "--help"], prog_name="compress", terminal_width=80)
        assert shown.exit_code == 0
        summary = f"<details><summary><code>compress {name}</code></summary>"
        parts.append(f"{summary}\n\n```text\n{shown.output.strip()}\n```\n\n</details>\n")
    return "\n".join(parts)


def with_reference(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{reference()}\n{END}{rest.split(END)[1]}"


def run(command: str, monkeypatch) -> int:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


def test_every_command_is_known():
    assert len(READERS) >= 7 and len(RUNS) >= 3
    assert set(COMMANDS) == {*READERS, *DOCTOR, *ELSEWHERE, *RUNS, *QUANTIZES, *CONVERTS, "make demo", "make test"}
    assert QUANTIZES and CONVERTS


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS)
def test_command_works(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path))
    # the two reports that are published, and smaller images
    here = (
        command.replace("reports/BEFORE", "reports/digits-mobilenet")
        .replace("reports/AFTER", "reports/resnet8-cifar10")
        .replace("3x224x224", "3x32x32")
    )
    # the published report was measured on a shared machine: the gate may refuse to decide by its rounds
    assert run(here, monkeypatch) in ((0, 4) if command.startswith("compress gate") else (0,))
    captured = capsys.readouterr()
    assert captured.out or captured.err


@pytest.mark.parametrize("name", ["digits-mobilenet", "resnet8-cifar10"])
def test_what_is_published_is_whole(name, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path))
    assert run(f"compress verify models/{name}", monkeypatch) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", QUANTIZES)
def test_a_file_is_quantized(command, monkeypatch, tmp_path, capsys):
    """With the file and the images that are here, and so much to lose that the ladder's first rung is enough: 143
    images show little with confidence, and climbing all of it takes minutes.
    """
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    here = command.replace("model.onnx", "models/digits-mobilenet/student.onnx").replace("PHOTOS", "digits")
    assert run(f"{here} --max-drop 20 --out {tmp_path / 'out.onnx'}", monkeypatch) == 0
    assert (tmp_path / "out.onnx").exists() and "report images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", CONVERTS)
def test_files_are_converted(command, monkeypatch, tmp_path, capsys):
    pytest.importorskip("MNN")
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    assert run(command.replace("--out app", f"--out {tmp_path / 'app'}"), monkeypatch) == 0
    runtimes = command.partition("--to ")[2].split()[0].split(",")
    assert all((tmp_path / "app" / name / "example.py").exists() for name in runtimes)
    assert capsys.readouterr().out.count("ok ") == len(runtimes)


@pytest.mark.parametrize("command", RUNS)
def test_flags_of_run_are_accepted(command, monkeypatch):
    """The long runs are tested on small data elsewhere; here their flags must resolve to a recipe."""
    from compress import pipeline

    class Stop(BaseException):  # an Exception would be taken for a bug of ours
        pass

    seen = []

    def stop(recipe, **_):
        seen.append(recipe)
        raise Stop

    monkeypatch.setattr(pipeline, "run", stop)
    if "models/RUN" in command:
        command = command.replace("models/RUN", "models/digits-mobilenet")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(Stop):
        main()
    assert seen[0].student


def test_make_targets_do_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.M) and re.search(r"^test:", makefile, re.M)
    assert "run --student mobilenet --kd fitnet --quantize int8" in makefile
    assert "compress run --student mobilenet --kd fitnet --quantize int8" in README


def test_every_command_is_listed_as_its_help_says():
    context = click.Context(group)
    helps = {name: group.get_command(context, name) for name in group.list_commands(context)}
    lines = [f"| `compress {name}` | {each.get_short_help_str(200)} |" for name, each in helps.items() if each]
    assert re.findall(r"^\| `compress \w+` \|.*$", README, re.M) == lines


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_supported_names_are_those_of_the_catalogue():
    from compress import catalog

    for kind in ("methods", "runtimes", "quantizers", "pruners"):
        for name in catalog.names(kind):
            assert f"`{name}`" in README, f"{kind} `{name}` is not in the README's table"


def test_the_table_of_runtimes_is_that_of_the_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import runtimes

    found = json.loads((ROOT / "benchmarks" / "records" / "runtimes.json").read_text())
    assert runtimes.into_readme(found["rows"]) == README
    assert runtimes.page(found) == (ROOT / "benchmarks" / "RUNTIMES.md").read_text()
    assert len(runtimes.short_table(found["rows"])) == 2 + len(found["rows"])


def test_the_reference_is_what_help_says():
    assert with_reference(README) == README
    assert README.count("<details><summary><code>compress ") == len(group.list_commands(click.Context(group)))


if __name__ == "__main__" and sys.argv[1:] == ["--renew"]:
    (ROOT / "README.md").write_text(with_reference(README))
