"""How latency is distributed within a cell, and how it moved: from round to round, and in minutes without a pause."""

from typing import Any

from compress import stats
from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels, drawn, timed
from compress.report.markup import Markup

_TAIL = 100  # the slowest query alone would set the axis


@svg.settings()
def distributions(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Cumulative share of queries against latency, one line a cell, with its median, p90 and p99 where allowed."""
    cells = [cell for cell in drawn(document) if cell["ecdf"]]
    if not cells:
        return None
    shown = [c["ecdf"]["latency_ns"][:_TAIL] for c in cells]
    low, high = svg.spread([v / 1e6 for values in shown for v in (values[0], values[-1])], log=True, least=1.5)
    ax = svg.axes(
        svg.Span(low=low, high=high, log=True, title="latency of one query, ms (log scale)"),
        svg.Span(low=0, high=100, title="queries at or below, %"),
    )
    for cell, values in zip(cells, shown, strict=True):
        colour = labels.colour(cell["stage"])
        shares = [100 * f for f in cell["ecdf"]["fraction"][: len(values)]]
        svg.line(ax, [v / 1e6 for v in values], shares, f"line {colour} {labels.dash(cell['runtime'])}")
        estimates = {50: cell["latency_ns"], **{p: cell["percentiles_ns"][f"p{p}"] for p in (90, 99)}}
        told = [percentile for percentile, estimate in estimates.items() if estimate["value"] is not None]
        at = [values[min(percentile, len(values) - 1)] / 1e6 for percentile in told]
        svg.marks(ax, labels.shape(cell["runtime"]), at, told, 3.2, f"mark {colour}")
    description = "; ".join(
        f"{labels.cell(c)}: median {fmt.latency_interval(c['latency_ns'])}, "
        f"p90 {fmt.shown(c['percentiles_ns']['p90'], fmt.latency)}"
        for c in cells
    )
    return svg.drawing("ecdf", "Latency distribution of each cell", description, ax)


@svg.settings()
def rounds(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Each round's median against the cell's own median: drift and jumps show. None below two rounds."""
    cells = [c for c in drawn(document, controls=True) if len(c["rounds"]) > 1]
    if not cells:
        return None
    moves = [[100 * (m / c["latency_ns"]["value"] - 1) for m in c["round_medians_ns"]] for c in cells]
    low, high = svg.spread([v for move in moves for v in move] + [-2.0, 2.0], share=0.1)
    numbers = [r + 1 for c in cells for r in c["rounds"]]
    first, last = min(numbers) - 0.3, max(numbers) + 0.3
    ax = svg.axes(
        svg.Span(low=first, high=last, title="round (cells in a new random order each)",
                 text=lambda v: f"{v:g}" if v == int(v) else ""),
        svg.Span(low=low, high=high, title="round's median against the cell's, %", text="{:+g}".format),
    )  # fmt: skip
    svg.band(ax, y=(-100 * stats.NOISE_BAND, 100 * stats.NOISE_BAND))
    for cell, move in zip(cells, moves, strict=True):
        colour, twin = labels.colour(cell["stage"]), " twin" if cell["control"] else ""
        places = [r + 1 for r in cell["rounds"]]
        svg.line(ax, places, move, f"line thin {colour} {labels.dash(cell['runtime'])}{twin}")
        svg.marks(ax, labels.shape(cell["runtime"]), places, move, 3.2, f"mark {colour}{twin}")
    description = "; ".join(
        f"{labels.cell(c)}: {min(m):+.1f} % to {max(m):+.1f} %" for c, m in zip(cells, moves, strict=True)
    )
    return svg.drawing("rounds", "Round by round", description, ax)


def sustained_cells(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that worked without a pause, in the order of the table."""
    windows = _windows(document)
    return [cell for cell in timed(document) if windows.get(cell["cell"])]


@svg.settings()
def sustained(document: dict[str, Any], labels: Labels) -> Markup | None:
    """The median of each window against the first one's, and its 90th percentile. None without windows."""
    windows, cells = _windows(document), sustained_cells(document)
    if not cells:
        return None
    minutes = max(windows[c["cell"]][-1]["end_s"] for c in cells) / 60
    lines = []
    for cell in cells:
        own = windows[cell["cell"]]
        begin = [0.0, *(w["end_s"] for w in own)]
        middles = [(a + b) / 120 for a, b in zip(begin, begin[1:], strict=False)]
        first = own[0]["median_ns"]
        lines += [(cell, middles, [100 * (w[key] / first - 1) for w in own], key) for key in ("p90_ns", "median_ns")]
    low, high = svg.spread([v for *_, values, _ in lines for v in values] + [-2.0, 12.0], share=0.1)
    ax = svg.axes(
        svg.Span(low=0, high=minutes, title="minutes without a pause"),
        svg.Span(low=low, high=high, title="against the first window, %", text="{:+g}".format),
        width=820,
    )
    svg.line(ax, [0, minutes], [10, 10], "link")
    for cell, middles, values, key in lines:
        faint = " thin faded" if key == "p90_ns" else ""
        svg.line(ax, middles, values, f"line {labels.colour(cell['stage'])} {labels.dash(cell['runtime'])}{faint}")
    rows = [row for row in document["derived"]["sustained"] if windows.get(row["cell"])]
    said = "; ".join(f"{row['cell']}: {fmt.sustained_words(row)}" for row in rows)
    return svg.drawing("sustained", "Without a pause", said, ax)


def _windows(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {m["cell"]: (m.get("sustained") or {}).get("windows", []) for m in document["measurements"]}
