"""What the chain did: top-1 from stage to stage, and the training losses."""

from typing import Any

from matplotlib.axes import Axes

from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels
from compress.report.markup import Markup

_MOST_POINTS = 300  # of one curve in the page; the JSON holds all


def _levels(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Top-1 on the report split of each stage, each in the first runtime that has it."""
    levels: dict[str, dict[str, Any]] = {}
    for row in document["derived"]["accuracy"]:
        if row["top1_fraction"]["value"] is not None:
            levels.setdefault(row["stage"], row["top1_fraction"])
    return levels


@svg.settings()
def waterfall(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Top-1 after each stage with its interval, a bar from its parent's level to its own. None below two levels."""
    levels = _levels(document)
    stages = [s for s in document["derived"]["stages"] if s["stage"] in levels]
    if len(stages) < 2:
        return None
    low, high = svg.spread(
        [100 * v for s in stages for v in (levels[s["stage"]]["low"], levels[s["stage"]]["high"])], share=0.1, least=1.0
    )
    ax = svg.axes(None, svg.Span(low=low, high=high, title="top-1 on the report split, %"))
    ax.set_xlim(-0.5, len(stages) - 0.5)
    gone = [" dropped" if s["decision"] == "dropped" else "" for s in stages]
    svg.names(ax.xaxis, [svg.shortened(s["stage"], 16) for s in stages], [f"t label{dropped}" for dropped in gone])
    places = {s["stage"]: place for place, s in enumerate(stages)}
    for stage, dropped in zip(stages, gone, strict=True):
        _step(ax, stage, levels, places, min(0.3, 0.07 * len(stages)), dropped)
    description = "; ".join(f"{s['stage']}: {fmt.percent_interval(levels[s['stage']])}" for s in stages)
    return svg.drawing("waterfall", "Top-1 from stage to stage", description, ax)


def _step(
    ax: Axes, stage: dict[str, Any], levels: dict[str, Any], places: dict[str, int], half: float, dropped: str
) -> None:
    """The bar from the parent's level to the stage's own, its level and interval, and what it cost."""
    level, x = levels[stage["stage"]], places[stage["stage"]]
    here, top = 100 * level["value"], 100 * level["high"]
    parent = levels.get(stage["parent"])
    if parent and stage["parent"] in places:
        there = 100 * parent["value"]
        top = max(top, there)
        svg.line(ax, [places[stage["parent"]] + half, x + half], [there, there], "link")
        looks = ("fall" if here < there else "rise") + dropped
        svg.bars(ax, [x - half], [there], 2 * half, [here - there], looks)
    svg.line(ax, [x - half, x + half], [here, here], f"level{dropped}")
    svg.line(ax, [x, x], [100 * level["low"], 100 * level["high"]], f"whisker plain{dropped}")
    svg.text(ax, x, top, fmt.percent(level["value"]), f"t number{dropped}", ha="center", xytext=(0, 7))
    change = stage["cost_on_report_fraction"]
    words = "not kept" if dropped else ""
    if change["value"] is not None:
        words = f"{fmt.points_interval({**change, 'low': None, 'reason': ''})}" + (", not kept" if dropped else "")
    if words:
        below = {"xytext": (0, -26), "xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
        svg.text(ax, x, 0, words, "t small", **below)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` of `points`, evenly, always with the last."""
    if len(points) <= _MOST_POINTS:
        return points
    step = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(_MOST_POINTS)]


def _curve(stage: dict[str, Any]) -> list[tuple[float, float]]:
    curve = stage["curve"] or {"step": [], "loss": []}
    return _thinned([(s, v) for s, v in zip(curve["step"], curve["loss"], strict=False) if v is not None])


@svg.settings()
def losses(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Training loss of each stage that was trained. None when there is no curve."""
    curves = {s["name"]: _curve(s) for s in document["stages"]}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    steps, values = ([p[i] for points in curves.values() for p in points] for i in (0, 1))
    log = min(values) > 0 and max(values) / min(values) > 20
    low, high = svg.spread(values, log=log)
    last = max(steps) if max(steps) > min(steps) else min(steps) + 1
    ax = svg.axes(
        svg.Span(low=min(steps), high=last, title="training step", text=fmt.count),
        svg.Span(low=low, high=high, log=log, title="loss" + (" (log scale)" if log else "")),
    )
    for name, points in curves.items():
        svg.line(ax, [step for step, _ in points], [loss for _, loss in points], f"line {labels.colour(name)}")
    description = "; ".join(
        f"{name}: {points[0][1]:.3g} at step {points[0][0]:g}, {points[-1][1]:.3g} at step {points[-1][0]:g}"
        for name, points in curves.items()
    )
    return svg.drawing("losses", "Training loss", description, ax)
