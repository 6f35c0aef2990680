"""`compress`: the group of commands, and the one place where errors become messages and exit codes."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from compress import __version__
from compress.cli import failures
from compress.errors import unknown
from compress.progress import QUIET_VARIABLE

_FOLDER = Path(__file__).parent
_NOT_COMMANDS = ("__init__", "main", "options", "failures")


class _Commands(click.Group):
    """Commands are the modules beside this one; each has a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(p.stem.rstrip("_") for p in _FOLDER.glob("*.py") if p.stem not in _NOT_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for path in _FOLDER.glob("*.py"):
            if path.stem.rstrip("_") == name and path.stem not in _NOT_COMMANDS:
                return importlib.import_module(f"compress.cli.{path.stem}").command
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        name = args[0]
        if self.get_command(ctx, name) is None:
            raise unknown("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _setter(variable: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Sets the variable before anything of the command line can fail: a group's own body runs after its command's
    name is looked up.
    """

    def switch(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            os.environ[variable] = "1"

    return switch


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="compress")
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_setter(QUIET_VARIABLE),
    help="No progress and no messages but warnings and errors.",
)
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=_setter(failures.DEBUG_VARIABLE),
    help="With errors, the traceback too.",
)  # fmt: skip
def compress() -> None:
    """Distil, prune, quantize and measure image classifiers; the shipped artifact is ONNX.

    \b
    compress run --student mobilenet --kd fitnet --quantize int8
    compress run --data PHOTOS --teacher resnet56 --teacher-checkpoint FILE
    compress verify models/RUN

    Exit codes: 0 done, 1 failure, 2 usage, 3 a limit of `compress gate` failed, 4 what was needed could not be
    measured, 5 input rejected, 130 and 143 interrupted (the same command goes on). What an error's code means:
    compress explain CODE.
    """


def main() -> None:
    """Entry point: runs the command; errors are printed for people, without a traceback."""
    try:
        sys.exit(compress.main(standalone_mode=False))
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the finished steps of a run are kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except Exception as error:
        sys.exit(failures.tell(error))
