"""The keys below plots: which colour, dash and shape stands for what."""

from typing import Any

from compress.report import svg
from compress.report.labels import Labels, timed
from compress.report.markup import Markup, element


def cell_key(cells: list[dict[str, Any]], labels: Labels) -> Markup:
    """Of cells: the stage's colour, the runtime's dash and shape."""
    items = []
    for cell in cells:
        colour, twin = labels.colour(cell["stage"]), " twin" if cell["control"] else ""
        swatch = (
            svg.line(1, 7, 29, 7, f"line {colour} {labels.dash(cell['runtime'])}{twin}"),
            svg.mark(labels.shape(cell["runtime"]), 15, 7, 3.6, f"mark {colour}{twin}"),
        )
        drawing = element("svg", *swatch, viewBox="0 0 30 14", aria_hidden="true")
        items.append(element("li", drawing, element("span", labels.cell(cell))))
    return element("ul", *items, class_="key")


def runtime_key(document: dict[str, Any], labels: Labels) -> Markup:
    """Of runtimes: their shapes."""
    items = []
    for runtime in dict.fromkeys(c["runtime"] for c in timed(document)):
        drawing = element(
            "svg", svg.mark(labels.shape(runtime), 15, 7, 5.0, "mark s0"), viewBox="0 0 30 14", aria_hidden="true"
        )
        items.append(element("li", drawing, element("span", runtime)))
    return element("ul", *items, class_="key")


def curve_key(document: dict[str, Any], labels: Labels) -> Markup:
    """Of stages that were trained."""
    drawn = [stage["name"] for stage in document["stages"] if stage["curve"] and stage["curve"]["step"]]
    return line_key([(labels.colour(name), name) for name in drawn])


def line_key(lines: list[tuple[str, str]]) -> Markup:
    """The key of (class, words) of drawn lines."""
    items = []
    for class_, what in lines:
        drawing = element("svg", svg.line(1, 7, 29, 7, f"line {class_}"), viewBox="0 0 30 14", aria_hidden="true")
        items.append(element("li", drawing, element("span", what)))
    return element("ul", *items, class_="key")
