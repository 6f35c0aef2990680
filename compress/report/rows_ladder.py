"""Rows of the int8 ladder: what each rung cost and gained, and which files it tried."""

from typing import Any

from compress import stats
from compress.report.estimates import measured, missing


def ladder_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each file that was tried, and one for each rung that was left out, in the order of the ladder."""
    rows: list[dict[str, Any]] = []
    for stage in facts["stages"]:
        for rung in stage.get("ladder") or []:
            rows += _rows_of(rung)
    return rows


def _rows_of(rung: dict[str, Any]) -> list[dict[str, Any]]:
    if rung["left_out"]:
        nothing = missing(rung["left_out"])
        return [{"rung": rung["rung"], "word": "left out", "what": rung["left_out"], "cost_on_select_fraction": nothing,
                 "agreement_fraction": nothing, "size_bytes": None, "seconds": None}]  # fmt: skip
    rows = []
    for tried in rung["tried"]:
        word = "better" if tried["better"] else "no better"
        cost = stats.paired_difference(tried["parent_only"], tried["this_only"], tried["n"])
        rows.append({
            "rung": rung["rung"], "word": word, "what": _what(tried),
            "cost_on_select_fraction": measured(*cost),
            "agreement_fraction": measured(tried["agree"] / tried["n"]),
            "size_bytes": tried["size_bytes"], "seconds": tried["seconds"],
        })  # fmt: skip
    return rows


_WORDS = {
    "calibrator": "{}", "equalise": "equalised", "correct_bias": "biases corrected", "reduce_range": "7-bit weights",
    "weights": "{} weights", "rounding": "{} rounding", "activations": "{} activations", "symmetric": "zero point 0",
}  # fmt: skip


def layers_in_float(tried: dict[str, Any]) -> list[str]:
    """The layers of a file that were left in float."""
    return [layer for layer in tried["knobs"].get("keep_float", "").split("+") if layer]


def _what(tried: dict[str, Any]) -> str:
    """How the file was made, in words."""
    knobs = tried["knobs"]
    words = [_WORDS[name].format(value) for name, value in knobs.items() if name in _WORDS and value]
    words += ["re-estimated"] if tried["reestimated"] else []
    kept = ", ".join(layer.removeprefix("body.") for layer in layers_in_float(tried))
    words += [f"in float: {kept}"] if kept else []
    words += [f"trained for {tried['trained_epochs']:g} epochs"] if tried["trained_epochs"] else []
    words += ["emulated"] if tried["emulated"] else []
    return "; ".join(words) or "min-max"
