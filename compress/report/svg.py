"""Inline SVG by hand: scales, axes, marks and figures. Looks come from the classes of `style.css` alone."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report.markup import Markup, element, join

CHARACTER_WIDTH = 6.3  # of the 11.5 px text; only places labels


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps data in [low, high] to pixels [start, end]; `log` makes equal ratios equal lengths."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        marks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        inside = [m for m in marks if self.low <= m <= self.high]
        if len(inside) > 8:
            inside = [m for m in inside if math.isclose(math.log10(m) % 1, 0, abs_tol=1e-9)]
        return inside if len(inside) >= 3 else nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], about `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def spread(
    values: Iterable[float], *, log: bool = False, share: float = 0.06, least: float = 0.0
) -> tuple[float, float]:
    """The range of `values` with air at both ends, at least `least` wide (a ratio when `log`)."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        air = max((high / low) ** share, 1.02, (least / (high / low)) ** 0.5 if least else 1.0)
        return low / air, high * air
    air = max((high - low) * share, (least - (high - low)) / 2, 1e-9)
    return low - air, high + air


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plotting area of a figure, in pixels of its view box."""

    width: float = 560
    height: float = 340
    left: float = 56
    right: float = 14
    top: float = 14
    bottom: float = 46

    @property
    def x(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        return self.height - self.bottom, self.top


def text(x: float, y: float, words: Any, class_: str = "t", anchor: str = "start") -> Markup:
    return element("text", words, x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def box(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    left, top = min(x1, x2), min(y1, y2)
    return element(
        "rect", x=float(left), y=float(top), width=float(abs(x2 - x1)), height=float(abs(y2 - y1)), class_=class_
    )


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]], class_: str) -> Markup:
    return element("polygon", points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners), class_=class_)


def mark(shape: str, x: float, y: float, radius: float, class_: str) -> Markup:
    """A marker of about the area of a circle of `radius`, whatever its shape."""
    if shape == "circle":
        return element("circle", cx=float(x), cy=float(y), r=float(radius), class_=class_)
    half = radius * 0.886  # sqrt(pi) / 2
    corners = {
        "square": [(-half, -half), (half, -half), (half, half), (-half, half)],
        "diamond": [(0, -1.25 * radius), (1.25 * radius, 0), (0, 1.25 * radius), (-1.25 * radius, 0)],
        "triangle": [(0, -1.4 * radius), (1.3 * radius, 0.9 * radius), (-1.3 * radius, 0.9 * radius)],
    }
    return _polygon(x, y, corners[shape], class_)


def axes(
    frame: Frame, x: Scale, y: Scale | None, *, x_title: str, y_title: str = "", x_text: Callable = "{:g}".format,
    y_text: Callable = "{:g}".format,
) -> Markup:  # fmt: skip
    """Grid lines, tick labels and titles. Without `y` only the vertical grid is drawn."""
    bottom, top = frame.y
    left, right = frame.x
    parts = []
    for tick in x.ticks():
        parts += [line(x(tick), top, x(tick), bottom, "grid"), text(x(tick), bottom + 17, x_text(tick), "t", "middle")]
    for tick in y.ticks() if y else []:
        assert y
        parts += [line(left, y(tick), right, y(tick), "grid"), text(left - 8, y(tick) + 4, y_text(tick), "t", "end")]
    parts += [line(left, bottom, right, bottom, "axis"), text(right, bottom + 36, x_title, "t name", "end")]
    if y_title:
        turned = {"x": -float(top), "y": 13.0, "text_anchor": "end", "transform": "rotate(-90)"}
        parts.append(element("text", y_title, class_="t name", **turned))
    return join(*parts)


def drawing(name: str, title: str, description: str, frame: Frame, *body: Markup) -> Markup:
    """An SVG that names and describes itself; `name` makes its ids unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *body,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
