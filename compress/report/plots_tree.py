"""The soft decision tree: each inner node's filter, each leaf's distribution, and the paths of some images."""

from typing import Any

from compress.report import format as fmt
from compress.report import svg
from compress.report.markup import Markup, element, join

_WIDTH = 1120.0
_SIDES = (58.0, 50.0, 44.0, 38.0, 32.0)  # of the filters, level by level
_LEVEL, _TOP = 84.0, 36.0
_BARS = 44.0  # height of a leaf's bars
_ROW, _SAMPLE, _STEP = 68.0, 40.0, 62.0


def _pixels(data: str, x: float, y: float, side: float) -> Markup:
    """A small picture in a frame, its pixels left as squares; (x, y) is the middle."""
    corner = {"x": x - side / 2, "y": y - side / 2, "width": side, "height": side}
    picture = element("image", href=f"data:image/png;base64,{data}", class_="pixels", **corner)
    return join(element("rect", class_="well", **corner), picture)


def _leaf(probabilities: list[float], x: float, bottom: float, width: float) -> Markup:
    """A leaf's distribution as bars from `bottom` upwards; the likeliest class is in colour."""
    bar, best = width / len(probabilities), max(probabilities)
    bars = []
    for k, p in enumerate(probabilities):
        left = x - width / 2 + k * bar
        class_ = "bar best" if p == best else "bar"
        bars.append(svg.box(left, bottom, left + bar - min(0.6, bar / 3), bottom - p * _BARS, class_))
    return join(*bars, svg.line(x - width / 2, bottom, x + width / 2, bottom, "axis"))


def _place(node: int) -> tuple[float, float]:
    """The middle of a node of the heap."""
    level = (node + 1).bit_length() - 1
    return (node + 1 - 2**level + 0.5) * _WIDTH / 2**level, _TOP + level * _LEVEL


def tree(document: dict[str, Any]) -> Markup | None:
    """The tree from its root down; lines are as wide as the share of the images that go that way. None without one."""
    facts, derived = document.get("tree"), document["derived"]["tree"]
    if not facts or not derived:
        return None
    count = len(facts["filters"])
    whole = count.bit_length() == facts["depth"]
    links, nodes = [], []
    for node, data in enumerate(facts["filters"]):
        x, y = _place(node)
        for child in (2 * node + 1, 2 * node + 2):
            ends = {"x1": x, "y1": y, "x2": _place(child)[0], "y2": _place(child)[1]}
            links.append(element("line", class_="flow", stroke_width=0.6 + 15 * derived["share"][child], **ends))
        nodes.append(_pixels(data, x, y, _SIDES[(node + 1).bit_length() - 1]))
    if whole:
        nodes += [_leaf_in_tree(facts, derived, leaf, count + leaf) for leaf in range(count + 1)]
    height = _place(2 * count)[1] + (_BARS + 24 if whole else 4)
    description = (
        f"depth {facts['depth']}; {derived['used_leaves']} of {len(facts['leaves'])} leaves answer images "
        "of the report split"
    )
    frame = svg.Frame(width=_WIDTH, height=height)
    return svg.drawing("tree", "The soft decision tree", description, frame, *links, *nodes)


def _leaf_in_tree(facts: dict[str, Any], derived: dict[str, Any], leaf: int, node: int) -> Markup:
    (x, y), width = _place(node), min(30.0, _WIDTH / len(facts["leaves"]) - 4)
    unused = "" if facts["reached"][node] else " unused"
    name = derived["leaves"][leaf]["best"]
    return join(
        element("rect", class_="well", x=x - width / 2 - 1, y=y - 2, width=width + 2, height=_BARS + 4),
        _leaf(facts["leaves"][leaf], x, y + _BARS + 1, width),
        svg.text(x, y + _BARS + 17, _short(name, max(2, int(width / 6))), f"t number{unused}", "middle"),
    )


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def paths(document: dict[str, Any]) -> Markup | None:
    """One row an image: the filters on its way, the turn that it took at each, and the leaf that answered."""
    facts, derived = document.get("tree"), document["derived"]["tree"]
    if not facts or not derived or not facts["samples"]:
        return None
    levels = len(facts["filters"]).bit_length()
    columns = 2 if _SAMPLE + 44 + (levels + 1) * _STEP + 100 <= _WIDTH / 2 else 1
    rows = [
        _path(facts, derived, number, (number % columns) * _WIDTH / columns, 34 + (number // columns) * _ROW)
        for number in range(len(facts["samples"]))
    ]
    frame = svg.Frame(width=_WIDTH, height=8 + -(-len(rows) // columns) * _ROW)
    return svg.drawing("tree-paths", "Paths of some images", "; ".join(path_words(document)), frame, *rows)


def _path(facts: dict[str, Any], derived: dict[str, Any], number: int, left: float, y: float) -> Markup:
    sample, found = facts["samples"][number], derived["samples"][number]
    x = left + _SAMPLE / 2 + 2
    parts = [_pixels(sample["image"], x, y, _SAMPLE), svg.text(x, y + 33, _short(sample["label"], 9), "t", "middle")]
    shown = [node for node in sample["path"][:-1] if node < len(facts["filters"])]
    for level, node in enumerate(shown):
        x = left + _SAMPLE + 44 + level * _STEP
        parts += [
            svg.line(x - 40, y, x - 18, y, "axis"),
            _pixels(facts["filters"][node], x, y, 34.0),
            svg.text(x, y + 30, found["turns"][level], "t small", "middle"),
        ]
    x += _STEP
    answer = f"{_short(found['answer'], 9)}, {fmt.percent(found['probability'])}"
    verdict = "right" if found["right"] else "wrong"
    parts += [
        svg.line(x - 43, y, x - 19, y, "axis" if len(shown) == facts["depth"] else "link"),
        _leaf(facts["leaves"][found["leaf"]], x, y + 20, 34.0),
        svg.text(x + 24, y - 1, answer, "t number"),
        svg.text(x + 24, y + 14, verdict, f"t small {'pass' if found['right'] else 'fail'}"),
    ]
    return join(*parts)


def path_words(document: dict[str, Any]) -> list[str]:
    """Each sample's path in words: `3: right, left → 3, 91.0 %`."""
    return [
        f"{sample['label']}: {', '.join(found['turns'])} → {found['answer']}, {fmt.percent(found['probability'])}"
        for sample, found in zip(document["tree"]["samples"], document["derived"]["tree"]["samples"], strict=True)
    ]
