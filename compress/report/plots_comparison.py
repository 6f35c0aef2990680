"""Where each cell stands: accuracy against latency, and the speed-ups with the control beside them."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from compress import stats
from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels, drawn
from compress.report.markup import Markup

# columns; what tells cells of one file apart is at the end of a name, and the descriptions have the whole of it
_ROW_NAME, _POINT_NAME, _ENDING = 34, 24, 18


def _overlap(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share."""
    shared = Bbox.intersection(a, b)
    return shared.width * shared.height if shared else 0.0


def _place_label(label: Annotation, gap: float, taken: list[Bbox], room: Bbox) -> Bbox:
    """Move a label that stands on its point to where it covers least: right, left, above or below, in this order.
    Returns its box in pixels.
    """
    own = label.get_window_extent()
    beside, levels = gap + 4 + own.width / 2, [0.0] + [side * step for step in (14, 26, 38) for side in (1, -1)]
    moves = [(beside, dy) for dy in levels] + [(-beside, dy) for dy in levels] + [(0.0, dy) for dy in levels[1:]]
    inside = [m for m in moves if _overlap(own.translated(*m), room) > 0.999 * own.width * own.height]
    best = min(inside or moves, key=lambda m: sum(_overlap(own.translated(*m), other) for other in taken))
    label.set_position(best)
    return own.translated(*best)


def _frontier(ax: Axes, points: list[dict[str, Any]]) -> None:
    best = sorted((p["latency_ns"]["value"] / 1e6, 100 * p["top1_fraction"]["value"])
                  for p in points if not p["dominated"])  # fmt: skip
    if len(best) > 1:
        corners = [best[0]]
        for latency, top1 in best[1:]:
            corners += [(latency, corners[-1][1]), (latency, top1)]
        svg.line(ax, [x for x, _ in corners], [y for _, y in corners], "frontier")


def _bounds(estimate: dict[str, Any]) -> tuple[float, float]:
    return (estimate["value"], estimate["value"]) if estimate["low"] is None else (estimate["low"], estimate["high"])


def _radius(cell: dict[str, Any], largest: float) -> float:
    return max(4.0, 15.0 * math.sqrt((cell["size_bytes"] or 0) / largest)) if largest else 5.0


