"""The folder is the registry: an entry is one module in `compress/<kind>/`, named as it is typed on the command line.

A trailing underscore of a module name is dropped (`torchvision_.py` is typed `torchvision`). An entry may name presets
of its own knobs in a literal `VARIANTS = {"resnet20": {"depth": 20}, …}`; names are read from the source, so that
listing imports nothing. A user's own net or method comes as a plugin: a Python file named on the command line.
"""

import ast
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from compress import config
from compress.errors import InputRejected, unknown

# What a kind is called in messages, and the function by which a plugin shows which kind it is.
KINDS = {
    "data": ("data set", "load"),
    "nets": ("network", "build"),
    "methods": ("method", "loss"),
    "pruners": ("pruner", "saliency"),
    "quantizers": ("quantizer", "apply"),
    "runtimes": ("runtime", "open_session"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One catalogue entry, imported: its module, its resolved configuration and its full spec.

    `label` is the spec as a person would type it: without what is the default.
    """

    kind: str
    name: str
    module: ModuleType
    config: Any
    spec: str
    label: str


def _sources(kind: str, plugins: tuple[Path, ...]) -> dict[str, Path]:
    folder = Path(__file__).parent / kind
    files = {p.stem.rstrip("_"): p for p in sorted(folder.glob("[a-z]*.py"))}
    for plugin in plugins:
        if KINDS[kind][1] in _top_level_functions(plugin):
            if plugin.stem in files:
                raise InputRejected(
                    f"plugin {plugin} has the name of the built-in {KINDS[kind][0]} `{plugin.stem}`",
                    hint="rename the file",
                )
            files[plugin.stem] = plugin
    return files


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputRejected(f"cannot read the Python file {path}: {error}") from error


def _top_level_functions(path: Path) -> set[str]:
    return {node.name for node in _parse(path).body if isinstance(node, ast.FunctionDef)}


def _variants(path: Path) -> dict[str, dict[str, Any]]:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "VARIANTS" for t in node.targets):
            return ast.literal_eval(node.value)
    return {}


def names(kind: str, plugins: tuple[Path, ...] = ()) -> list[str]:
    """Every name that may be typed for `kind`, without importing an entry."""
    found: list[str] = []
    for name, path in _sources(kind, plugins).items():
        variants = _variants(path)
        found += [name, *variants] if name not in variants else list(variants)
    return found


def path_of(kind: str, name: str, plugins: tuple[Path, ...] = ()) -> Path:
    """The file of an entry, without importing it. Raises UsageError for an unknown name."""
    return _find(kind, name, plugins)[0].resolve()


def summary(kind: str, name: str, plugins: tuple[Path, ...] = ()) -> str:
    """The first line of the entry's docstring, without importing it."""
    path, _ = _find(kind, name, plugins)
    return (ast.get_docstring(_parse(path)) or "").partition("\n")[0]


def _find(kind: str, name: str, plugins: tuple[Path, ...]) -> tuple[Path, dict[str, Any]]:
    sources = _sources(kind, plugins)
    for stem, path in sources.items():
        variants = _variants(path)
        if name in variants:
            return path, variants[name]
        if name == stem:
            return path, {}
    raise unknown(KINDS[kind][0], name, names(kind, plugins))


def _import(kind: str, path: Path) -> ModuleType:
    if path.parent == Path(__file__).parent / kind:
        return importlib.import_module(f"compress.{kind}.{path.stem}")
    module_name = f"compress_plugin_{path.stem}"
    if module_name in sys.modules and getattr(sys.modules[module_name], "__file__", None) == str(path):
        return sys.modules[module_name]
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    module_spec.loader.exec_module(module)
    return module


def load(kind: str, spec: str, plugins: tuple[Path, ...] = (), overrides: dict[str, Any] | None = None) -> Entry:
    """Import the entry that `spec` (`name:knob=value,…`) names and build its configuration.

    `overrides` (flags such as --width) win over the spec's knobs, those over the variant's preset. A broken entry
    shows its own traceback.
    """
    name = spec.partition(":")[0].strip()
    path, preset = _find(kind, name, plugins)
    module = _import(kind, path)
    config_class = getattr(module, "Config", config.NoKnobs)
    fields = dataclasses.fields(config_class)
    _, values = config.parse_spec(spec, fields[0].name if fields else "")
    known = {f.name for f in fields}
    extra = {k: v for k, v in (overrides or {}).items() if k in known}
    built = config.build(config_class, {**preset, **values, **extra}, where=f"{KINDS[kind][0]} `{name}`")
    explicit = ",".join(f"{k}={v}" for k, v in {**values, **extra}.items())
    return Entry(
        kind=kind,
        name=name,
        module=module,
        config=built,
        spec=config.format_spec(name, built),
        label=f"{name}:{explicit}" if explicit else name,
    )
