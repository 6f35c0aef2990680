"""The LiteRT kit is made by the real pip, of wheels that lie here; `test_convert` converts in one."""

import zipfile

import pytest
from click.testing import CliRunner

from compress import litert_kit
from compress.cli import doctor
from compress.cli.main import compress as group
from compress.errors import CompressError
from compress.runtimes import litert


def wheel(folder, name, version, files, needs=()):
    stem = f"{name.replace('-', '_')}-{version}"
    told = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {other}" for other in needs)]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as content:
        for path in files:
            content.writestr(path, "")
        content.writestr(f"{stem}.dist-info/METADATA", "\n".join(told) + "\n")
        content.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        content.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """All that pip can reach: a folder of wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(litert_kit, "NEEDED_BYTES", 10**8)
    return folder


def test_a_kit_has_the_converter_with_the_torch_that_it_wants(index, tmp_path, monkeypatch):
    wheel(index, "litert-torch", "0.12.0", ["litert_torch/__init__.py"], ["torch<2.15", "ai-edge-litert"])
    wheel(index, "torch", "2.16.0", ["torch/__init__.py"])
    wheel(index, "torch", "2.14.9", ["torch/__init__.py"])
    wheel(index, "ai-edge-litert", "2.4.0", ["ai_edge_litert/__init__.py", "ai_edge_litert/interpreter.py"])
    wheel(index, "onnx", "1.22.0", ["onnx/__init__.py"])
    monkeypatch.setenv("COMPRESS_LITERT_KIT", str(tmp_path / "kit"))
    assert litert_kit.packages(tmp_path / "kit") == {} and litert.kit() is None
    done = CliRunner().invoke(group, ["kit", "litert"], catch_exceptions=False)
    assert done.exit_code == 0 and str(tmp_path / "kit") in done.stdout
    assert litert_kit.packages(tmp_path / "kit") == {
        "litert-torch": "0.12.0", "torch": "2.14.9", "ai-edge-litert": "2.4.0", "onnx": "1.22.0",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    # found from now on, and doctor says so instead of naming the pip line
    assert litert.kit() == tmp_path / "kit"
    assert doctor.notes(litert, "2.3.0") == [f"converts in the environment {tmp_path / 'kit'}"]
    with pytest.raises(CompressError, match="exists already"):
        litert_kit.build(tmp_path / "kit", litert.CONVERTS_WITH)


def test_what_pip_cannot_find_leaves_nothing(index, tmp_path):
    with pytest.raises(CompressError, match="No matching distribution found for litert-torch") as caught:
        litert_kit.build(tmp_path / "kit", litert.CONVERTS_WITH, tell=lambda text: None)
    print(caught.value)
    assert caught.value.code == "E-PIP" and [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(litert_kit, "NEEDED_BYTES", 10**18)
    with pytest.raises(CompressError, match="MB left; the kit needs"):
        litert_kit.build(tmp_path / "kit", litert.CONVERTS_WITH)


def test_a_kit_that_is_no_more_is_none(tmp_path):
    """Its base Python was removed, or the file is damaged: as if there were none."""
    (tmp_path / "kit.json").write_text('{"litert-torch": "1"}')
    assert litert_kit.packages(tmp_path) == {}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/nowhere/python3")
    assert litert_kit.packages(tmp_path) == {}
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").touch()
    assert litert_kit.packages(tmp_path) == {"litert-torch": "1"}
    (tmp_path / "kit.json").write_text("{")
    assert litert_kit.packages(tmp_path) == {}


def test_a_python_without_venv_says_how_to_have_it(tmp_path, monkeypatch):
    monkeypatch.setattr(litert_kit, "NEEDED_BYTES", 10**8)
    monkeypatch.setattr(litert_kit.sys, "executable", "/bin/false")
    with pytest.raises(CompressError, match="exit status 1") as caught:
        litert_kit.build(tmp_path / "kit", litert.CONVERTS_WITH, tell=lambda text: None)
    assert "apt install python3-venv" in caught.value.hint and not list(tmp_path.iterdir())


def test_without_a_kit_both_ways_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_LITERT_KIT", str(tmp_path / "none"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (said,) = doctor.notes(litert, "2.3.0")
    assert "pip install 'litert-torch" in said and "compress kit litert" in said
    with pytest.raises(RuntimeError, match="compress kit litert"):
        litert.convert(tmp_path / "a.onnx", tmp_path, "float32")
