"""Where each cell stands: accuracy against latency, and the speed-ups with the control beside them."""

import math
from typing import Any

from compress import stats
from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels, drawn
from compress.report.markup import Markup, join

Box = tuple[float, float, float, float]


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


def _place_label(words: str, x: float, y: float, gap: float, taken: list[Box], frame: svg.Frame) -> tuple[Box, str]:
    """The place around a point where its label covers least: right, left, above or below, in this order."""
    wide, high = len(words) * svg.CHARACTER_WIDTH, 13.0
    left, right = x - gap - 4 - wide, x + gap + 4
    levels = [0.0] + [side * step for step in (14.0, 26.0, 38.0) for side in (-1, 1)]
    places = [((right, y + dy - 7, right + wide, y + dy + 6), "start") for dy in levels]
    places += [((left, y + dy - 7, left + wide, y + dy + 6), "end") for dy in levels]
    places += [((x - wide / 2, y + dy - high / 2, x + wide / 2, y + dy + high / 2), "middle") for dy in levels[1:]]
    inside = [
        p for p in places if frame.x[0] <= p[0][0] and p[0][2] <= frame.x[1] + 6 and frame.y[1] <= p[0][1] <= frame.y[0]
    ]
    return min(inside or places, key=lambda p: sum(_overlap(p[0], other) for other in taken))


def _label(words: str, where: Box, anchor: str, class_: str) -> Markup:
    x = {"start": where[0], "end": where[2], "middle": (where[0] + where[2]) / 2}[anchor]
    return svg.text(x, where[3] - 2.5, words, class_, anchor)


def _frontier(points: list[dict[str, Any]], x: svg.Scale, y: svg.Scale) -> Markup | None:
    best = sorted((p["latency_ns"]["value"], p["top1_fraction"]["value"]) for p in points if not p["dominated"])
    if len(best) < 2:
        return None
    steps = [(x(best[0][0]), y(best[0][1]))]
    for latency, top1 in best[1:]:
        steps += [(x(latency), steps[-1][1]), (x(latency), y(top1))]
    return svg.polyline(steps, "frontier")


def _bounds(estimate: dict[str, Any]) -> tuple[float, float]:
    return (estimate["value"], estimate["value"]) if estimate["low"] is None else (estimate["low"], estimate["high"])


def _radius(cell: dict[str, Any], largest: float) -> float:
    return max(4.0, 15.0 * math.sqrt((cell["size_bytes"] or 0) / largest)) if largest else 5.0


