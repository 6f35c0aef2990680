"""The table of files for other runtimes: what was made, whether it answers as the ONNX file, what int8 gains there."""

from typing import Any

from compress.report import format as fmt
from compress.report import words
from compress.report.markup import Markup, element
from compress.report.rows_converted import gain_words
from compress.report.table import counted, number, table, tag


def note(document: dict[str, Any]) -> str:
    """The sentence above the table: a benchmark of files converts and compares nothing."""
    compared = any(row["images"] for row in document["derived"]["converted"])
    return words.CONVERTED if compared else words.CONVERTED_ONLY


def converted(document: dict[str, Any]) -> Markup:
    """One row a stage and runtime: what was made for it, and how it compares with the ONNX file."""
    heads = ("stage, runtime", "verdict", "bytes", "same answers", "largest difference", "top-1", "notes")
    rows = []
    for row in document["derived"]["converted"]:
        compared = row["agreement_fraction"]["value"] is not None
        on = [f"as {row['reference']}, on {fmt.count(row['images'])} images"] if compared else []
        said = [*filter(None, (row["failure"], *on, gain_words(row))), *row["notes"]]
        rows.append(
            element(
                "tr",
                element("th", row["stage"], element("small", row["runtime"], class_="n"), scope="row"),
                element("td", tag(row["word"])),
                counted(row["size_bytes"] or None, fmt.size),
                number(row["agreement_fraction"], _percent) if compared else element("td", ""),
                number(row["difference_fraction"], _share) if compared else element("td", ""),
                number(row["cost_fraction"], fmt.points_interval) if compared else element("td", ""),
                element("td", element("small", "; ".join(said)) if said else ""),
            )
        )
    return table("Files for other runtimes", heads, rows)


def _percent(estimate: dict[str, Any]) -> str:
    return fmt.shown(estimate, fmt.percent)


def _share(estimate: dict[str, Any]) -> str:
    return fmt.shown(estimate, fmt.power)
