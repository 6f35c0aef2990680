"""The catalogue: names from files without importing them, variants, plugins, and helpful errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from compress import catalog
from compress.errors import InputRejected, UsageError

FOLDER = Path(catalog.__file__).parent
FIRST = {"nets": "resnet20", "methods": "kd", "pruners": "magnitude", "quantizers": "int8", "runtimes": "ort_cpu"}


def plugin(folder: Path, name: str, text: str) -> tuple[Path, ...]:
    path = folder / f"{name}.py"
    path.write_text(text)
    return (path,)


NET = '"""A net of mine."""\n\ndef build(config, num_classes, input_shape):\n    return num_classes\n'


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_every_file_is_an_entry_with_a_summary_and_its_function(kind: str) -> None:
    files = [p for p in (FOLDER / kind).glob("*.py") if not p.name.startswith("_")]
    names = catalog.names(kind)
    assert len(names) == len(set(names)) >= len(files) > 0
    for name in names:
        assert len(catalog.summary(kind, name)) > 10, name
        entry = catalog.load(kind, name + (":path=/tmp" if name == "folder" else ""))
        ladder = getattr(entry.module, "FIRST", "")  # it turns the knobs of another entry
        assert ladder in names if ladder else callable(getattr(entry.module, catalog.KINDS[kind][1])), name
        assert entry.name == name and entry.kind == kind and entry.spec.partition(":")[0] == name


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_listing_imports_nothing(kind: str) -> None:
    code = (
        "import sys; from compress import catalog\n"
        f"for n in catalog.names('{kind}'): catalog.summary('{kind}', n)\n"
        "heavy = {m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'onnx', 'onnxruntime', 'sklearn'}\n"
        f"print(heavy or [m for m in sys.modules if m.startswith('compress.{kind}')] or 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    assert done.stdout.strip() == "nothing"


def test_variants_are_presets_that_knobs_override() -> None:
    assert catalog.load("nets", "resnet56").config.depth == 56
    both = catalog.load("nets", "resnet8x4:depth=14")
    assert (both.config.depth, both.config.stem, both.config.shortcut) == (14, 32, "B")
    assert catalog.load("nets", both.spec).config == both.config
    assert "resnet_cifar" in catalog.names("nets") and "torchvision" in catalog.names("nets")


def test_flags_win_over_the_spec_and_unknown_ones_are_ignored() -> None:
    for spec in ("mobilenet", "mobilenet:width=0.25"):
        entry = catalog.load("nets", spec, overrides={"width": 0.75, "other": 1})
        assert entry.config.width == 0.75 and entry.label == "mobilenet:width=0.75"
    assert catalog.load("nets", "mobilenet:width=0.25").config.width == 0.25
    assert catalog.load("nets", "mobilenet").label == "mobilenet"


def test_the_first_knob_needs_no_name() -> None:
    assert catalog.load("nets", "torchvision:resnet34").config.name == "resnet34"


@pytest.mark.parametrize(
    ("kind", "spec", "parts"),
    [
        ("nets", "mobilnet", ("unknown network `mobilnet`", "did you mean `mobilenet`?", "resnet56")),
        ("methods", "KD2", ("unknown method", "did you mean `kd`?")),
        ("methods", "kd:temprature=4", ("unknown knob `temprature`", "method `kd`", "did you mean `temperature`?")),
        ("quantizers", "int9", ("unknown quantizer", "`int8`")),
        ("methods", "os.system", ("unknown method",)),
        ("methods", "../errors", ("unknown method",)),
        ("methods", "__init__", ("unknown method",)),
        ("methods", "", ("unknown method",)),
    ],
)
def test_unknown_names_are_explained(kind: str, spec: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.load(kind, spec)
    print(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_a_plugin_is_an_entry_of_the_kind_that_its_function_shows(tmp_path: Path) -> None:
    files = plugin(tmp_path, "my_net", NET)
    assert "my_net" in catalog.names("nets", files) and "my_net" not in catalog.names("methods", files)
    assert catalog.summary("nets", "my_net", files) == "A net of mine."
    entry = catalog.load("nets", "my_net", files)
    assert entry.module.build(None, 7, None) == 7 and catalog.load("nets", "my_net", files).module is entry.module


def test_a_plugin_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    files = plugin(tmp_path, "loud_net", NET + "\nopen(__file__ + '.ran', 'w').close()\n")
    catalog.names("nets", files), catalog.summary("nets", "loud_net", files)
    catalog.load("nets", "mobilenet", files)
    assert not (tmp_path / "loud_net.py.ran").exists()
    catalog.load("nets", "loud_net", files)
    assert (tmp_path / "loud_net.py.ran").exists()


def test_a_plugin_may_not_hide_a_built_in(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="name of the built-in network `mobilenet`") as caught:
        catalog.names("nets", plugin(tmp_path, "mobilenet", NET))
    print(caught.value)


@pytest.mark.parametrize("text", ["def build(", "\x00"])
def test_a_plugin_that_is_no_python_is_named(text: str, tmp_path: Path) -> None:
    files = plugin(tmp_path, "broken", text)
    with pytest.raises((InputRejected, ValueError)) as caught:
        catalog.names("nets", files)
    print(caught.value)
    assert isinstance(caught.value, InputRejected) and str(files[0]) in caught.value.message


def test_a_broken_entry_shows_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        catalog.load("nets", "divides", plugin(tmp_path, "divides", NET + "\n1 / 0\n"))


def test_each_kind_has_the_names_that_its_users_type() -> None:
    assert all(name in catalog.names(kind) for kind, name in FIRST.items())