def accuracy_latency(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Top-1 against latency, both with intervals; area is file size. None when nothing has both."""
    points = document["derived"]["pareto"]
    if not points:
        return None
    cells = {c["cell"]: c for c in document["derived"]["cells"]}
    frame = svg.Frame(top=20)
    spans = [(_bounds(p["latency_ns"]), _bounds(p["top1_fraction"])) for p in points]
    low, high = _range([v / 1e6 for s in spans for v in s[0]], log=True)
    x = svg.Scale(low=low, high=high, start=frame.x[0], end=frame.x[1], log=True)
    low, high = _range([100 * v for s in spans for v in s[1]])
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1])
    largest = max((cells[p["cell"]]["size_bytes"] or 0) for p in points)
    in_ms = [{**p, "latency_ns": {"value": p["latency_ns"]["value"] / 1e6}} for p in points]
    in_percent = [{**p, "top1_fraction": {"value": 100 * p["top1_fraction"]["value"]}} for p in in_ms]
    body = [svg.axes(frame, x, y, x_title="latency, ms (log scale)", y_title="top-1, %"), _frontier(in_percent, x, y)]
    at = [(x(p["latency_ns"]["value"]), y(p["top1_fraction"]["value"])) for p in in_percent]
    radii = [_radius(cells[p["cell"]], largest) for p in points]
    taken: list[Box] = [(a - r, b - r, a + r, b + r) for (a, b), r in zip(at, radii, strict=True)]
    named = {cell["cell"] for cell in drawn(document)}
    taken += [(a - 2, y(100 * s[1][1]), a + 2, y(100 * s[1][0])) for (a, _), s in zip(at, spans, strict=True)]
    for point, span, (px, py), radius in zip(points, spans, at, radii, strict=True):
        body.append(_point(cells[point["cell"]], point, span, (px, py), radius, (x, y), labels))
        if point["cell"] not in named:
            continue
        words = labels.point(cells[point["cell"]])
        where, anchor = _place_label(words, px, py, radius, taken, frame)
        taken.append(where)
        body.append(_label(words, where, anchor, "t label halo" + (" faded" if point["dominated"] else "")))
    description = "; ".join(
        f"{labels.cell(cells[p['cell']])}: {fmt.latency_interval(p['latency_ns'])}, "
        f"{fmt.percent_interval(p['top1_fraction'])}"
        for p in points
    )
    return svg.drawing("pareto", "Accuracy against latency", description, frame, *filter(None, body))


def _range(values: list[float], *, log: bool = False) -> tuple[float, float]:
    return svg.spread(values, log=log, share=0.12, least=1.5 if log else 1.0)


def _point(
    cell: dict[str, Any], point: dict[str, Any], span: tuple, at: tuple[float, float], radius: float,
    scales: tuple[svg.Scale, svg.Scale], labels: Labels,
) -> Markup:  # fmt: skip
    (x, y), (px, py) = scales, at
    faded = " faded" if point["dominated"] else ""
    colour = labels.colour(cell["stage"])
    teacher = " hollow" if cell["role"] == "teacher" else ""
    return join(
        svg.line(x(span[0][0] / 1e6), py, x(span[0][1] / 1e6), py, f"whisker {colour}{faded}"),
        svg.line(px, y(100 * span[1][0]), px, y(100 * span[1][1]), f"whisker {colour}{faded}"),
        svg.mark(labels.shape(cell["runtime"]), px, py, radius, f"mark {colour}{teacher}{faded}"),
    )


def _forest_rows(document: dict[str, Any], labels: Labels) -> list[tuple[str, dict[str, Any], str, str]]:
    """(label, estimate, colour, group) of every row, the control first."""
    derived = document["derived"]
    rows = [("A/A control: same bytes twice", derived["aa"], "s0", "")]
    groups = [("speedup_same_runtime", "against the teacher in the same runtime")]
    groups += [("speedup_native", "against the teacher in torch_eager")]
    for key, group in groups:
        for cell in drawn(document):
            comparable = not cell[key].get("is_baseline")
            repeated = key == "speedup_native" and cell["runtime"] == "torch_eager"
            if comparable and not repeated and cell[key]["value"] is not None:
                rows.append((labels.cell(cell), cell[key], labels.colour(cell["stage"]), group))
    return rows


def speedups(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Forest plot of speed-ups with intervals, the noise band shaded. None when nothing was compared."""
    rows = [r for r in _forest_rows(document, labels) if r[1]["value"] is not None]
    if not rows:
        return None
    groups = list(dict.fromkeys(r[3] for r in rows))
    row_height, longest = 26.0, max(len(r[0]) for r in rows)
    height = 14 + row_height * (len(rows) + sum(bool(g) for g in groups)) + 46
    left = min(230.0, 14 + longest * svg.CHARACTER_WIDTH)
    frame = svg.Frame(left=left, right=122, height=max(height, 150))
    values = [v for r in rows for v in _bounds(r[1])] + [1.0]
    low, high = svg.spread(values, log=True, share=0.05, least=1.3)
    x = svg.Scale(low=low, high=high, start=frame.x[0], end=frame.x[1], log=True)
    bottom, top = frame.y
    band = (max(low, 1 - stats.NOISE_BAND), min(high, 1 + stats.NOISE_BAND))
    body = [
        svg.box(x(band[0]), top, x(band[1]), bottom, "band"),
        svg.axes(frame, x, None, x_title="times as fast as the teacher (log scale)", x_text=lambda v: f"{v:g}x"),
        svg.line(x(1), top, x(1), bottom, "unity"),
    ]
    y, group = top + row_height / 2, ""
    for words, estimate, colour, own_group in rows:
        if own_group != group:
            group = own_group
            body.append(svg.text(4, y + 6, group, "t group halo"))
            y += row_height
        body.append(_forest_row(words, estimate, colour, x, y, frame))
        y += row_height
    description = "; ".join(f"{r[0]} {r[3]}: {fmt.ratio_interval(r[1])}" for r in rows)
    return svg.drawing("forest", "Speed-ups with 95 % intervals", description, frame, *body)


def _forest_row(words: str, estimate: dict[str, Any], colour: str, x: svg.Scale, y: float, frame: svg.Frame) -> Markup:
    low, high = _bounds(estimate)
    return join(
        svg.text(4, y + 4, words),
        svg.line(x(low), y, x(high), y, f"whisker {colour}"),
        svg.mark("square", x(estimate["value"]), y, 4.0, f"mark {colour}"),
        svg.text(frame.width - 4, y + 4, fmt.ratio_interval(estimate), "t number", "end"),
    )
