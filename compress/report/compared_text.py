"""Two reports side by side, as text for a terminal and as Markdown; no line of the text is wider than 80 columns."""

import textwrap
from collections.abc import Callable
from typing import Any

from compress.report import format as fmt
from compress.report.markdown import WIDTH, escaped
from compress.report.markup import clean


def rows_of(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(heading, lines) of what `compare_reports` found."""
    parts = [("Latency, before to after", _lines(found["latency"], _place, _latency))]
    parts.append(("Top-1, before to after", _lines(found["accuracy"], _runtime, _accuracy)))
    parts.append(("Bytes, before to after", [_size(row) for row in found["size"]]))
    parts.append(("What differs around it", [f"{n}: {_value(a)} → {_value(b)}" for n, a, b in found["environment"]]))
    return [(heading, lines) for heading, lines in parts if lines]


def text(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = textwrap.wrap(f"{clean(found['before'])} → {clean(found['after'])}", WIDTH)
    for warning in found["warnings"]:
        lines += textwrap.wrap(clean(warning), WIDTH, initial_indent="! ", subsequent_indent="  ")
    for heading, rows in rows_of(found):
        lines += ["", heading]
        for row in rows:
            lines += textwrap.wrap(clean(row), WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def markdown(found: dict[str, Any]) -> str:
    """For a comment on a change."""
    lines = [f"# {escaped(found['before'])} → {escaped(found['after'])}", ""]
    lines += [*(f"> {escaped(warning)}\n>" for warning in found["warnings"])]
    for heading, rows in rows_of(found):
        lines += ["", f"## {heading}", "", *(f"- {escaped(row)}" for row in rows)]
    return "\n".join(lines).rstrip(">\n") + "\n"


Words = Callable[[dict[str, Any]], str]


def _lines(rows: list[dict[str, Any]], place: Words, change: Words) -> list[str]:
    """A line for each row that was compared; then one for each reason, with all that was not for it."""
    lines = [f"{place(row)}: {change(row)}" for row in rows if row["change"]["value"] is not None]
    reasons = [row["change"]["reason"] for row in rows if row["change"]["value"] is None]
    for reason in dict.fromkeys(reasons):
        lacking = [place(row) for row in rows if row["change"]["value"] is None and row["change"]["reason"] == reason]
        lines.append(f"not compared ({reason}): {'; '.join(lacking)}")
    return lines


def _place(row: dict[str, Any]) -> str:
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{_runtime(row)}, {fmt.threads(row['threads'])}{batch}"


def _runtime(row: dict[str, Any]) -> str:
    return f"{row['stage']} in {row['runtime']}"


def _latency(row: dict[str, Any]) -> str:
    times = f"{fmt.shown(row['before'], fmt.latency)} → {fmt.shown(row['after'], fmt.latency)}"
    return f"{row['verdict']}, {fmt.ratio_interval(row['change'])} by {row['by']}; {times}"


def _accuracy(row: dict[str, Any]) -> str:
    values = f"{fmt.shown(row['before'], fmt.percent)} → {fmt.shown(row['after'], fmt.percent)}"
    return f"{row['verdict']}, {fmt.points_interval(row['change'])}; {values}"


def _size(row: dict[str, Any]) -> str:
    if row["same_file"]:
        return f"{row['stage']}: the same file, {fmt.size(row['after'])}"
    return f"{row['stage']}: {fmt.size(row['before'])} → {fmt.size(row['after'])}"


def _value(value: Any) -> str:
    return "none" if value in (None, "", []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
