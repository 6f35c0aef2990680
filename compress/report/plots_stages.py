"""What the chain did: top-1 from stage to stage, and the training losses."""

from typing import Any

from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels
from compress.report.markup import Markup, element, join

_MOST_POINTS = 300  # of one curve in the page; the JSON holds all


def _levels(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Top-1 on the report split of each stage, each in the first runtime that has it."""
    levels: dict[str, dict[str, Any]] = {}
    for row in document["derived"]["accuracy"]:
        if row["top1_fraction"]["value"] is not None:
            levels.setdefault(row["stage"], row["top1_fraction"])
    return levels


def waterfall(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Top-1 after each stage with its interval, a bar from its parent's level to its own. None below two levels."""
    levels = _levels(document)
    stages = [s for s in document["derived"]["stages"] if s["stage"] in levels]
    if len(stages) < 2:
        return None
    frame = svg.Frame(bottom=58, top=24)
    low, high = svg.spread(
        [100 * v for s in stages for v in (levels[s["stage"]]["low"], levels[s["stage"]]["high"])], share=0.1, least=1.0
    )
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1])
    slot = (frame.x[1] - frame.x[0]) / len(stages)
    centres = {s["stage"]: frame.x[0] + slot * (i + 0.5) for i, s in enumerate(stages)}
    body = [_ground(frame, y)]
    for stage in stages:
        body.append(_step(stage, levels, centres, min(slot * 0.3, 34.0), y, frame))
    description = "; ".join(f"{s['stage']}: {fmt.percent_interval(levels[s['stage']])}" for s in stages)
    return svg.drawing("waterfall", "Top-1 from stage to stage", description, frame, *body)


def _ground(frame: svg.Frame, y: svg.Scale) -> Markup:
    (left, right), (bottom, _) = frame.x, frame.y
    grid = [join(svg.line(left, y(t), right, y(t), "grid"), svg.text(left - 8, y(t) + 4, f"{t:g}", "t", "end"))
            for t in y.ticks()]  # fmt: skip
    title = {"x": -float(frame.top), "y": 13.0, "text_anchor": "end", "transform": "rotate(-90)"}
    return join(
        *grid,
        svg.line(left, bottom, right, bottom, "axis"),
        element("text", "top-1 on the report split, %", class_="t name", **title),
    )


def _step(
    stage: dict[str, Any], levels: dict[str, Any], centres: dict[str, float], half: float, y: svg.Scale,
    frame: svg.Frame,
) -> Markup:  # fmt: skip
    level, x = levels[stage["stage"]], centres[stage["stage"]]
    here = y(100 * level["value"])
    dropped = " dropped" if stage["decision"] == "dropped" else ""
    parts, top = [], y(100 * level["high"])
    parent = levels.get(stage["parent"])
    if parent and stage["parent"] in centres:
        there = y(100 * parent["value"])
        top = min(top, there)
        loses = level["value"] < parent["value"]
        parts.append(svg.line(centres[stage["parent"]] + half, there, x + half, there, "link"))
        parts.append(svg.box(x - half, there, x + half, here, ("fall" if loses else "rise") + dropped))
    parts += [
        svg.line(x - half, here, x + half, here, f"level{dropped}"),
        svg.line(x, y(100 * level["low"]), x, y(100 * level["high"]), f"whisker plain{dropped}"),
        svg.text(x, top - 7, fmt.percent(level["value"]), f"t number{dropped}", "middle"),
        svg.text(x, frame.y[0] + 17, _shortened(stage["stage"], 16), f"t label{dropped}", "middle"),
    ]
    change = stage["cost_on_report_fraction"]
    words = "not kept" if dropped else ""
    if change["value"] is not None:
        words = f"{fmt.points_interval({**change, 'low': None, 'reason': ''})}" + (", not kept" if dropped else "")
    return join(*parts, svg.text(x, frame.y[0] + 32, words, "t small", "middle"))


def _shortened(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` of `points`, evenly, always with the last."""
    if len(points) <= _MOST_POINTS:
        return points
    step = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(_MOST_POINTS)]


def _curve(stage: dict[str, Any]) -> list[tuple[float, float]]:
    curve = stage["curve"] or {"step": [], "loss": []}
    return _thinned([(s, v) for s, v in zip(curve["step"], curve["loss"], strict=False) if v is not None])


def losses(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Training loss of each stage that was trained. None when there is no curve."""
    curves = {s["name"]: _curve(s) for s in document["stages"]}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    frame = svg.Frame()
    steps, values = ([p[i] for points in curves.values() for p in points] for i in (0, 1))
    log = min(values) > 0 and max(values) / min(values) > 20
    low, high = svg.spread(values, log=log)
    x = svg.Scale(low=min(steps), high=max(steps) if max(steps) > min(steps) else min(steps) + 1,
                  start=frame.x[0], end=frame.x[1])  # fmt: skip
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1], log=log)
    body = [svg.axes(frame, x, y, x_title="training step", y_title="loss" + (" (log scale)" if log else ""),
                     x_text=fmt.count)]  # fmt: skip
    for name, points in curves.items():
        body.append(svg.polyline([(x(s), y(v)) for s, v in points], f"line {labels.colour(name)}"))
    description = "; ".join(
        f"{name}: {points[0][1]:.3g} at step {points[0][0]:g}, {points[-1][1]:.3g} at step {points[-1][0]:g}"
        for name, points in curves.items()
    )
    return svg.drawing("losses", "Training loss", description, frame, *body)
