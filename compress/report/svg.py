"""Plots by matplotlib, as inline SVG. matplotlib places every mark, tick and word; how they look is left to the classes
of `style.css`, so that a plot follows its page into the dark and onto paper, and a page without styles in its elements
can hold it.
"""

import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator

from compress.report.markup import Markup, clean, element, join

FONT_SIZE = 11.5  # px, as in style.css; a figure has 72 dots per inch, so that a point is a pixel
_SVG = "{http://www.w3.org/2000/svg}"
_LOOKS = "looks:"  # begins the group id of an artist; its classes follow
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a class may be called $x$
    "font.size": FONT_SIZE,
    # widths of 1 are not written, so that only those asked for by name are in the file
    "lines.linewidth": 1.0,
    "patch.linewidth": 1.0,
    "grid.linewidth": 1.0,
    "axes.linewidth": 1.0,
    "axes.unicode_minus": False,
}
# matplotlib's marker, and its size for the area of a circle of radius 1
_MARKERS = {"circle": ("o", 2.0), "square": ("s", 1.77), "diamond": ("D", 1.77), "triangle": ("^", 2.7)}


@dataclass(frozen=True, kw_only=True)
class Span:
    """One axis: its range, its title, and how a tick is written; `log` makes equal ratios equal lengths."""

    low: float
    high: float
    title: str = ""
    log: bool = False
    text: Callable[[float], str] = "{:g}".format


@contextmanager
def settings() -> Iterator[None]:
    """What every plot is made within: matplotlib's own defaults and ours, whatever the user's `matplotlibrc` says."""
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # the browser has its own fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round values inside [low, high], about five of them."""
    even = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    candidates = [even]
    if log:
        fine, decades = LogLocator(subs=(1, 2, 5), numticks=99), LogLocator(subs=(1,), numticks=8)
        candidates = [fine.tick_values(low, high), decades.tick_values(low, high), even]
    inside = [[float(v) for v in values if low <= v <= high] for values in candidates]
    return next((values for values in inside if 3 <= len(values) <= 8), inside[-1])