@svg.settings()
def accuracy_latency(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Top-1 against latency, both with intervals; area is file size. None when nothing has both."""
    points = document["derived"]["pareto"]
    if not points:
        return None
    cells = {c["cell"]: c for c in document["derived"]["cells"]}
    spans = [
        ([v / 1e6 for v in _bounds(p["latency_ns"])], [100 * v for v in _bounds(p["top1_fraction"])]) for p in points
    ]
    low, high = _range([v for s in spans for v in s[0]], log=True)
    x = svg.Span(low=low, high=high, log=True, title="latency, ms (log scale)")
    low, high = _range([v for s in spans for v in s[1]])
    ax = svg.axes(x, svg.Span(low=low, high=high, title="top-1, %"))
    _frontier(ax, points)
    largest = max((cells[p["cell"]]["size_bytes"] or 0) for p in points)
    radii = [_radius(cells[p["cell"]], largest) for p in points]
    for point, span, radius in zip(points, spans, radii, strict=True):
        _point(ax, cells[point["cell"]], point, span, radius, labels)
    _name_points(ax, points, spans, radii, labels, document)
    description = "; ".join(
        f"{labels.cell(cells[p['cell']])}: {fmt.latency_interval(p['latency_ns'])}, "
        f"{fmt.percent_interval(p['top1_fraction'])}"
        for p in points
    )
    return svg.drawing("pareto", "Accuracy against latency", description, ax)


def _name_points(
    ax: Axes, points: list[dict[str, Any]], spans: list[Any], radii: list[float], labels: Labels,
    document: dict[str, Any],
) -> None:  # fmt: skip
    """A label beside each point of a cell that plots have room for, where it covers least of the others."""
    svg.measure(ax)
    place = ax.transData.transform
    at = [place((_ms(p), _percent(p))) for p in points]
    taken = [Bbox([(x - r, y - r), (x + r, y + r)]) for (x, y), r in zip(at, radii, strict=True)]
    for point, span in zip(points, spans, strict=True):
        low, high = (place((_ms(point), top1)) for top1 in span[1])
        taken.append(Bbox([low - (2, 0), high + (2, 0)]))
    named = {cell["cell"]: cell for cell in drawn(document)}
    for point, radius in zip(points, radii, strict=True):
        if point["cell"] in named:
            looks = "t label halo" + (" faded" if point["dominated"] else "")
            words = svg.shortened(labels.point(named[point["cell"]]), _POINT_NAME, end=_ENDING)
            label = svg.text(ax, _ms(point), _percent(point), words, looks, ha="center", va="center")
            taken.append(_place_label(label, radius, taken, ax.bbox))


def _ms(point: dict[str, Any]) -> float:
    return point["latency_ns"]["value"] / 1e6


def _percent(point: dict[str, Any]) -> float:
    return 100 * point["top1_fraction"]["value"]


def _range(values: list[float], *, log: bool = False) -> tuple[float, float]:
    return svg.spread(values, log=log, share=0.12, least=1.5 if log else 1.0)


def _point(
    ax: Axes, cell: dict[str, Any], point: dict[str, Any], span: tuple[list[float], list[float]], radius: float,
    labels: Labels,
) -> None:  # fmt: skip
    faded = " faded" if point["dominated"] else ""
    colour = labels.colour(cell["stage"])
    teacher = " hollow" if cell["role"] == "teacher" else ""
    x, y = _ms(point), _percent(point)
    svg.line(ax, span[0], [y, y], f"whisker {colour}{faded}")
    svg.line(ax, [x, x], span[1], f"whisker {colour}{faded}")
    svg.marks(ax, labels.shape(cell["runtime"]), [x], [y], radius, f"mark {colour}{teacher}{faded}")


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


@svg.settings()
def speedups(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Forest plot of speed-ups with intervals, the noise band shaded. None when nothing was compared."""
    rows = [r for r in _forest_rows(document, labels) if r[1]["value"] is not None]
    if not rows:
        return None
    groups = list(dict.fromkeys(r[3] for r in rows))
    values = [v for r in rows for v in _bounds(r[1])] + [1.0]
    low, high = svg.spread(values, log=True, share=0.05, least=1.3)
    x = svg.Span(
        low=low, high=high, log=True, title="times as fast as the teacher (log scale)", text=lambda v: f"{v:g}x"
    )
    lines = len(rows) + sum(bool(g) for g in groups)
    ax = svg.axes(x, None, height=max(66 + 26.0 * lines, 150))
    ax.set_ylim(lines - 0.5, -0.5)
    svg.band(ax, x=(max(low, 1 - stats.NOISE_BAND), min(high, 1 + stats.NOISE_BAND)))
    svg.line(ax, [1, 1], [-0.5, lines - 0.5], "unity")
    places: list[float] = []
    group = ""
    for _, estimate, colour, own_group in rows:
        y = places[-1] + 1 if places else 0
        if own_group != group:
            group, y = own_group, y + 1
            svg.text(ax, 0, y - 1, group, "t group halo", va="center", xycoords=ax.get_yaxis_transform())
        places.append(y)
        _forest_row(ax, estimate, colour, y)
    svg.names(ax.yaxis, [svg.shortened(r[0], _ROW_NAME, end=_ENDING) for r in rows], at=places)
    description = "; ".join(f"{r[0]} {r[3]}: {fmt.ratio_interval(r[1])}" for r in rows)
    return svg.drawing("forest", "Speed-ups with 95 % intervals", description, ax)


def _forest_row(ax: Axes, estimate: dict[str, Any], colour: str, y: float) -> None:
    svg.line(ax, _bounds(estimate), [y, y], f"whisker {colour}")
    svg.marks(ax, "square", [estimate["value"]], [y], 4.0, f"mark {colour}")
    words = fmt.ratio_interval(estimate)
    svg.text(ax, 1, y, words, "t number", va="center", xytext=(8, 0), xycoords=ax.get_yaxis_transform())
