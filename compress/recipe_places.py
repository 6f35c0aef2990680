"""Where in a recipe file an error is: the file and line, the line itself, and a caret below the key or column."""

import re
from collections.abc import Iterator
from pathlib import Path

_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")
_KEY = re.compile(r"\s*(\[*)\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')")
_BEFORE, _LONGEST = 60, 100  # characters of a line that are shown before the caret, and of a long line in all


def of_syntax(path: Path, text: str, reason: str) -> str:
    """The excerpt for what tomllib says, or nothing where it names no place."""
    if found := _PLACE.search(reason):
        return _excerpt(path, text, int(found[1]), int(found[2]), 1)
    lines = text.rstrip().splitlines()
    return _excerpt(path, text, len(lines), len(lines[-1]) + 1, 1) if lines and "end of document" in reason else ""


def of_key(path: Path, text: str, key: str) -> str:
    """The excerpt for a key at the top level of valid TOML, or nothing where it is not found.

    >>> print(of_key(Path("r.toml"), "seed = 1\\nepohcs = 3", "epohcs"))
      r.toml:2
      2 | epohcs = 3
        | ^^^^^^
    """
    in_table = False
    for number, line in _statements(text):
        found = _KEY.match(line)
        # below the first header, only other headers are at the top level
        in_table = in_table or bool(found and found[1])
        if found and found[2].strip("\"'") == key and bool(found[1]) == in_table:
            return _excerpt(path, text, number, found.start(2) + 1, len(found[2]))
    return ""


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that begin a statement: not inside a list or a text of several lines."""
    quote, depth = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if not quote and depth == 0:
            yield number, line
        quote, depth = _after(line, quote, depth)


def _after(line: str, quote: str, depth: int) -> tuple[str, int]:
    """The quotes that are open and the brackets that are, after `line`."""
    at = 0
    while at < len(line):
        if quote:
            if line[at] == "\\" and quote[0] == '"':
                at += 2
            elif line.startswith(quote, at):
                at, quote = at + len(quote), ""
            else:
                at += 1
            continue
        if line[at] == "#":
            break
        opened = next((q for q in ('"""', "'''", '"', "'") if line.startswith(q, at)), "")
        quote, at = opened, at + max(1, len(opened))
        if not opened:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(line[at - 1], 0)
    return (quote if len(quote) == 3 else ""), max(0, depth)


def _excerpt(path: Path, text: str, number: int, column: int, length: int) -> str:
    """`column` counts from 1."""
    lines = text.split("\n")
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    start = max(0, column - 1 - _BEFORE)
    shown = "".join(letter if letter.isprintable() else " " for letter in line[start : start + _LONGEST])
    margin = " " * len(str(number))
    caret = " " * (column - 1 - start) + "^" * min(length, max(1, len(shown) - (column - 1 - start)))
    return f"  {path}:{number}\n  {number} | {shown.rstrip()}\n  {margin} | {caret}"
