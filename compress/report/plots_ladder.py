"""How much of int8's error goes with each layer, as bars."""

from typing import Any

from compress.report import svg
from compress.report.markup import Markup
from compress.report.rows_layers import in_words, seen, shares

_ROW = 22.0  # px
_NAME = 48  # characters


@svg.settings()
def sensitivity(document: dict[str, Any]) -> Markup | None:
    """One bar a layer, the most sensitive first; None where no ladder came so far."""
    found = seen(document)
    if found is None:
        return None
    rows, kept = shares(found[0]), found[1]
    ax = svg.axes(None, None, width=1120, height=24 + _ROW * len(rows))
    ax.set_xlim(min(0.0, *(share for _, share in rows)), max(0.05, *(share for _, share in rows)))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.spines["bottom"].set_visible(False)
    svg.names(ax.yaxis, [svg.shortened(layer.removeprefix("body."), _NAME) for layer, _ in rows])
    for number, (layer, share) in enumerate(rows):
        svg.bars(ax, [0.0], [number - 0.32], share, [0.64], "bar best" if layer in kept else "bar")
        svg.text(ax, max(share, 0.0), number, f"{share:.0%}", va="center", xytext=(6, 0))
    svg.line(ax, [0, 0], [-0.5, len(rows) - 0.5], "axis")
    return svg.drawing("layers", "What each layer takes off the error", "; ".join(in_words(document)), ax)
