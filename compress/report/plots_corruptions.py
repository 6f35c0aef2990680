"""How files stand corrupted images, kind by kind."""

from typing import Any

from compress.report import svg
from compress.report.labels import Labels
from compress.report.markup import Markup
from compress.report.tables_corruptions import lines

_NAMES = 96.0
_BETWEEN = 13.0  # files of one kind


def drawn(document: dict[str, Any]) -> list[str]:
    """The stages that have a mark in each row."""
    return [row["stage"] for row in document["derived"]["corruptions"]]


def corruptions(document: dict[str, Any], labels: Labels) -> Markup | None:
    """A row a kind: each file's mean top-1, and its span over the severities; in the first row its top-1 on the images
    as they are. None where nobody looked.
    """
    rows = document["derived"]["corruptions"]
    if not rows:
        return None
    kinds = list(rows[0]["kinds"])
    height = _BETWEEN * len(rows) + 14
    frame = svg.Frame(width=820, height=14 + height * (len(kinds) + 1) + 46, left=_NAMES)
    clean = {row["stage"]: 100 * _clean(row) for row in rows}
    ends = {(row["stage"], kind): _span(row["kinds"][kind]) for row in rows for kind in kinds}
    low, high = svg.spread([*clean.values(), *(v for span in ends.values() for v in span)], least=10)
    x = svg.Scale(low=max(0.0, low), high=min(100.5, high), start=frame.x[0], end=frame.x[1])
    body = [svg.axes(frame, x, None, x_title="top-1 on the report images, %", x_text="{:g}".format)]
    for number, kind in enumerate(["as they are", *kinds]):
        top = frame.y[1] + height * number
        body.append(svg.text(_NAMES - 10, top + height / 2 + 4, kind, "t", "end"))
        for place, row in enumerate(rows):
            stage, y = row["stage"], top + 7 + _BETWEEN * (place + 0.5)
            colour, middle = labels.colour(stage), clean[stage]
            if number:
                least, mean, most = ends[stage, kind]
                body.append(svg.line(x(least), y, x(most), y, f"whisker {colour}"))
                middle = mean
            body.append(svg.mark("circle", x(middle), y, 4.2, f"mark {colour}"))
    return svg.drawing("corruptions", "Top-1 on corrupted images", "; ".join(lines(document)), frame, *body)


def _clean(row: dict[str, Any]) -> float:
    """Top-1 on the images as they are: of the mean over all kinds, less its change."""
    means = [kind["mean"]["value"] for kind in row["kinds"].values()]
    return sum(means) / len(means) - row["change_fraction"]["value"]


def _span(kind: dict[str, Any]) -> tuple[float, float, float]:
    """(lowest, mean, highest) top-1 in percent over the severities."""
    found = [100 * each["value"] for each in kind["severities"]]
    return min(found), 100 * kind["mean"]["value"], max(found)
