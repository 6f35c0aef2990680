"""What people see when something goes wrong: every error has a code, every code a section and a snapshot.

messages.txt holds one error of each code as it is printed, wordings.txt what every place in the code that makes one
says. After a message was changed on purpose, write them anew and read the difference:

    python tests/test_errors.py --renew
"""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from error_cases import CASES, Place

from compress import bugs, catalog, errors, recipe, recipe_places
from compress.cli import explain, failures
from compress.cli.main import compress as group
from compress.cli.main import main
from compress.errors import CompressError
from compress.progress import QUIET_VARIABLE

PACKAGE = Path(errors.__file__).parent
MESSAGES, WORDINGS = (Path(__file__).with_name(name) for name in ("messages.txt", "wordings.txt"))
SECTIONS = explain.sections()
# set by click, by the command line for what was not foreseen, and by the classes for plugins
NOT_AT_A_SITE = {"E-OPTION", "E-BUG", "E-PLUGIN", "E-PLUGIN-USAGE", "E-PLUGIN-INPUT", "E-PLUGIN-MEASUREMENT"}


def classes() -> dict[str, type[CompressError]]:
    from compress.train import Interrupted

    found = {each.__name__: each for each in (*CompressError.__subclasses__(), CompressError)}
    return {name: each for name, each in found.items() if each.__module__.startswith("compress.")} | {
        "Interrupted": Interrupted
    }


