"""Plots: what matplotlib drew is where the data says, and all of its looks are classes."""

import json
import re
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from test_report import make_facts

from compress import report
from compress.report import html, plots_comparison, svg
from compress.report.labels import labels_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn(ax) -> ElementTree.Element:
    text = svg.drawing("plot", "a title", "a description", ax)
    return ElementTree.fromstring(text.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def points(node: ElementTree.Element) -> list[tuple[float, float]]:
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", node.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def of_class(root: ElementTree.Element, class_: str) -> list[ElementTree.Element]:
    return [node for node in root.iter() if node.get("class") == class_]


@pytest.fixture
def ax():
    with svg.settings():
        yield svg.axes(svg.Span(low=1, high=100, log=True, title="ms"), svg.Span(low=0, high=10, title="%"))


def test_data_lands_where_the_axes_say(ax):
    svg.line(ax, [1, 10, 100], [0, 5, 10], "line s1")
    svg.marks(ax, "circle", [1, 10, 100], [0, 5, 10], 4, "mark s1")
    root = drawn(ax)
    (line,) = of_class(root, "line s1")
    ends = points(line)
    marks = [(float(m.get("x")), float(m.get("y"))) for m in of_class(root, "mark s1")]
    assert np.allclose(marks, ends, atol=0.02)
    # equal ratios are equal lengths, and so are equal steps of y, which grows upwards
    assert ends[1][0] - ends[0][0] == pytest.approx(ends[2][0] - ends[1][0], abs=0.02)
    assert ends[0][1] - ends[1][1] == pytest.approx(ends[1][1] - ends[2][1], abs=0.02)
    assert ends[0][1] > ends[1][1]
    # a tick's line goes through the point of its number
    grid = [points(node)[0][0] for node in of_class(root, "grid")]
    assert min(abs(x - ends[1][0]) for x in grid) < 0.02


def test_nothing_leaves_the_picture(ax):
    svg.text(ax, 100, 5, "words to the right", xytext=(8, 0))
    root = drawn(ax)
    width = float(root.get("viewBox").split()[2])
    (words,) = (node for node in root.iter(f"{SVG}text") if node.text == "words to the right")
    assert float(words.get("x")) < width - 80


def test_looks_are_classes_alone(ax):
    svg.line(ax, [1, 10], [0, 5], "flow", width=7.5)
    svg.bars(ax, [1], [0], 2, [3], "bar")
    svg.band(ax, y=(2, 3))
    root = drawn(ax)
    leaves = [
        node for node in root.iter() if node.tag.removeprefix(SVG) in ("path", "use", "text") and not node.get("id")
    ]
    assert leaves and all(node.get("class") for node in leaves)
    allowed = {"class", "d", "x", "y", "transform", "text-anchor", "stroke-width", "fill", "href"}
    assert {key for node in leaves for key in node.attrib} <= allowed
    assert {node.get("fill") for node in leaves} <= {None, "none"}
    assert [node.get("stroke-width") for node in leaves if node.get("stroke-width")] == ["7.5"]


def test_an_artist_without_classes_is_a_mistake_of_ours(ax):
    ax.plot([1, 10], [0, 5])
    with pytest.raises(AssertionError, match="without classes"):
        svg.drawing("plot", "", "", ax)


def test_later_is_above_and_bands_are_under_the_grid(ax):
    svg.marks(ax, "square", [10], [5], 4, "mark s1")
    svg.band(ax, x=(5, 20))
    svg.line(ax, [1, 10], [0, 5], "line s1")
    order = [node.get("class") for node in drawn(ax).iter() if node.get("class")]
    assert order.index("band") < order.index("grid") < order.index("mark s1") < order.index("line s1")


@pytest.mark.parametrize(
    "words",
    ["$x_1$ & <b>", "a\x00b\x1b[31m", "two\nlines", "\ud800", "汉字 🙂", "a\uffff\ufffe", "हिन्दी", "\\frac{1}{2}$"],
)
def test_any_words_are_words(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with svg.settings():
            ax = svg.axes(svg.Span(low=1, high=100), svg.Span(low=0, high=10))
            svg.text(ax, 10, 5, words, "t halo")
            svg.names(ax.yaxis, [words], at=[5])
            root = drawn(ax)
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert texts.count(svg._words(words)) == 2


def test_ids_are_of_one_plot(ax):
    svg.marks(ax, "circle", [10], [5], 4, "mark s1")
    root = drawn(ax)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) and all(id_.startswith("plot-") for id_ in ids)
    assert {use.get("href")[1:] for use in root.iter(f"{SVG}use")} <= set(ids)


def test_names_in_wide_scripts_have_room():
    def left(words: str) -> float:
        with svg.settings():
            own = svg.axes(svg.Span(low=0, high=1), None)
            svg.names(own.yaxis, [words])
            root = drawn(own)
        (shown,) = (node for node in root.iter(f"{SVG}text") if node.text == words)
        assert shown.get("text-anchor") == "end"
        return float(shown.get("x"))

    assert left("汉" * 17) > 17 * svg.FONT_SIZE and left("a" * 17) < left("汉" * 17)


@pytest.mark.parametrize("name", ["a very long name of a stage " * 5, "汉" * 60])
def test_long_names_leave_room_for_the_plot(name):
    text = json.dumps(make_facts()).replace("distilled", name)
    document = report.document_of(json.loads(text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = html.render(document)
    forest = re.search(r'aria-labelledby="forest-title.*?</svg>', page, re.S).group(0)
    ((left, right),) = re.findall(r'class="axis" d="M ([\d.]+) \S+ L ([\d.]+) ', forest)
    assert float(right) - float(left) > 150
    # and those of one file are told apart by their ends; each is there twice, for the two baselines
    rows = re.findall(r'<text class="t"[^>]*>([^<]*…[^<]*)</text>', forest)
    assert len(set(rows)) == 2 and any(row.endswith("torch_eager") for row in rows)


def test_words_are_cut_to_columns_and_keep_their_end():
    assert svg.shortened("short", 5) == "short" and svg.shortened("longer", 5) == "long…"
    assert svg.shortened("a long name · ort_cpu", 14, end=10) == "a l… · ort_cpu"
    assert svg.shortened("汉汉汉汉", 5) == "汉汉…" and svg.shortened("汉", 2) == "汉"


def test_plots_are_made_within_our_settings():
    for make in (lambda: svg.axes(None, None), lambda: svg.canvas(10, 10)):
        with pytest.raises(AssertionError, match="settings"):
            make()


def test_the_users_settings_of_matplotlib_do_not_matter(tmp_path, monkeypatch):
    document = report.document_of(make_facts())
    before = html.render(document)
    hostile = {
        "text.usetex": True,
        "lines.marker": "o",
        "xtick.minor.visible": True,
        "font.size": 30,
        "axes.grid": True,
    }
    svg.sample.cache_clear()
    with matplotlib.rc_context(hostile):
        assert html.render(document) == before


def test_turned_names_end_at_the_axis():
    with svg.settings():
        ax = svg.axes(None, svg.Span(low=0, high=1))
        svg.names(ax.xaxis, ["a", "much longer"], rotation=90, rotation_mode="anchor", ha="right", va="center")
        texts = [node for node in drawn(ax).iter(f"{SVG}text") if node.text in ("a", "much longer")]
    assert {node.get("text-anchor") for node in texts} == {"end"} and len({node.get("y") for node in texts}) == 1


def test_markers_have_about_one_area():
    areas = []
    for shape in ("square", "diamond", "triangle"):
        (mark,) = of_class(ElementTree.fromstring(svg.sample("", shape, 5.0, "mark s0")), "mark s0")
        corners = points(mark)
        areas.append(
            abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True))) / 2
        )
    assert areas == pytest.approx([25 * 3.1416] * 3, rel=0.2)


def test_labels_of_near_points_do_not_cover_each_other():
    facts = make_facts()
    document = report.document_of(facts)
    for point in document["derived"]["pareto"]:
        point["latency_ns"] |= {"value": 1e6, "low": 1e6, "high": 1e6}
        point["top1_fraction"] |= {"value": 0.9, "low": 0.9, "high": 0.9}
    root = ElementTree.fromstring(plots_comparison.accuracy_latency(document, labels_of(document)))
    labels = [node for node in root.iter("text") if "label" in node.get("class")]
    assert len(labels) > 3
    spots = [(float(node.get("x")), float(node.get("y"))) for node in labels]
    pairs = [(a, b) for i, a in enumerate(spots) for b in spots[:i]]
    assert all(abs(a[1] - b[1]) > 10 or abs(a[0] - b[0]) > 30 for a, b in pairs)


def test_equal_documents_are_equal_pictures():
    document = report.document_of(make_facts())
    first = html.render(document)
    svg.sample.cache_clear()
    assert html.render(document) == first
