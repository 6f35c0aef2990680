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
        line = f"line {colour} {labels.dash(cell['runtime'])}{twin}"
        drawing = svg.sample(line, labels.shape(cell["runtime"]), 3.6, f"mark {colour}{twin}")
        items.append(element("li", drawing, element("span", labels.cell(cell))))
    return element("ul", *items, class_="key")


def runtime_key(document: dict[str, Any], labels: Labels) -> Markup:
    """Of runtimes: their shapes."""
    items = []
    for runtime in dict.fromkeys(c["runtime"] for c in timed(document)):
        drawing = svg.sample("", labels.shape(runtime), 5.0, "mark s0")
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
        items.append(element("li", svg.sample(f"line {class_}"), element("span", what)))
    return element("ul", *items, class_="key")
