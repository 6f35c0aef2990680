"""What each cell makes of the CPU, under the roofs that the CPU itself showed."""

import math
from typing import Any

import numpy as np

from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import Labels, drawn
from compress.report.markup import Markup


def shown(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that have a place under a roof."""
    return [cell for cell in drawn(document) if cell["peak_share"]["value"] and cell["macs_per_byte"]["value"]]


def roofs(cells: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """By number of threads: (GMAC/s of the matrix product, bytes/s from memory), medians over the cells."""
    found = {}
    for threads in sorted({cell["threads"] for cell in cells}):
        own = [cell for cell in cells if cell["threads"] == threads]
        peaks = ([c[key]["value"] for c in own] for key in ("peak_gmacs_per_second", "peak_bytes_per_second"))
        gmacs, bytes_per_second = (float(np.median(values)) for values in peaks)
        found[threads] = (gmacs, bytes_per_second)
    return found


@svg.settings()
def roofline(document: dict[str, Any], labels: Labels) -> Markup | None:
    """GMAC/s against MACs for each byte of the file, both logarithmic (Williams et al. 2009). None without a peak."""
    cells = shown(document)
    if not cells:
        return None
    over = roofs(cells)
    ridges = [gmacs * 1e9 / bytes_per_second for gmacs, bytes_per_second in over.values()]
    low, high = svg.spread([*(c["macs_per_byte"]["value"] for c in cells), *ridges], log=True, share=0.12, least=4)
    x = svg.Span(low=low, high=high, log=True, title="MACs for each byte of the file (log scale)")
    reached = [c["gmacs_per_second"]["value"] for c in cells] + [gmacs for gmacs, _ in over.values()]
    low, high = svg.spread(reached, log=True, share=0.12, least=4)
    y = svg.Span(low=low, high=high, log=True, title="GMAC/s (log scale)")
    ax = svg.axes(x, y)
    for number, (threads, (gmacs, bytes_per_second)) in enumerate(over.items()):
        corners = _roof(x, y, gmacs, bytes_per_second)
        svg.line(ax, [left for left, _ in corners], [top for _, top in corners], f"roof d{number % 4}")
        svg.text(ax, x.high, gmacs, fmt.threads(threads), va="center", xytext=(5, 0))
    for cell in cells:
        twin = " hollow" if cell["role"] == "teacher" else ""
        svg.marks(ax, labels.shape(cell["runtime"]), [cell["macs_per_byte"]["value"]],
                  [cell["gmacs_per_second"]["value"]], 6.0, f"mark {labels.colour(cell['stage'])}{twin}")  # fmt: skip
    description = "; ".join(
        f"{labels.cell(c)}: {fmt.shown(c['gmacs_per_second'], fmt.gmacs)}, "
        f"{fmt.shown(c['peak_share'], fmt.percent)} of float32's peak"
        for c in cells
    )
    return svg.drawing("roofline", "Arithmetic under the CPU's roofs", description, ax)


def _roof(x: svg.Span, y: svg.Span, gmacs: float, bytes_per_second: float) -> list[tuple[float, float]]:
    """The slope of memory up to the peak, as far as it lies inside the axes."""
    per_byte = bytes_per_second / 1e9  # GMAC/s for each MAC a byte
    start = max(x.low, y.low / per_byte)
    corner = min(gmacs / per_byte, x.high)
    first = [] if math.isclose(start, corner) else [(start, start * per_byte)]
    return [*first, (corner, gmacs), (x.high, gmacs)]
