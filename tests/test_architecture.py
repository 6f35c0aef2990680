"""Who may import whom, how fast the command line starts, and how much a reader has to hold in the head."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "compress"
KINDS = ("data", "nets", "methods", "pruners", "quantizers", "runtimes")
FILES = sorted(PACKAGE.rglob("*.py"))

VOCABULARY = {"types", "config", "catalog", "errors", "stats", "environment"}
STEPS = {"distill", "prune", "export", "evaluate", "bench"}
# what may use steps, and is used by the command line only
CONDUCTORS = {
    "training_steps", "artifact_steps", "schedules", "estimate", "candidates", "costs", "screen", "pipeline",
    "publish", "pruning_steps", "chain", "rehearsal", "run_measurements", "payoff", "ladder", "quantize_file",
    "int8_steps", "qat_steps", "judge", "conversion", "runtime_files", "convert_file", "app_folder", "arm64_verify",
    "probing", "facts", "files", "measuring", "mutual", "robustness", "sensitivity",
}  # fmt: skip
# the package itself gives `compress.run` to Python's users
FACES = {"cli", "__main__", "__init__"}
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "sklearn", "torch_pruning", "onnxscript"}

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
# name → why it may be longer
LONG: dict[str, str] = {"worker.py": "it must stand alone: it is copied to other machines"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path).removesuffix(".__init__") for path in FILES}
# What no list names lies below the entries, where the least is allowed: a new module begins there.
TOP_LEVEL = {name_of(path).partition(".")[0] for path in FILES}
BELOW_ENTRIES = TOP_LEVEL - VOCABULARY - set(KINDS) - STEPS - CONDUCTORS - FACES
LAYERS = (VOCABULARY, BELOW_ENTRIES, set(KINDS), STEPS, CONDUCTORS, FACES)  # the lowest first


def height(name: str) -> int:
    """The layer of a module, by its name below `compress`."""
    (found,) = [number for number, layer in enumerate(LAYERS) if name.partition(".")[0] in layer]
    return found


@functools.cache
def imported(path: Path, *, lazily: bool = True, for_types: bool = True) -> set[str]:
    """Every module that the file imports; names imported from `compress` or a package of it count as modules. Without
    `lazily` those inside functions are left out, without `for_types` those that only type checkers read.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _statements(tree, lazily, for_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _statements(tree: ast.AST, lazily: bool, for_types: bool):
    for node in ast.iter_child_nodes(tree):
        yield node
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if (lazily or not function) and (for_types or not checking):
            yield from _statements(node, lazily, for_types)


def ours(path: Path, **options: bool) -> set[str]:
    """The modules of this package that the file imports, as names below `compress`."""
    below = {name.removeprefix("compress.") for name in imported(path, **options) if name.startswith("compress.")}
    return below & MODULES


def test_the_reader_of_imports_sees_them() -> None:
    assert {"train", "taps", "network"} <= ours(PACKAGE / "distill.py")
    assert "torch" in imported(PACKAGE / "plan.py") and "torch" not in imported(PACKAGE / "plan.py", lazily=False)
    assert "chain" in ours(PACKAGE / "facts.py") and "chain" not in ours(PACKAGE / "facts.py", for_types=False)


def test_every_module_belongs_to_one_layer() -> None:
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS)), "a name stands in two lists"
    assert set().union(*LAYERS) == TOP_LEVEL, "a list names what is not there"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_imports_one_of_a_higher_layer(path: Path) -> None:
    """Neither inside a function nor for a type: what is below must be understood without what is above."""
    name = name_of(path)
    higher = {other for other in ours(path) if height(other) > height(name)}
    assert not higher, f"{name} imports {higher}: does it lie too low, or do they?"


@pytest.mark.parametrize("name", sorted(CONDUCTORS))
def test_conductors_use_steps(name: str) -> None:
    """Else they lie lower, where less is allowed."""
    assert any(height(other) >= height("distill") for other in ours(PACKAGE / f"{name}.py"))


@pytest.mark.parametrize("name", sorted(VOCABULARY))
def test_the_vocabulary_imports_the_standard_library_numpy_and_itself(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= VOCABULARY
    foreign = {m.partition(".")[0] for m in imported(path)} - {"compress", "numpy", *sys.stdlib_module_names}
    assert not foreign


@pytest.mark.parametrize("kind", KINDS)
def test_entries_import_no_entry_and_no_step(kind: str) -> None:
    for path in (PACKAGE / kind).glob("*.py"):
        used = ours(path)
        assert not {m for m in used if m.partition(".")[0] in KINDS}, path
        assert not used & (STEPS | CONDUCTORS) and not any(m.startswith("cli") for m in used), path


@pytest.mark.parametrize("name", sorted(STEPS))
def test_steps_import_no_step(name: str) -> None:
    used = ours(PACKAGE / f"{name}.py")
    assert not used & ((STEPS | CONDUCTORS) - {name}) and not any(m.startswith("cli") for m in used)


def test_nothing_imports_the_command_line_but_itself() -> None:
    users = {name_of(path) for path in FILES if any(m.partition(".")[0] == "cli" for m in ours(path))}
    assert all(name.startswith("cli.") or name == "__main__" for name in users), users


def test_no_module_imports_itself_in_a_circle() -> None:
    # inside functions neither: a type may be named in a circle, since nothing is imported for it
    graph = {name_of(path).removesuffix(".__init__"): ours(path, for_types=False) for path in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        # a module of the report names its package, which is not an import of the package's other modules
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, set()) - {name, name.rpartition(".")[0]}:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def loaded(code: str) -> set[str]:
    """The packages that are loaded after `code`, in a process of its own."""
    command = f"{code}\nimport sys\nprint('\\nloaded', *{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded ")[2].split())


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "bench",
        "worker",
        "child",
        "report",
        "stats",
        "environment",
        "store",
        "runtimes.ort_cpu",
        "recipe",
        "choice",
        "costs",
    ],  # fmt: skip
)
def test_the_measuring_side_imports_nothing_heavy(module: str) -> None:
    assert not loaded(f"import compress.{module}") & HEAVY


HELP = """
from compress.cli.main import compress
try:
    compress.main({arguments}, standalone_mode=True)
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["list", "nets"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    # seen in what is loaded rather than in time, which depends on the machine
    assert not loaded(HELP.format(arguments=arguments)) & (HEAVY | {"numpy", "PIL", "safetensors"})


def test_torch_would_be_seen() -> None:
    assert "torch" in loaded("import compress.losses")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE or path.name in LONG
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and f"{path.name} {node.name}" not in LONG:
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path.name} {node.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def test_the_list_of_exceptions_is_true() -> None:
    for entry in LONG:
        file, _, function = entry.partition(" ")
        (text,) = [path.read_text(encoding="utf-8") for path in FILES if path.name == file]
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == function]
        lengths = [n.end_lineno - n.lineno - LONGEST_FUNCTION for n in functions]
        assert max(lengths, default=len(text.splitlines()) - LONGEST_FILE - 1) >= 0, f"strike off {entry}: it is short"


def test_a_finished_run_needs_no_torch() -> None:
    """Its import takes longer than all that is left to do; only what trains, exports and measures brings it."""
    code = "import sys; from compress import pipeline, publish, report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