def spread(
    values: Iterable[float], *, log: bool = False, share: float = 0.06, least: float = 0.0
) -> tuple[float, float]:
    """The range of `values` with air at both ends, at least `least` wide (a ratio when `log`)."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        air = max((high / low) ** share, 1.02, (least / (high / low)) ** 0.5 if least else 1.0)
        return low / air, high * air
    air = max((high - low) * share, (least - (high - low)) / 2, 0.001 * abs(high), 1e-9)
    return low - air, high + air


def axes(
    x: Span | None, y: Span | None, *, width: float = 560, height: float = 340, ratios: tuple[int, ...] = (1,)
) -> Any:
    """Axes with a grid in a figure of `width` times `height` pixels. A direction without a `Span` has neither grid nor
    ticks: its range and names are the caller's. With several `ratios` of heights: a list of axes above each other,
    which share x; `y` is the first one's.
    """
    _within_settings()
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    figure.patch.set_visible(False)
    rows = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for place, made in enumerate(rows):
        _prepare(made, x, None if place else y)
    return list(rows) if len(ratios) > 1 else rows[0]


def _within_settings() -> None:
    assert matplotlib.rcParams["svg.fonttype"] == "none", "plots are made within `settings()`"


def _prepare(ax: Axes, x: Span | None, y: Span | None) -> None:
    ax.patch.set_visible(False)
    ax.set_axisbelow(True)
    ax.tick_params(left=False, bottom=False, pad=6)
    for side, spine in ax.spines.items():
        spine.set(visible=side == "bottom", gid=f"{_LOOKS}axis")
    sides: Any = (("x", x, "right"), ("y", y, "top"))
    for name, span, where in sides:
        if span is None:
            ax.set(**{f"{name}ticks": []})
            continue
        places = ticks(span.low, span.high, log=span.log)
        asked = {
            f"{name}scale": "log" if span.log else "linear",
            f"{name}lim": (span.low, span.high),
            f"{name}ticks": places,
            f"{name}ticklabels": [_words(span.text(v)) for v in places],
        }
        ax.set(**asked)
        ax.minorticks_off()
        ax.grid(axis=name)
        label = ax.set_xlabel if name == "x" else ax.set_ylabel
        label(_words(span.title), loc=where, weight="bold", gid=f"{_LOOKS}t name")


def canvas(width: float, height: float) -> Axes:
    """Bare axes whose unit is a pixel, from the upper left corner, for what has no scale."""
    _within_settings()
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    made = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    made.set_axis_off()
    return made


def line(ax: Axes, x: Sequence[float], y: Sequence[float], looks: str, width: float = 1.0) -> None:
    """A line through points in data units; a `width` in pixels counts where the classes set none."""
    ax.add_line(Line2D(x, y, linewidth=width, **_drawn(looks)))


def marks(ax: Axes, shape: str, x: Sequence[float], y: Sequence[float], radius: float, looks: str) -> None:
    """Markers of about the area of a circle of `radius` pixels, whatever their shape."""
    marker, size = _MARKERS[shape]
    ax.add_line(
        Line2D(x, y, linestyle="none", marker=marker, markersize=size * radius, markeredgewidth=0, **_drawn(looks))
    )


def bars(ax: Axes, x: Sequence[float], y: Sequence[float], width: float, heights: Sequence[float], looks: str) -> None:
    """Boxes in data units, of one width; `x` and `y` are the corners that they grow from."""
    for corner, height in zip(zip(x, y, strict=True), heights, strict=True):
        ax.add_patch(Rectangle(corner, width, height, **_drawn(looks)))


def band(ax: Axes, *, x: tuple[float, float] | None = None, y: tuple[float, float] | None = None) -> None:
    """A range of x or of y, shaded under the grid."""
    place: Any = {"gid": f"{_LOOKS}band", "zorder": 0}
    if x:
        ax.axvspan(*x, **place)
    if y:
        ax.axhspan(*y, **place)


def picture(ax: Axes, pixels: np.ndarray, x: float, y: float, side: float) -> None:
    """A small picture (uint8 `[H,W,4]`), framed, its pixels left as squares; (x, y) is the middle. For a canvas."""
    left, right, top, bottom = x - side / 2, x + side / 2, y - side / 2, y + side / 2
    bars(ax, [left], [top], side, [side], "well")
    shown = AxesImage(ax, extent=(left, right, bottom, top), interpolation="none", origin="upper")
    shown.set_data(pixels)
    shown.set(**_drawn("pixels"))
    ax.add_artist(shown)


def text(ax: Axes, x: float, y: float, words: Any, looks: str = "t", **place: Any) -> Annotation:
    """Words at data (x, y). `place` is matplotlib's: `ha`, `va`, `xytext` (pixels away), `xycoords`."""
    moved: Any = {"xytext": (0.0, 0.0), "textcoords": "offset points", "annotation_clip": False} | place
    return ax.annotate(_words(words), (x, y), **moved, **_drawn(looks))


def shortened(words: str, most: int, *, end: int = 0) -> str:
    """At most so many columns of `words`, with the last `end` of them kept; wide characters take two."""
    if len(words) + _wide(words) <= most:
        return words
    last = words[len(words) - end :]
    first = words[: max(0, most - 1 - len(last) - _wide(last))]
    while first and len(first) + _wide(first) > most - 1 - len(last) - _wide(last):
        first = first[:-1]
    return f"{first}…{last}"


def _drawn(looks: str) -> dict[str, Any]:
    """What all artists have: their classes, and one level above the grid; there later ones lie above earlier ones."""
    return {"gid": _LOOKS + looks, "clip_on": False, "zorder": 10}


def names(
    axis: Axis, words: Sequence[str], looks: str | Sequence[str] = "t", at: Sequence[float] = (), **place: Any
) -> None:
    """Names instead of numbers along an axis, at 0, 1, 2, … or at `at`; `looks` of all, or one each."""
    shown = [_words(each) for each in words]
    axis.set_ticks(at or range(len(words)), shown, **place)
    classes = [looks] * len(words) if isinstance(looks, str) else looks
    for label, own in zip(axis.get_ticklabels(), classes, strict=True):
        label.set_gid(_LOOKS + own)
    figure = _figure(axis.axes)
    engine = figure.get_layout_engine()
    if axis is axis.axes.yaxis and isinstance(engine, ConstrainedLayoutEngine):
        # scripts that matplotlib's own font lacks are drawn about half as wide again as they are measured
        more = max((_wide(each) for each in shown), default=0) * 0.45 * FONT_SIZE / figure.bbox.width
        engine.set(rect=(more, 0, 1 - more, 1))


def _wide(words: str) -> int:
    return sum(unicodedata.east_asian_width(character) in "WF" for character in words)


