"""`compress explain`: what an error's code means, and what to do."""

import json
import re
from pathlib import Path

import click

from compress.cli import options
from compress.errors import UsageError, nearest_to
from compress.progress import say

INDEX = Path(__file__).parents[1] / "ERRORS.md"


@click.command(short_help="What the code of an error means, and what to do.")
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON: code, exit code and text of each.")
def command(code: str | None, as_json: bool) -> None:
    """Print what an error's CODE means, and what to do; without CODE, all codes with their first line.

    \b
    compress explain
    compress explain E-DATA-CLASSES
    """
    found = sections()
    if code is not None:
        name = code.strip().upper()
        if name not in found:
            near = nearest_to(name, list(found))
            hint = f"did you mean `{near}`?" if near else "`compress explain` lists all"
            raise UsageError(f"there is no error code `{code}`", code="E-NAME-UNKNOWN", hint=hint)
        found = {name: found[name]}
    if as_json:
        rows = [{"code": name, "exit_code": exit_codes(text), "text": text} for name, text in found.items()]
        click.echo(json.dumps(rows[0] if code else rows, indent=1))
    elif code:
        ((name, text),) = found.items()
        click.echo(f"{name}\n\n{text}")
    else:
        width = max(map(len, found)) + 2
        for name, text in found.items():
            click.echo(f"{name:<{width}}{text.partition(chr(10))[0]}")
    if code is None:
        options.next_step("compress", "explain", "CODE")
    elif named := re.search(r"`(compress [^`]*)`", found[name].partition("To do: ")[2]):
        options.next_step(*named[1].split())
    else:
        say("next   that, then the command that failed once more")


def sections() -> dict[str, str]:
    """Code → text of its section in ERRORS.md, in the order of the file."""
    parts = re.split(r"^## (E-[A-Z0-9-]+)\n", INDEX.read_text(encoding="utf-8"), flags=re.M)
    return {code: text.strip() for code, text in zip(parts[1::2], parts[2::2], strict=True)}


def exit_codes(text: str) -> list[int]:
    """The exit codes that a section names."""
    (line,) = re.findall(r"^Exit code: (.*)$", text, re.M)
    return [int(number) for number in re.findall(r"\d+", line)]
