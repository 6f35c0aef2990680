"""The table of corrupted images."""

from typing import Any

from compress.report import format as fmt
from compress.report.markup import Markup, element
from compress.report.table import number, table


def corruptions(document: dict[str, Any]) -> Markup:
    """One row a file: top-1 by kind of corruption, the change by all of them, and how it differs from the teacher's."""
    rows = document["derived"]["corruptions"]
    kinds = list(rows[0]["kinds"])
    heads = ("stage", *kinds, "all", "against the teacher's (95 %)")
    drawn = [
        element(
            "tr",
            element("th", row["stage"], scope="row"),
            *(number(row["kinds"][kind]["mean"], lambda e: fmt.shown(e, fmt.percent),
                     note=severities(row["kinds"][kind])) for kind in kinds),
            number(row["change_fraction"], fmt.points_interval),
            number(row["against_teacher_fraction"], fmt.points_interval),
        )
        for row in rows
    ]  # fmt: skip
    return table("Top-1 on corrupted images", heads, drawn, in_order=True)


def severities(kind: dict[str, Any]) -> str:
    """Top-1 in percent at each severity, the mildest first."""
    return " / ".join(fmt.percent(each["value"]).removesuffix(" %") for each in kind["severities"])


def lines(document: dict[str, Any]) -> list[str]:
    """The same as a sentence a file."""
    found = []
    for row in document["derived"]["corruptions"]:
        kinds = row["kinds"].items()
        said = [f"{kind} {fmt.percent(each['mean']['value'])} ({severities(each)})" for kind, each in kinds]
        said.append(f"all {fmt.points_interval(row['change_fraction'])}")
        if row["against_teacher_fraction"]["value"] is not None:
            said.append(f"against the teacher's {fmt.points_interval(row['against_teacher_fraction'])}")
        found.append(f"{row['stage']}: {'; '.join(said)}")
    return found
