"""How much hangs on each layer, above how many of its channels went."""

from typing import Any

from compress.report import svg
from compress.report.markup import Markup
from compress.report.rows_pruning import in_words, known_families, pruned_stage, removed

_CLASSES = ("s1", "s2", "s3")  # of the parts masked, the smallest first
_NAME = 24  # characters


@svg.settings()
def sensitivity(document: dict[str, Any]) -> Markup | None:
    """Top-1 with a part of one layer's channels masked, layer by layer, above how much of it was removed. None where
    nothing was pruned by channels.
    """
    stage = pruned_stage(document)
    if stage is None:
        return None
    facts, gone = stage["pruning"][0]["sensitivity"], removed(stage)
    families = known_families(facts, gone)
    if not families:
        return None
    images = facts["images"]
    whole = 100 * facts["correct"] / images
    levels = [100 * count / images for family in families for count in family["correct"]]
    low, high = svg.spread([*levels, whole], share=0.05, least=1.0)
    span, places = svg.Span(low=low, high=high, title="top-1 on select, %"), range(len(families))
    ax, below = svg.axes(None, span, width=1120, height=540, ratios=(5, 1))
    ax.set_xlim(-0.5, len(families) - 0.5)
    svg.line(ax, [-0.5, len(families) - 0.5], [whole, whole], "link")
    for number, colour in enumerate(_CLASSES[: len(facts["shares"])]):
        shown = [100 * family["correct"][number] / images for family in families]
        svg.line(ax, places, shown, f"line {colour}")
        svg.marks(ax, "circle", places, shown, 3.0, f"mark {colour}")
    lefts, parts = [place - 0.3 for place in places], [gone[family["layer"]] for family in families]
    svg.bars(below, lefts, [0.0] * len(lefts), 0.6, parts, "bar best")
    below.set_ylim(0, 1)
    svg.names(below.yaxis, ["0", "all"])
    layers = [family["layer"] for family in families]
    names = [layer if len(layer) <= _NAME else f"…{layer[1 - _NAME :]}" for layer in layers]
    turned: Any = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
    svg.names(below.xaxis, names, "t small", **turned)
    return svg.drawing("sensitivity", "How much hangs on each layer", "; ".join(in_words(stage)), ax)


def shares(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(class of the line, what it shows) for the legend."""
    stage = pruned_stage(document)
    if stage is None:
        return []
    facts = stage["pruning"][0]["sensitivity"]
    return [(colour, f"{share:.0%} masked") for colour, share in zip(_CLASSES, facts["shares"], strict=False)]
