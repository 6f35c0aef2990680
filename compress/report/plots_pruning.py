"""What pruning saw: how much accuracy hangs on each layer, and how many of its channels went."""

from typing import Any

from compress.report import format as fmt
from compress.report import svg
from compress.report.markup import Markup, element, join

_CLASSES = ("s1", "s2", "s3")  # of the parts masked, the smallest first
_STRIP = 56.0  # height of the bars below
_NAMES = 150.0


def _pruned_stage(document: dict[str, Any]) -> dict[str, Any] | None:
    return next((s for s in document["stages"] if (s.get("pruning") or [{}])[0].get("sensitivity")), None)


def removed(stage: dict[str, Any]) -> dict[str, float]:
    """Layer → part of its channels that went over all steps, in the order of the layers."""
    # the last step that names a layer counts: one that has become too narrow is not among those that follow
    kept = {family["layers"][0]: family["kept"] for cut in stage["pruning"] for family in cut["families"]}
    first = {family["layers"][0]: family["channels"] for family in stage["pruning"][0]["families"]}
    return {layer.removeprefix("body."): 1 - kept[layer] / channels for layer, channels in first.items()}


def sensitivity(document: dict[str, Any]) -> Markup | None:
    """Top-1 with a part of one layer's channels masked, layer by layer, above how much of it was removed. None where
    nothing was pruned by channels.
    """
    stage = _pruned_stage(document)
    if stage is None:
        return None
    facts, gone = stage["pruning"][0]["sensitivity"], removed(stage)
    families = [family for family in facts["families"] if family["layer"] in gone]
    images = facts["images"]
    whole = 100 * facts["correct"] / images
    levels = [100 * count / images for family in families for count in family["correct"]]
    frame = svg.Frame(width=1120, height=330 + _STRIP + _NAMES, bottom=_STRIP + _NAMES + 14)
    low, high = svg.spread([*levels, whole], share=0.05, least=1.0)
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1])
    slot = (frame.x[1] - frame.x[0]) / len(families)
    centres = [frame.x[0] + slot * (i + 0.5) for i in range(len(families))]
    body = [_grid(frame, y), svg.line(frame.x[0], y(whole), frame.x[1], y(whole), "link")]
    for number, colour in enumerate(_CLASSES[: len(facts["shares"])]):
        points = [(x, y(100 * f["correct"][number] / images)) for x, f in zip(centres, families, strict=True)]
        body.append(svg.polyline(points, f"line {colour}"))
        body += [svg.mark("circle", px, py, 3.0, f"mark {colour}") for px, py in points]
    top, ground = frame.y[0] + 14, frame.y[0] + 14 + _STRIP
    for x, family in zip(centres, families, strict=True):
        share = gone[family["layer"]]
        body.append(svg.box(x - slot * 0.3, ground, x + slot * 0.3, ground - share * _STRIP, "bar best"))
        body.append(_turned(x + 4, ground + 8, family["layer"]))
    body += [
        svg.line(frame.x[0], ground, frame.x[1], ground, "axis"),
        svg.text(frame.x[0] - 8, ground, "0", "t", "end"),
        svg.text(frame.x[0] - 8, top + 8, "all", "t", "end"),
    ]
    return svg.drawing("sensitivity", "How much hangs on each layer", "; ".join(in_words(stage)), frame, *body)


def _grid(frame: svg.Frame, y: svg.Scale) -> Markup:
    left, right = frame.x
    lines = [join(svg.line(left, y(t), right, y(t), "grid"), svg.text(left - 8, y(t) + 4, f"{t:g}", "t", "end"))
             for t in y.ticks()]  # fmt: skip
    title = {"x": -float(frame.top), "y": 13.0, "text_anchor": "end", "transform": "rotate(-90)"}
    return join(*lines, element("text", "top-1 on select, %", class_="t name", **title))


def _turned(x: float, y: float, words: str) -> Markup:
    place = {"x": -float(y), "y": float(x), "text_anchor": "end", "transform": "rotate(-90)"}
    return element("text", words if len(words) <= 24 else f"…{words[-23:]}", class_="t small", **place)


def shares(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(class of the line, what it shows) for the legend."""
    stage = _pruned_stage(document)
    if stage is None:
        return []
    facts = stage["pruning"][0]["sensitivity"]
    return [(colour, f"{share:.0%} masked") for colour, share in zip(_CLASSES, facts["shares"], strict=False)]


def in_words(stage: dict[str, Any]) -> list[str]:
    """One sentence a layer, the most sensitive first."""
    facts, gone = stage["pruning"][0]["sensitivity"], removed(stage)
    families = [family for family in facts["families"] if family["layer"] in gone]
    middle = len(facts["shares"]) // 2
    return [
        f"{family['layer']}: {fmt.percent(family['correct'][middle] / facts['images'])} with "
        f"{facts['shares'][middle]:.0%} masked, {gone[family['layer']]:.0%} removed"
        for family in sorted(families, key=lambda family: family["correct"][middle])
    ]


def lines(document: dict[str, Any], most: int = 5) -> list[str]:
    """The most sensitive layers for the Markdown report, and what stayed whole."""
    stage = _pruned_stage(document)
    if stage is None:
        return []
    stays = stage["pruning"][0]["stays"]
    kept = [f"{len(stays)} layers keep their widths, since a removal cannot be followed there"] if stays else []
    whole = stage["pruning"][0]["sensitivity"]
    return [f"all channels: {fmt.percent(whole['correct'] / whole['images'])} of {whole['images']} images",
            *in_words(stage)[:most], *kept]  # fmt: skip
