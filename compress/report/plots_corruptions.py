"""How files stand corrupted images, kind by kind."""

from typing import Any

from compress.report import svg
from compress.report.labels import Labels
from compress.report.markup import Markup
from compress.report.tables_corruptions import lines

_ROW = 13.0  # of one file, px


def drawn(document: dict[str, Any]) -> list[str]:
    """The stages that have a mark in each row."""
    return [row["stage"] for row in document["derived"]["corruptions"]]


@svg.settings()
def corruptions(document: dict[str, Any], labels: Labels) -> Markup | None:
    """A row a kind: each file's mean top-1, and its span over the severities; in the first row its top-1 on the images
    as they are. None where nobody looked.
    """
    rows = document["derived"]["corruptions"]
    if not rows:
        return None
    kinds = list(rows[0]["kinds"])
    clean = {row["stage"]: 100 * _clean(row) for row in rows}
    ends = {(row["stage"], kind): _span(row["kinds"][kind]) for row in rows for kind in kinds}
    low, high = svg.spread([*clean.values(), *(v for span in ends.values() for v in span)], least=10)
    slots = len(rows) + 1  # of a kind: a row a file, and air
    names = ["as they are", *kinds]
    x = svg.Span(low=max(0.0, low), high=min(100.5, high), title="top-1 on the report images, %")
    ax = svg.axes(x, None, width=820, height=60 + _ROW * slots * len(names))
    ax.set_ylim(slots * len(names) - 0.5, -0.5)
    svg.names(ax.yaxis, names, at=[number * slots + slots / 2 - 0.5 for number in range(len(names))])
    for number, kind in enumerate(names):
        for place, row in enumerate(rows):
            stage, y = row["stage"], number * slots + place + 0.5
            colour, middle = labels.colour(stage), clean[stage]
            if number:
                least, middle, most = ends[stage, kind]
                svg.line(ax, [least, most], [y, y], f"whisker {colour}")
            svg.marks(ax, "circle", [middle], [y], 4.2, f"mark {colour}")
    return svg.drawing("corruptions", "Top-1 on corrupted images", "; ".join(lines(document)), ax)


def _clean(row: dict[str, Any]) -> float:
    """Top-1 on the images as they are: of the mean over all kinds, less its change."""
    means = [kind["mean"]["value"] for kind in row["kinds"].values()]
    return sum(means) / len(means) - row["change_fraction"]["value"]


def _span(kind: dict[str, Any]) -> tuple[float, float, float]:
    """(lowest, mean, highest) top-1 in percent over the severities."""
    found = [100 * each["value"] for each in kind["severities"]]
    return min(found), 100 * kind["mean"]["value"], max(found)
