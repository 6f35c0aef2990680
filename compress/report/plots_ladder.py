"""How much of int8's error each layer makes."""

from typing import Any

from compress.report import svg
from compress.report.markup import Markup
from compress.report.rows_ladder import layers_in_float

MOST = 12  # bars; the rest make less
_ROW = 22.0
_NAMES = 300.0


def _seen(document: dict[str, Any]) -> tuple[dict[str, Any], set[str]] | None:
    """What was seen of the layers, and those that stayed in float."""
    for stage in document["stages"]:
        for rung in stage.get("ladder") or []:
            if rung.get("layers"):
                best = next((tried for tried in reversed(rung["tried"]) if tried["better"]), None)
                return rung["layers"], set(layers_in_float(best)) if best else set()
    return None


def _rows(seen: dict[str, Any]) -> list[tuple[str, float]]:
    """(layer, the part of the error that goes with it), the largest first."""
    whole = seen["noise_share"] or 1.0
    return [(row["layer"], 1 - row["noise_share"] / whole) for row in seen["layers"][:MOST]]


def sensitivity(document: dict[str, Any]) -> Markup | None:
    """One bar a layer, the most sensitive first; None where no ladder came so far."""
    found = _seen(document)
    if found is None:
        return None
    rows, kept = _rows(found[0]), found[1]
    frame = svg.Frame(width=1120, height=40 + _ROW * len(rows), left=_NAMES, bottom=24)
    low, high = min(0.0, *(share for _, share in rows)), max(0.05, *(share for _, share in rows))
    x = svg.Scale(low=low, high=high, start=frame.x[0], end=frame.x[1] - 60)
    body = [svg.line(x(0), frame.y[1], x(0), frame.y[0], "axis")]
    for number, (layer, share) in enumerate(rows):
        middle = frame.y[1] + _ROW * (number + 0.5)
        body.append(svg.box(x(0), middle - 7, x(share), middle + 7, "bar best" if layer in kept else "bar"))
        body.append(svg.text(_NAMES - 10, middle + 4, layer.removeprefix("body."), "t", "end"))
        body.append(svg.text(max(x(share), x(0)) + 6, middle + 4, f"{share:.0%}", "t", "start"))
    return svg.drawing("layers", "What each layer takes off the error", "; ".join(in_words(document)), frame, *body)


def in_words(document: dict[str, Any]) -> list[str]:
    """One sentence a layer, the most sensitive first."""
    found = _seen(document)
    if found is None:
        return []
    kept = found[1]
    return [
        f"{layer.removeprefix('body.')}: {share:.0%} of the error" + (", stays in float" if layer in kept else "")
        for layer, share in _rows(found[0])
    ]