def drawing(name: str, title: str, description: str, ax: Axes) -> Markup:
    """An SVG that names and describes itself; `name` makes its ids unique on the page."""
    width, height = _figure(ax).bbox.size
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        inside(ax, name),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def inside(ax: Axes, name: str = "") -> Markup:
    """The content of `drawing`'s SVG."""
    return join(*_parts(_rendered(ax), name))


@functools.lru_cache(maxsize=256)
@settings()
def sample(line_looks: str, shape: str = "", radius: float = 0.0, mark_looks: str = "") -> Markup:
    """The line and the marker of a plot's key, 30 by 14 pixels; what is empty is left out."""
    ax = canvas(30, 14)
    if line_looks:
        line(ax, [1, 29], [7, 7], line_looks)
    if shape:
        marks(ax, shape, [15], [7], radius, mark_looks)
    return element("svg", inside(ax), viewBox="0 0 30 14", aria_hidden="true")


def measure(ax: Axes) -> None:
    """Lay the figure out, so that positions and sizes in pixels can be asked for."""
    _figure(ax).draw_without_rendering()


def _figure(ax: Axes) -> Figure:
    assert isinstance(ax.figure, Figure)
    return ax.figure


def _words(words: Any) -> str:
    return " ".join(clean(words).split())


def _rendered(ax: Axes) -> ElementTree.Element:
    file = io.StringIO()
    # `savefig` would draw once more, to lay out what drawing lays out itself
    FigureCanvasSVG(_figure(ax)).print_svg(file, metadata={"Date": None})
    return ElementTree.fromstring(file.getvalue())


# the classes of what matplotlib makes without a group of ours
_MADE = {"tick path": "grid", "tick text": "t", "image": "pixels"}


def _parts(root: ElementTree.Element, name: str) -> Iterator[Markup]:
    """What is drawn, without groups and styles, each part with the classes of the artist that it is of. Without a
    `name` for their ids markers are written out where they stand.
    """
    found = (shape for defs in root.iter(f"{_SVG}defs") for shape in defs.iter(f"{_SVG}path"))
    shapes = {f"#{shape.get('id')}": _short(shape.get("d")) for shape in found}
    ids = {shape: f"{name}-{number}" for number, shape in enumerate(shapes)}
    if name and shapes:
        yield element("defs", *(element("path", id=ids[shape], d=d) for shape, d in shapes.items()))
    for node, looks in _leaves(root):
        kind, kept = node.tag.removeprefix(_SVG), _attributes(node)
        target = next((value for key, value in node.attrib.items() if key.endswith("href")), "")
        if kind == "image":
            kept["href"] = "".join(target.split())
        elif kind == "use" and name:
            kept["href"] = f"#{ids[target]}"
        elif kind == "use":
            kind, kept = "path", {"d": shapes[target], "transform": f"translate({kept['x']} {kept['y']})"}
        yield element(kind, *([node.text] if kind == "text" else []), class_=looks, **kept)


def _leaves(
    node: ElementTree.Element, looks: str = "", tick: bool = False
) -> Iterator[tuple[ElementTree.Element, str]]:
    """Everything drawn under `node`, with its classes."""
    for child in node:
        kind, own = child.tag.removeprefix(_SVG), child.get("id", "")
        if kind == "g":
            inner = own.removeprefix(_LOOKS) if own.startswith(_LOOKS) else looks
            yield from _leaves(child, inner, tick or own.startswith(("xtick_", "ytick_")))
        elif kind in ("path", "use", "text", "image"):
            class_ = looks or _MADE.get(("tick " if tick else "") + kind, "")
            assert class_, f"an artist without classes: {ElementTree.tostring(child, 'unicode')[:200]}"
            yield child, class_


def _attributes(node: ElementTree.Element) -> dict[str, str]:
    """Where it is, from the attributes and the style; how it looks is left behind."""
    style = dict(part.split(":", 1) for part in node.get("style", "").replace(": ", ":").split("; ") if ":" in part)
    kept = {key: _short(node.get(key)) for key in ("d", "x", "y", "width", "height") if node.get(key)}
    turn = node.get("transform", "")
    if turn and not turn.startswith("rotate(-0 "):
        kept["transform"] = _short(turn)
    kept |= {key.replace("-", "_"): style[key] for key in ("text-anchor", "stroke-width") if key in style}
    return kept | ({"fill": "none"} if style.get("fill") == "none" else {})


def _short(numbers: str | None) -> str:
    """Coordinates with two decimals and without line breaks."""
    rounded = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), numbers or "")
    return " ".join(rounded.split())