def calls() -> list[tuple[Path, ast.Call]]:
    """Every construction of an error in the package, and the file that it stands in."""
    names = {*classes(), "unknown"}
    return [
        (path, node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    ]


def sites() -> list[tuple[str, str, ast.expr | None]]:
    """(place, class or `unknown`, the code's expression) of every construction of an error in the package."""
    found = []
    for path, node in calls():
        codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        name = ast.unparse(node.func).rpartition(".")[2]
        found.append((f"{path.name}:{node.lineno}", name, codes[0] if codes else None))
    return found


def wording(node: ast.expr) -> str:
    """What an expression says, with what is filled in while it runs in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(wording, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return wording(node.left) + wording(node.right)
    if isinstance(node, ast.IfExp):
        return f"[{wording(node.body)} | {wording(node.orelse)}]"
    return f"{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}"


def wordings() -> list[str]:
    """What every place says, hints below it, by file; several alike are told once."""
    found = []
    for path, node in calls():
        more = {keyword.arg: wording(keyword.value) for keyword in node.keywords}
        said = " ".join([more.pop("code", ""), *map(wording, node.args)])
        lines = [f"{path.relative_to(PACKAGE)}: {said.strip()}", *(f"  {k}: {v}" for k, v in sorted(more.items()))]
        found.append("\n".join(lines))
    return sorted({*found})


def test_every_error_is_given_its_code_where_it_is_made() -> None:
    assert len(sites()) > 250
    for place, name, code in sites():
        if name == "unknown" and code is None:
            continue  # E-NAME-UNKNOWN
        forwarded = isinstance(code, ast.Name) and code.id == "code" and place.startswith("errors.py")
        literal = isinstance(code, ast.Constant) and isinstance(code.value, str) and code.value in SECTIONS
        assert literal or forwarded, f"{place}: {name} needs the code of a section of ERRORS.md"


def test_the_codes_are_the_sections_and_have_one_exit_code_each() -> None:
    used: dict[str, set[int]] = {}
    for _, name, code in sites():
        if isinstance(code, ast.Constant):
            exit_code = errors.UsageError.exit_code if name == "unknown" else classes()[name].exit_code
            used.setdefault(code.value, set()).add(exit_code)
    assert {*used} | NOT_AT_A_SITE == {*SECTIONS} and not {*used} & NOT_AT_A_SITE
    for code, exits in used.items():
        documented = explain.exit_codes(SECTIONS[code])
        # the exit code of an interruption is the signal's
        assert sorted(exits) == documented or (code == "E-INTERRUPTED" and documented == [130, 143]), code
    for each in classes().values():
        assert [each.exit_code] == explain.exit_codes(SECTIONS[each.plugin_code])
    assert explain.exit_codes(SECTIONS["E-OPTION"]) == [2] and explain.exit_codes(SECTIONS["E-BUG"]) == [1]


def test_the_index_is_in_order_and_short() -> None:
    assert list(SECTIONS) == sorted(SECTIONS)
    for code, text in SECTIONS.items():
        first, _, rest = text.partition("\n")
        assert len(code) < 23 and len(first) <= 57 and first.endswith("."), code
        assert rest.startswith("\nExit code: ") and "\n\nTo do: " in rest and len(text.splitlines()) <= 12, code
        assert max(map(len, text.splitlines())) <= 120, code


def test_the_commands_of_the_index_exist() -> None:
    context = click.Context(group)
    text = " ".join(SECTIONS.values()).replace("\n", " ")
    commands = [line.split() for line in re.findall(r"`compress ([a-z][^`]*)`", text)]
    assert len(commands) > 50
    keys = {field.name for field in recipe.dataclasses.fields(recipe.Recipe)}
    for words in commands:
        command = group.get_command(context, words[0])
        assert command, words
        own = getattr(command, "commands", {}).values()
        options = {name for each in (command, *own) for parameter in each.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, words
        assert {w.partition("=")[0] for before, w in zip(words, words[1:], strict=False) if before == "--set"} <= keys


# --- snapshots


def printed(code: str, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """What the case's error prints, with the folder as DIR."""
    patch.chdir(folder)
    patch.setenv("COMPRESS_STORE", str(folder / "store"))
    patch.setenv(QUIET_VARIABLE, "")
    patch.delenv(failures.DEBUG_VARIABLE, raising=False)
    patch.setattr(sys, "argv", ["compress", "run"])
    shown = io.StringIO()
    try:
        CASES[code](Place(folder, patch))
    except Exception as error:
        with contextlib.redirect_stderr(shown):
            exit_code = failures.tell(error)
        assert exit_code in explain.exit_codes(SECTIONS[code]), code
    text = shown.getvalue().rstrip("\n")
    for path in (folder.resolve(), folder):
        text = text.replace(str(path), "DIR")
    text = text.replace(str(PACKAGE.parent), "PACKAGE")
    return re.sub(r"\d+ MB free", "N MB free", text)


def kept() -> dict[str, str]:
    parts = re.split(r"^# (E-[A-Z0-9-]+)\n", MESSAGES.read_text(encoding="utf-8"), flags=re.M)
    return {code: text.rstrip("\n") for code, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_code_has_a_case() -> None:
    assert {*CASES} == {*SECTIONS} and list(kept()) == sorted(SECTIONS)


@pytest.mark.parametrize("code", sorted(CASES))
def test_the_message_is_as_it_was(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(code, tmp_path, monkeypatch)
    assert text.startswith(f"error[{code}]: ") and text.endswith(f"\n  more: compress explain {code}")
    assert text == kept()[code]


def test_what_every_place_says_is_as_it_was() -> None:
    assert len(wordings()) > 280
    assert "\n".join(wordings()) + "\n" == WORDINGS.read_text(encoding="utf-8")


def renew() -> None:
    WORDINGS.write_text("\n".join(wordings()) + "\n", encoding="utf-8")
    blocks = []
    for code in sorted(CASES):
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            blocks.append(f"# {code}\n{printed(code, Path(folder), patch)}\n")
    MESSAGES.write_text("\n".join(blocks), encoding="utf-8")


# --- compress explain


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`compress …` as the entry point runs it: exit code, stdout, stderr."""

    def call(*arguments: str, **variables: str) -> tuple[int, str, str]:
        plain = {"COMPRESS_STORE": str(tmp_path / "store"), QUIET_VARIABLE: "", failures.DEBUG_VARIABLE: ""}
        for name, value in (plain | variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return stopped.value.code or 0, shown.out, shown.err

    return call


def test_explain_prints_a_section_or_all_first_lines(run) -> None:
    code, out, _ = run("explain", "e-data-classes")
    assert code == 0 and out.startswith("E-DATA-CLASSES\n\n") and SECTIONS["E-DATA-CLASSES"] in out
    code, out, _ = run("explain")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == sorted(SECTIONS)
    assert max(map(len, out.splitlines())) <= 80


def test_explain_as_json(run) -> None:
    rows = json.loads(run("explain", "--json")[1])
    assert [row["code"] for row in rows] == sorted(SECTIONS)
    assert json.loads(run("explain", "--json", "E-INTERRUPTED")[1])["exit_code"] == [130, 143]


def test_explain_offers_the_nearest_code(run) -> None:
    code, out, err = run("explain", "E-DATA-CLASS")
    assert code == 2 and out == "" and "did you mean `E-DATA-CLASSES`?" in err
    assert "`compress explain` lists all" in run("explain", "xyz")[2]


def test_explain_starts_without_what_is_heavy() -> None:
    script = "import sys\nfrom compress.cli.main import compress\ncompress.main(['explain', 'E-BUG'])\n"
    script = script.replace("compress.main(", "compress.main(standalone_mode=False, args=")
    loaded = "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script + loaded], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "onnx", "PIL", "onnxruntime"} & {*done.stdout.split()}


def test_the_index_is_shipped() -> None:
    assert '"ERRORS.md"' in (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")


# --- what is printed beside the message


def test_click_keeps_its_exit_code_and_its_nearest_name(run) -> None:
    code, out, err = run("run", "--studen", "mobilenet")
    assert code == 2 and out == "" and err.startswith("error[E-OPTION]: No such option") and "--student" in err
    assert "run --help\n" in err
    code, out, err = run("--quiet", "list", "metods")
    assert code == 2 and "more:" not in err and err.count("\n") == 2


def test_without_a_command_the_help_is_shown(run) -> None:
    code, out, err = run()
    assert "Exit codes:" in out + err and "error[" not in err


def test_a_cause_is_told_once() -> None:
    try:
        try:
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise errors.InputRejected("the cache\nis damaged", code="E-STORE-DAMAGED") from error
        except CompressError as error:
            raise CompressError("cannot go on", code="E-WRITE", hint="free some space") from error
    except CompressError as error:
        text = failures.text(error)
        assert str(error) == "cannot go on\n  hint: free some space"
    assert text.splitlines()[1:4] == [
        "  cause: the cache is damaged",
        "  cause: No space left on device",
        "  hint: free some space",
    ]
    told = CompressError("cannot read x: No space left on device", code="E-WRITE")
    told.__cause__ = OSError(28, "No space left on device")
    assert "cause" not in failures.text(told)


def test_debug_shows_the_traceback_too(run) -> None:
    code, _, err = run("--debug", "ruin")
    assert code == 2 and err.startswith("Traceback (most recent call last)") and "\nerror[E-NAME-UNKNOWN]: " in err
    assert "Traceback" not in run("ruin")[2]


def test_a_terminal_gets_lines_that_it_holds_and_a_log_one_line(monkeypatch) -> None:
    error = CompressError("word " * 40 + "a" * 90, code="E-BUG", hint="more " * 30)
    assert failures.text(error).count("\n") == 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    lines = failures.text(error).splitlines()
    # what has no place to break, such as a path, stays whole to be copied
    assert max(len(line) for line in lines if "aaa" not in line) <= 80 and "    " + "a" * 90 in lines
    assert " ".join(" ".join(lines).split()) == " ".join(failures.text(error).split())


def test_interruptions_are_no_bugs(run, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "names", stop)
    code, _, err = run("list")
    assert (
        code == 130
        and err.strip() == "stopped; the finished steps of a run are kept, and the same command goes on from there"
    )


# --- errors of our own


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A command that fails as nobody foresaw, in a home folder with a name."""
    monkeypatch.setenv("HOME", str(tmp_path / "jane doe"))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")

    def fail(*_: object) -> None:
        pixels = "\n[[17 18 19]\n [20 21 22]]"
        try:
            open(Path.home() / "photos" / "cat.png")
        except OSError as error:
            raise ValueError(f"odd shape in {Path.home() / 'photos' / 'cat.png'}: {pixels}") from error

    monkeypatch.setattr(catalog, "names", fail)


def test_a_bug_leaves_a_report_instead_of_a_traceback(run, broken, tmp_path) -> None:
    code, out, err = run("list")
    assert code == 1 and out == "data\n"
    assert (
        err.startswith("error[E-BUG]: ValueError: odd shape in ")
        and "Traceback" not in err
        and len(err.splitlines()) == 3
    )
    (path,) = (tmp_path / "store" / "bugs").iterdir()
    assert str(path) in err
    text = path.read_text(encoding="utf-8")
    assert "compress list" in text and "compress/cli/list_.py" in text and "which led to" in text
    assert "FileNotFoundError: " in text and "…/cat.png" in text and "python 3." in text and "torch " in text
    for private in (str(tmp_path), "jane", "hunter2", "SECRET", "17 18", str(PACKAGE.parent)):
        assert private not in text, private


def test_the_command_line_is_redacted() -> None:
    home = str(Path.home())
    for given, kept_text in {
        f"compress run --data {home}/photos/2024 --on ssh://me@host:22/x": "compress run --data …/2024 --on ssh://…",
        "--data=/srv/a/b --set x=1/2 and/or": "--data=…/b --set x=1/2 and/or",
        "'/media/my disk/a b.onnx'": "'…/a b.onnx'",
        "compress bench x --on adb:R5CT10ABCDE --tools t": "compress bench x --on adb:… --tools t",
        f'File "{PACKAGE}/cli/main.py", line 3': 'File "compress/cli/main.py", line 3',
        'File "/x/site-packages/click/core.py", line 3': 'File "site-packages/click/core.py", line 3',
    }.items():
        assert bugs.redacted(given) == kept_text


def test_without_a_place_for_the_report_the_traceback_is_shown(run, broken, tmp_path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("list", COMPRESS_STORE=str(tmp_path / "file"))
    assert code == 1 and "error[E-BUG]: ValueError: " in err and "Traceback (most recent call last)" in err
    assert err.count("Traceback (most recent call last)") == 2  # the cause and the error


def test_debug_shows_the_traceback_of_a_bug_and_keeps_the_report(run, broken, tmp_path) -> None:
    code, _, err = run("--debug", "list")
    assert code == 1 and "Traceback" in err and len(list((tmp_path / "store" / "bugs").iterdir())) == 1


# --- places in recipe files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epohcs = 3", 1),
        ("seed = 1\n\n  epohcs = 3", 3),
        ('"epohcs" = 3', 1),
        ("epohcs.deep = 3", 1),
        ('kd = [\n  "epohcs = 2",\n  # epohcs = 2 [\n]\nepohcs = 3', 5),
        ('data = """\nepohcs = 3\n"""\nepohcs = 3', 4),
        ("data = '''\nepohcs\n'''\nepohcs = 3", 4),
        ('data = "a \\" [ # b"\nepohcs = 3', 2),
        ("[other]\nepohcs = 1\n[epohcs]\nseed = 1", 3),
        ("[[epohcs]]\nseed = 1", 1),
        ("data = { epohcs = 1 }", 0),
        ("", 0),
    ],
)
def test_the_line_of_a_key(text: str, line: int) -> None:
    shown = recipe_places.of_key(Path("r.toml"), text, "epohcs")
    assert shown.startswith(f"  r.toml:{line}\n") if line else shown == ""
    if line:
        above, below = shown.splitlines()[1:]
        assert below.count("^") in (6, 8) and "epohcs" in above[below.index("^") : below.rindex("^") + 1]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a = 1\nb == 2\n", 2, 4), ("a = [1,\n", 1, 8), ('a = "\n', 1, 6), ("a = 1\na = 2", 2, 0)],
)
def test_the_place_of_a_syntax_error(text: str, line: int, column: int, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(errors.InputRejected) as refused:
        recipe.read(path)
    shown = refused.value.excerpt
    assert shown.splitlines()[0] == f"  {path}:{line}" and shown.splitlines()[2].endswith("^")
    assert not column or shown.splitlines()[2].index("^") - len("  1 | ") == column - 1
    assert str(refused.value).startswith(f"the recipe {path} is not valid TOML: ")


def test_long_lines_and_strange_letters_are_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('a = "' + "x" * 300 + '\x1b[31m" b\n')
    with pytest.raises(errors.InputRejected) as refused:
        recipe.read(path)
    lines = refused.value.excerpt.splitlines()
    assert max(map(len, lines[1:])) < 120 and "\x1b" not in refused.value.excerpt and lines[2].endswith("^")
    (tmp_path / "bytes.toml").write_bytes(b"a = \xff")
    with pytest.raises(errors.InputRejected) as refused:
        recipe.read(tmp_path / "bytes.toml")
    assert refused.value.excerpt == ""


def test_an_error_of_the_command_line_points_to_no_file(run, tmp_path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("seed = 3\nwidth = 2\n")
    _, _, err = run("run", "--recipe", str(path), "--student", "auto", "--dry-run")
    assert "r.toml:2" in err and "2 | width = 2" in err
    _, _, err = run("run", "--recipe", str(path), "--set", "threads=0", "--dry-run")
    assert "error[E-KNOB-RANGE]" in err and "r.toml:" not in err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('data = "digits"\nstudent = "mobilnet"', 2),
        ('student = "mobilenet"\nkd = [\n  "kd:temprature=4",\n]', 2),
        ('# cifra10\ndata = "cifra10"', 2),
        ('data = "digits"', 0),
    ],
)
def test_a_name_that_is_met_later_points_to_its_line_too(run, tmp_path, text: str, line: int) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    given = [] if line else ["--student", "mobilnet"]
    code, _, err = run("run", "--recipe", str(path), "--dry-run", *given)
    assert code == 2 and "did you mean" in err
    assert f"\n  {path}:{line}\n" in err if line else "r.toml" not in err


def test_a_plugin_needs_no_code() -> None:
    error = errors.UsageError("no", hint="yes")
    assert error.code == "E-PLUGIN-USAGE" and str(error) == "no\n  hint: yes"


if __name__ == "__main__" and sys.argv[1:] == ["--renew"]:
    renew()
