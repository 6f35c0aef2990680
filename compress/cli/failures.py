"""What a failed command prints: the error with its code, cause and hint, or the way to a report of a bug of ours."""

import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator

import click

from compress.errors import CompressError
from compress.progress import QUIET_VARIABLE

WIDTH = 80
DEBUG_VARIABLE = "COMPRESS_DEBUG"  # set: the traceback of every error; what `--debug` sets


def tell(error: Exception) -> int:
    """Prints the error on stderr; returns the exit code of the process."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()  # type: ignore[attr-defined]
        return error.exit_code  # type: ignore[attr-defined]
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, CompressError):
        click.echo(text(error), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        click.echo(_of_click(error), err=True)
        return error.exit_code
    click.echo(_bug(error, told=debug), err=True)
    return 1


def text(error: CompressError) -> str:
    """The error for people: code and message, the place in a file, what led to it, the hint, where to read more."""
    lines = [error.excerpt] if error.excerpt else []
    return _lines(error.code, error.message, [*lines, *(f"  cause: {cause}" for cause in _causes(error))], error.hint)


def _lines(code: str, message: str, middle: list[str], hint: str) -> str:
    lines = [_fitted(f"error[{code}]: {message}"), *middle]
    if hint:
        lines.append(_fitted(f"  hint: {hint}"))
    if not os.environ.get(QUIET_VARIABLE):
        lines.append(f"  more: compress explain {code}")
    return "\n".join(lines)


def _fitted(text: str) -> str:
    """`text` in lines that a terminal holds; as it is in a log, which is searched."""
    if not sys.stderr.isatty():
        return text
    width = min(WIDTH, shutil.get_terminal_size().columns)
    wrap = textwrap.TextWrapper(width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap.fill(line) for line in text.split("\n"))


def _causes(error: CompressError) -> Iterator[str]:
    """What the error was raised from, a line each, as far as the message does not say it already."""
    told, cause = error.message, error.__cause__
    while isinstance(cause, CompressError | OSError):
        if isinstance(cause, CompressError):
            said = cause.message
        else:
            said = cause.strerror or str(cause)
        if said and said not in told:
            told += said
            yield " ".join(said.split())
        cause = cause.__cause__


def _of_click(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)  # only of an error of usage
    hint = f"{context.command_path} --help" if context else ""
    return _lines("E-OPTION", error.format_message(), [], hint)


def _bug(error: Exception, *, told: bool) -> str:
    """Keeps a report of what was not foreseen, and says where; without a place to keep it, the traceback itself."""
    from compress import bugs

    message = f"{type(error).__name__}: {bugs.first_line(error)}".removesuffix(": ")
    try:
        written = bugs.write(error, ["compress", *sys.argv[1:]])
    except (CompressError, OSError):
        said = [] if told else ["".join(traceback.format_exception(error)).rstrip()]
        return _lines("E-BUG", message, said, "this is an error of ours: please report it with the traceback")
    return _lines("E-BUG", message, [], f"this is an error of ours: please report it with {written}")
