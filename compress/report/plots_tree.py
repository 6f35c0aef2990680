"""The soft decision tree: each inner node's filter, each leaf's distribution, and the paths of some images."""

from typing import Any

from matplotlib.axes import Axes

from compress.report import format as fmt
from compress.report import svg
from compress.report.markup import Markup
from compress.report.rows_tree import path_words, pixels

_WIDTH = 1120.0
_SIDES = (58.0, 50.0, 44.0, 38.0, 32.0)  # of the filters, level by level
_LEVEL, _TOP = 84.0, 36.0
_BARS = 44.0  # height of a leaf's bars
_ROW, _SAMPLE, _STEP = 68.0, 40.0, 62.0


def _leaf(ax: Axes, probabilities: list[float], x: float, bottom: float, width: float) -> None:
    """A leaf's distribution as bars from `bottom` upwards; the likeliest class is in colour."""
    bar, best = width / len(probabilities), max(probabilities)
    for k, p in enumerate(probabilities):
        looks = "bar best" if p == best else "bar"
        svg.bars(ax, [x - width / 2 + k * bar], [bottom], bar - min(0.6, bar / 3), [-p * _BARS], looks)
    svg.line(ax, [x - width / 2, x + width / 2], [bottom, bottom], "axis")


def _place(node: int) -> tuple[float, float]:
    """The middle of a node of the heap."""
    level = (node + 1).bit_length() - 1
    return (node + 1 - 2**level + 0.5) * _WIDTH / 2**level, _TOP + level * _LEVEL


@svg.settings()
def tree(document: dict[str, Any]) -> Markup | None:
    """The tree from its root down; lines are as wide as the share of the images that go that way. None without one."""
    facts, derived = document.get("tree"), document["derived"]["tree"]
    if not facts or not derived:
        return None
    count = len(facts["filters"])
    whole = count.bit_length() == facts["depth"]
    height = _place(2 * count)[1] + (_BARS + 24 if whole else 4)
    ax = svg.canvas(_WIDTH, height)
    for node in range(count):
        for child in (2 * node + 1, 2 * node + 2):
            (x, y), (x_below, y_below) = _place(node), _place(child)
            svg.line(ax, [x, x_below], [y, y_below], "flow", width=0.6 + 15 * derived["share"][child])
    for node, data in enumerate(facts["filters"]):
        svg.picture(ax, pixels(data), *_place(node), _SIDES[(node + 1).bit_length() - 1])
    for leaf in range(count + 1 if whole else 0):
        _leaf_in_tree(ax, facts, derived, leaf, count + leaf)
    description = (
        f"depth {facts['depth']}; {derived['used_leaves']} of {len(facts['leaves'])} leaves answer images "
        "of the report split"
    )
    return svg.drawing("tree", "The soft decision tree", description, ax)


def _leaf_in_tree(ax: Axes, facts: dict[str, Any], derived: dict[str, Any], leaf: int, node: int) -> None:
    (x, y), width = _place(node), min(30.0, _WIDTH / len(facts["leaves"]) - 4)
    unused = "" if facts["reached"][node] else " unused"
    name = svg.shortened(derived["leaves"][leaf]["best"], max(2, int(width / 6)))
    svg.bars(ax, [x - width / 2 - 1], [y - 2], width + 2, [_BARS + 4], "well")
    _leaf(ax, facts["leaves"][leaf], x, y + _BARS + 1, width)
    svg.text(ax, x, y + _BARS + 17, name, f"t number{unused}", ha="center", va="baseline")


@svg.settings()
def paths(document: dict[str, Any]) -> Markup | None:
    """One row an image: the filters on its way, the turn that it took at each, and the leaf that answered."""
    facts, derived = document.get("tree"), document["derived"]["tree"]
    if not facts or not derived or not facts["samples"]:
        return None
    levels = len(facts["filters"]).bit_length()
    columns = 2 if _SAMPLE + 44 + (levels + 1) * _STEP + 100 <= _WIDTH / 2 else 1
    count = len(facts["samples"])
    ax = svg.canvas(_WIDTH, 8 + -(-count // columns) * _ROW)
    for number in range(count):
        _path(ax, facts, derived, number, (number % columns) * _WIDTH / columns, 34 + (number // columns) * _ROW)
    return svg.drawing("tree-paths", "Paths of some images", "; ".join(path_words(document)), ax)


def _path(ax: Axes, facts: dict[str, Any], derived: dict[str, Any], number: int, left: float, y: float) -> None:
    sample, found = facts["samples"][number], derived["samples"][number]
    x, below = left + _SAMPLE / 2 + 2, {"ha": "center", "va": "baseline"}
    svg.picture(ax, pixels(sample["image"]), x, y, _SAMPLE)
    svg.text(ax, x, y + 33, svg.shortened(sample["label"], 9), **below)
    shown = [node for node in sample["path"][:-1] if node < len(facts["filters"])]
    for level, node in enumerate(shown):
        x = left + _SAMPLE + 44 + level * _STEP
        svg.line(ax, [x - 40, x - 18], [y, y], "axis")
        svg.picture(ax, pixels(facts["filters"][node]), x, y, 34.0)
        svg.text(ax, x, y + 30, found["turns"][level], "t small", **below)
    x += _STEP
    answer = f"{svg.shortened(found['answer'], 9)}, {fmt.percent(found['probability'])}"
    verdict = "right" if found["right"] else "wrong"
    svg.line(ax, [x - 43, x - 19], [y, y], "axis" if len(shown) == facts["depth"] else "link")
    _leaf(ax, facts["leaves"][found["leaf"]], x, y + 20, 34.0)
    svg.text(ax, x + 24, y - 1, answer, "t number", va="baseline")
    svg.text(ax, x + 24, y + 14, verdict, f"t small {'pass' if found['right'] else 'fail'}", va="baseline")
