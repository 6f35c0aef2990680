"""Options that several commands share, and the way from flags to a Recipe."""

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress import config, recipe, recipe_places
from compress.errors import UsageError
from compress.progress import say

if TYPE_CHECKING:
    from compress.child import Host

plugin = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Python file with a network or method of your own; its name is the file's. It is executed.",
)
# flag → kind of the catalogue whose names the shell completes
_COMPLETED = {
    "data": "data", "teacher": "nets", "student": "nets", "assistant": "nets", "peer": "nets", "kd": "methods",
    "pruner": "pruners", "quantize": "quantizers", "runtimes": "runtimes",
}  # fmt: skip


def completion(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Names of the catalogue that begin as the word does; of a list apart by commas, the last of its words."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from compress import catalog

        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in catalog.names(kind) if name.startswith(last)]

    return complete


threads = click.option("--threads", default="1", show_default=True, help="Numbers of threads, apart by commas.")
on = click.option(
    "--on",
    default="",
    metavar="ADDRESS",
    help="Another machine: ssh://USER@HOST:PORT/PATH/TO/PYTHON; the last two may be left out.",
)
on_or_phone = click.option(
    "--on",
    default="",
    metavar="ADDRESS",
    help="Another machine: ssh://USER@HOST:PORT/PATH/TO/PYTHON, the last two may be left out; or adb:SERIAL, a phone.",
)

# what has a flag of its own; every other key of a recipe is set by --set
_FLAGS = (
    "data", "teacher", "teacher_checkpoint", "teacher_mean", "teacher_std", "student", "width", "max_latency",
    "max_size", "screen_epochs", "kd", "prune", "pruner", "quantize", "target", "epochs", "views", "assistant", "peer",
    "generations", "unlabelled", "transfer_lacks", "max_drop", "runtimes", "seed", "device", "out", "on_bad",
)  # fmt: skip


def recipe_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of a Recipe, made from its fields; values stay texts until the Recipe checks them."""
    fields = {f.name: f for f in dataclasses.fields(recipe.Recipe)}
    for name in reversed(_FLAGS):
        default = fields[name].default
        several = isinstance(default, tuple) and fields[name].metadata["separator"] == ";"
        shown = ",".join(default) if isinstance(default, tuple) else default
        text = fields[name].metadata["help"]
        help_text = f"{text[0].upper()}{text[1:]}." + (f" [{shown}]" if shown not in ("", 0) else "")
        flag = "--" + name.replace("_", "-")
        completes = completion(_COMPLETED[name]) if name in _COMPLETED else None
        function = click.option(
            flag, name, multiple=several, default=None, help=help_text, shell_complete=completes
        )(function)  # fmt: skip
    return function


def to_recipe(flags: dict[str, Any], recipe_file: Path | None, settings: tuple[str, ...], download: bool) -> Any:
    """Defaults, then the recipe file, then flags, then --set. Raises UsageError or InputRejected."""
    values = _values_of(recipe_file) if recipe_file else {}
    flags_given = {k: v for k, v in flags.items() if v not in (None, ())}
    given = config.typed(recipe.Recipe, flags_given, "the command line")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(
                f"--set needs KEY=VALUE, got `{setting}`", code="E-OPTION-VALUE", hint="for example --set batch_size=64"
            )
        given |= config.typed(recipe.Recipe, {key.strip(): value}, "--set")
    if download:
        given["download"] = True
    try:
        return recipe.Recipe(**{**values, **given})
    except UsageError as error:
        if recipe_file:
            _point_to(error, recipe_file, _culprit(error, values, given))
        raise


def _values_of(file: Path) -> dict[str, Any]:
    """The file's values, in the types of a Recipe; an error points to the line of its key."""
    values: dict[str, Any] = {}
    for key, value in recipe.read(file).items():
        try:
            values |= config.typed(recipe.Recipe, {key: value}, f"the recipe {file}")
        except UsageError as error:
            _point_to(error, file, key)
            raise
    return values


@contextmanager
def pointing_into(file: Path | None) -> Iterator[None]:
    """An unknown name that is first met later than the recipe's keys points to its line too."""
    try:
        yield
    except UsageError as error:
        if file and error.subject and not error.excerpt:
            word = re.compile(rf"(?<![\w.]){re.escape(error.subject)}(?![\w.])")
            key = next((key for key, value in recipe.read(file).items() if word.search(str(value))), "")
            _point_to(error, file, key)
        raise


def _point_to(error: UsageError, file: Path, key: str) -> None:
    error.excerpt = recipe_places.of_key(file, file.read_text(encoding="utf-8"), key) if key else ""


def _culprit(error: UsageError, values: dict[str, Any], given: dict[str, Any]) -> str:
    """The key of the file that the error is about: the first that fails so alone, else the first without which the
    recipe would not fail so; nothing where it is the command line's.
    """

    def fails_so(chosen: dict[str, Any]) -> bool:
        try:
            recipe.Recipe(**chosen)
        except UsageError as other:
            return other.message == error.message
        return False

    if fails_so(given):
        return ""
    own = [key for key in values if key not in given]
    alone = (key for key in own if fails_so({key: values[key]}))
    removed = (key for key in own if not fails_so({**{k: v for k, v in values.items() if k != key}, **given}))
    return next(alone, "") or next(removed, "")


@contextmanager
def host(address: str, tools: Path | None = None) -> "Iterator[Host]":
    """The machine that `--on` names, this one where it names none; a phone is given the programs in `tools`. Raises
    UsageError and Unmeasurable.
    """
    from compress import adb, phone, remote
    from compress.child import HERE

    if tools and not adb.is_address(address):
        raise UsageError("--tools is for phones", code="E-OPTION-CONFLICT", hint="add --on adb:SERIAL")
    if not address:
        yield HERE
        return
    if adb.is_address(address):
        if tools is None:
            raise UsageError(
                "a phone is timed by the runtimes' own programs for Android: name the folder that holds them, --tools",
                code="E-OPTION-CONFLICT",
                hint="the README says which there are, and where they come from",
            )
        with phone.connected(address, tools) as attached:
            yield attached
        return
    with remote.connected(address) as there:
        yield there


def existing_plugins(plugins: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in plugins:
        if not path.is_file():
            raise UsageError(f"--plugin: there is no file {path}", code="E-PLUGIN-FILE")
    return tuple(p.resolve() for p in plugins)


def report_file(source: Path) -> Path:
    """A report, named by itself or by the folder that holds it."""
    return source / "report.json" if source.is_dir() else source


def next_step(*words: str | Path) -> None:
    """The last line of a command: the command to type next, quoted for a shell. On stderr, as all messages."""
    say(f"next   {shlex.join(map(str, words))}")
