"""How latency is distributed within a cell, and how it moved: from round to round, and in minutes without a pause."""

from typing import Any

from compress import stats
from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels, drawn, timed
from compress.report.markup import Markup

_TAIL = 100  # the slowest query alone would set the axis


def distributions(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Cumulative share of queries against latency, one line a cell, with its median, p90 and p99 where allowed."""
    cells = [cell for cell in drawn(document) if cell["ecdf"]]
    if not cells:
        return None
    frame = svg.Frame()
    shown = [c["ecdf"]["latency_ns"][:_TAIL] for c in cells]
    low, high = svg.spread([v / 1e6 for values in shown for v in (values[0], values[-1])], log=True, least=1.5)
    x = svg.Scale(low=low, high=high, start=frame.x[0], end=frame.x[1], log=True)
    y = svg.Scale(low=0, high=100, start=frame.y[0], end=frame.y[1])
    body = [svg.axes(frame, x, y, x_title="latency of one query, ms (log scale)", y_title="queries at or below, %")]
    for cell, values in zip(cells, shown, strict=True):
        colour = labels.colour(cell["stage"])
        points = [(x(v / 1e6), y(100 * f)) for v, f in zip(values, cell["ecdf"]["fraction"], strict=False)]
        body.append(svg.polyline(points, f"line {colour} {labels.dash(cell['runtime'])}"))
        marks = {50: cell["latency_ns"], **{p: cell["percentiles_ns"][f"p{p}"] for p in (90, 99)}}
        for percentile, estimate in marks.items():
            if estimate["value"] is not None:
                at = values[min(percentile, len(values) - 1)] / 1e6
                body.append(svg.mark(labels.shape(cell["runtime"]), x(at), y(percentile), 3.2, f"mark {colour}"))
    description = "; ".join(
        f"{labels.cell(c)}: median {fmt.latency_interval(c['latency_ns'])}, "
        f"p90 {fmt.shown(c['percentiles_ns']['p90'], fmt.latency)}"
        for c in cells
    )
    return svg.drawing("ecdf", "Latency distribution of each cell", description, frame, *body)


def rounds(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Each round's median against the cell's own median: drift and jumps show. None below two rounds."""
    cells = [c for c in drawn(document, controls=True) if len(c["rounds"]) > 1]
    if not cells:
        return None
    frame = svg.Frame()
    moves = [[100 * (m / c["latency_ns"]["value"] - 1) for m in c["round_medians_ns"]] for c in cells]
    low, high = svg.spread([v for move in moves for v in move] + [-2.0, 2.0], share=0.1)
    numbers = [r + 1 for c in cells for r in c["rounds"]]
    x = svg.Scale(low=min(numbers) - 0.3, high=max(numbers) + 0.3, start=frame.x[0], end=frame.x[1])
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1])
    band = 100 * stats.NOISE_BAND
    body = [
        svg.box(frame.x[0], y(-band), frame.x[1], y(band), "band"),
        svg.axes(
            frame,
            x,
            y,
            x_title="round (cells in a new random order each)",
            y_title="round's median against the cell's, %",
            x_text=lambda v: f"{v:g}" if v == int(v) else "",
            y_text="{:+g}".format,
        ),
    ]
    for cell, move in zip(cells, moves, strict=True):
        colour, twin = labels.colour(cell["stage"]), " twin" if cell["control"] else ""
        points = [(x(r + 1), y(v)) for r, v in zip(cell["rounds"], move, strict=True)]
        body.append(svg.polyline(points, f"line thin {colour} {labels.dash(cell['runtime'])}{twin}"))
        body += [svg.mark(labels.shape(cell["runtime"]), *p, 3.2, f"mark {colour}{twin}") for p in points]
    description = "; ".join(
        f"{labels.cell(c)}: {min(m):+.1f} % to {max(m):+.1f} %" for c, m in zip(cells, moves, strict=True)
    )
    return svg.drawing("rounds", "Round by round", description, frame, *body)


def sustained_cells(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that worked without a pause, in the order of the table."""
    windows = _windows(document)
    return [cell for cell in timed(document) if windows.get(cell["cell"])]


def sustained(document: dict[str, Any], labels: Labels) -> Markup | None:
    """The median of each window against the first one's, and its 90th percentile. None without windows."""
    windows, cells = _windows(document), sustained_cells(document)
    if not cells:
        return None
    frame = svg.Frame(width=820)
    minutes = max(windows[c["cell"]][-1]["end_s"] for c in cells) / 60
    lines = []
    for cell in cells:
        own = windows[cell["cell"]]
        begin = [0.0, *(w["end_s"] for w in own)]
        middles = [(a + b) / 120 for a, b in zip(begin, begin[1:], strict=False)]
        first = own[0]["median_ns"]
        lines += [(cell, middles, [100 * (w[key] / first - 1) for w in own], key) for key in ("p90_ns", "median_ns")]
    low, high = svg.spread([v for *_, values, _ in lines for v in values] + [-2.0, 12.0], share=0.1)
    x = svg.Scale(low=0, high=minutes, start=frame.x[0], end=frame.x[1])
    y = svg.Scale(low=low, high=high, start=frame.y[0], end=frame.y[1])
    axes = svg.axes(
        frame, x, y, x_title="minutes without a pause", y_title="against the first window, %", y_text="{:+g}".format
    )  # fmt: skip
    body = [axes, svg.line(frame.x[0], y(10), frame.x[1], y(10), "link")]
    for cell, middles, values, key in lines:
        faint = " thin faded" if key == "p90_ns" else ""
        looks = f"line {labels.colour(cell['stage'])} {labels.dash(cell['runtime'])}{faint}"
        body.append(svg.polyline([(x(m), y(v)) for m, v in zip(middles, values, strict=True)], looks))
    rows = [row for row in document["derived"]["sustained"] if windows.get(row["cell"])]
    said = "; ".join(f"{row['cell']}: {fmt.sustained_words(row)}" for row in rows)
    return svg.drawing("sustained", "Without a pause", said, frame, *body)


def _windows(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {m["cell"]: (m.get("sustained") or {}).get("windows", []) for m in document["measurements"]}
