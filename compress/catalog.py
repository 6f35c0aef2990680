"""The folder is the registry: an entry is one module in `compress/<kind>/`, named as it is typed on the command line.

A trailing underscore of a module name is dropped (`torchvision_.py` is typed `torchvision`). An entry may name presets
of its own knobs in a literal `VARIANTS = {"resnet20": {"depth": 20}, …}`, and a network specs that are worth a look as
a student in `CANDIDATES = ("mobilenet:width=0.25", …)`; both are read from the source, so that listing imports nothing.
What an entry takes from an optional distribution is named in `PACKAGES = ("timm",)`, so that stored results know it.
A user's own net or method comes as a plugin: a Python file named on the command line.
"""

import ast
import dataclasses
import functools
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
                    code="E-PLUGIN-SOURCE",
                    hint="rename the file",
                )
            files[plugin.stem] = plugin
    return files


def _parse(path: Path) -> ast.Module:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputRejected(f"cannot read the Python file {path}: {error}", code="E-PLUGIN-SOURCE") from error


@functools.lru_cache(maxsize=1024)
def _parsed(path: Path, changed_ns: int) -> ast.Module:
    """Every look at the catalogue asks all files of a kind: they are read once, and again when one changes."""
    return ast.parse(path.read_text())


def _top_level_functions(path: Path) -> set[str]:
    return {node.name for node in _parse(path).body if isinstance(node, ast.FunctionDef)}


def _literal(path: Path, name: str) -> Any:
    """The literal that the file gives `name` at its top level, or None."""
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                raise InputRejected(
                    f"{name} in {path} is not a literal: it is read without running the file", code="E-PLUGIN-SOURCE"
                ) from None
    return None


def _variants(path: Path) -> dict[str, dict[str, Any]]:
    return _literal(path, "VARIANTS") or {}


def candidates(plugins: tuple[Path, ...] = ()) -> dict[str, tuple[str, ...] | None]:
    """The specs that each network's file declares as CANDIDATES, without importing it. None where it declares nothing;
    none at all where it only stands for networks of others.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for name, path in _sources("nets", plugins).items():
        declared = _literal(path, "CANDIDATES")
        if declared is not None and not (
            isinstance(declared, tuple | list) and all(isinstance(spec, str) and spec for spec in declared)
        ):
            raise InputRejected(
                f"CANDIDATES in {path} must be a tuple of specs, got {declared!r}", code="E-PLUGIN-SOURCE"
            )
        found[name] = None if declared is None else tuple(declared)
    return found


def names(kind: str, plugins: tuple[Path, ...] = ()) -> list[str]:
    """Every name that may be typed for `kind`, without importing an entry."""
    return [name for stem, path in _sources(kind, plugins).items() for name in _names_of(stem, path)]


def names_of(kind: str, stem: str, plugins: tuple[Path, ...] = ()) -> list[str]:
    """The names of one file's entry: its own and its variants'."""
    return _names_of(stem, _sources(kind, plugins)[stem])


def _names_of(stem: str, path: Path) -> list[str]:
    variants = _variants(path)
    return [stem, *variants] if stem not in variants else list(variants)


def path_of(kind: str, name: str, plugins: tuple[Path, ...] = ()) -> Path:
    """The file of an entry, without importing it. Raises UsageError for an unknown name."""
    return _find(kind, name, plugins)[0].resolve()


def packages(kind: str, spec: str, plugins: tuple[Path, ...] = ()) -> tuple[str, ...]:
    """The distributions, beside this package's own requirements, whose version decides what the entry makes."""
    path, _ = _find(kind, spec.partition(":")[0].strip(), plugins)
    return tuple(_literal(path, "PACKAGES") or ())


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


def load(
    kind: str, spec: str, plugins: tuple[Path, ...] = (), overrides: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Import the entry that `spec` (`name:knob=value,…`) names and build its configuration.

    `overrides` (flags such as --width) win over the spec's knobs, those over the variant's preset, and that over
    `defaults`. A broken entry shows its own traceback.
    """
    name = spec.partition(":")[0].strip()
    path, preset = _find(kind, name, plugins)
    module = _import(kind, path)
    config_class = getattr(module, "Config", config.NoKnobs)
    fields = dataclasses.fields(config_class)
    _, values = config.parse_spec(spec, fields[0].name if fields else "")
    known = {f.name for f in fields}
    extra = {k: v for k, v in (overrides or {}).items() if k in known}
    first = {k: v for k, v in (defaults or {}).items() if k in known}
    built = config.build(config_class, {**first, **preset, **values, **extra}, where=f"{KINDS[kind][0]} `{name}`")
    explicit = ",".join(f"{k}={v}" for k, v in {**values, **extra}.items())
    return Entry(
        kind=kind,
        name=name,
        module=module,
        config=built,
        spec=config.format_spec(name, built),
        label=f"{name}:{explicit}" if explicit else name,
    )
