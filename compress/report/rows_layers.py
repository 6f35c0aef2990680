"""How much of int8's error goes with each layer."""

from typing import Any

from compress.report.rows_ladder import layers_in_float

MOST = 12  # layers; the rest make less


def seen(document: dict[str, Any]) -> tuple[dict[str, Any], set[str]] | None:
    """What was seen of the layers, and those that stayed in float."""
    for stage in document["stages"]:
        for rung in stage.get("ladder") or []:
            if rung.get("layers") and rung["layers"]["layers"]:
                best = next((tried for tried in reversed(rung["tried"]) if tried["better"]), None)
                return rung["layers"], set(layers_in_float(best)) if best else set()
    return None


def shares(layers: dict[str, Any]) -> list[tuple[str, float]]:
    """(layer, the part of the error that goes with it), the largest first."""
    whole = layers["noise_share"] or 1.0
    return [(row["layer"], 1 - row["noise_share"] / whole) for row in layers["layers"][:MOST]]


def in_words(document: dict[str, Any]) -> list[str]:
    """One sentence a layer, the most sensitive first."""
    found = seen(document)
    if found is None:
        return []
    kept = found[1]
    return [
        f"{layer.removeprefix('body.')}: {share:.0%} of the error" + (", stays in float" if layer in kept else "")
        for layer, share in shares(found[0])
    ]
