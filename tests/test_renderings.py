"""The page and the Markdown report say the same of one document, and all of it.

Every number of the Markdown report stands in the page in the same words, in the row of the same file; and every derived
number is in one of the two, but for a few that are only in the JSON.
"""

import contextlib
import html as stdlib_html
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from test_page import everything

from compress import report
from compress.report import (
    html,
    markdown,
    plots_comparison,
    plots_confidence,
    plots_corruptions,
    plots_ladder,
    plots_latency,
    plots_pruning,
    plots_roofline,
    plots_stages,
    plots_tree,
)
from compress.report.estimates import measured
from compress.report.labels import labels_of

# A number with its unit and its interval, where it is no part of a name: 1,234 or -0.6 points (-1.9 to +0.7).
NUMBER = re.compile(
    r"(?<![\w.,+/-])[-+]?\d+(?:,\d{3})*(?:\.\d+)*(?:e[-+]\d+)?"
    r"(?:x|(?: min \d\d s| h \d\d min| ?(?:%|points?|°C|µs|ms|s|[GMk]?B|[mµ]?J|img/s|GMAC/s|[GMk])))?(?!\w)"
    r"(?: \([-+]?[\d.,]+(?:-| to )[-+]?[\d.,]+\))?"
)
DRAWINGS = (
    (plots_comparison, "accuracy_latency"), (plots_comparison, "speedups"), (plots_latency, "distributions"),
    (plots_latency, "rounds"), (plots_latency, "sustained"), (plots_stages, "waterfall"), (plots_stages, "losses"),
    (plots_pruning, "sensitivity"), (plots_ladder, "sensitivity"), (plots_confidence, "reliability"),
    (plots_corruptions, "corruptions"), (plots_roofline, "roofline"), (plots_tree, "tree"), (plots_tree, "paths"),
)  # fmt: skip
PICTURED = plots_comparison.accuracy_latency, plots_roofline.roofline

# Where the page has what a section of the Markdown report says; the others have the same name there. "" is the verdict.
PLACES = {
    "Comparisons": ("", "Results", "Latency in detail", "Accuracy in detail"),
    "Stages": ("What each stage cost and gained",),
    "The layers on which most hangs": ("How much hangs on each layer, and how much of it went",),
    "Reproduce": ("Environment and data", "Reproduce"),
}
# Of these the page has a drawing, with the words as its description.
DRAWN = {
    "The layers on which most hangs": "one line a layer would be a second plot in words",
    "How int8 was repaired": "the layers' parts of the error are bars",
    "Paths of some images through the tree": "filters and turns are pictures",
}
# The columns of the narrow table, and where the wide one has them.
COLUMNS = {"top-1 % (95 %)": 1, "median": 3, "speed-up (95 %)": 4, "file": -1}
# Of 80 columns none is to spare: one column has its unit in the head, another leaves the interval to a section below.
UNIT_IN_HEAD, NO_INTERVAL = "top-1 % (95 %)", "median"

# What the page and the Markdown report leave to the JSON, and why.
ONLY_IN_JSON = {
    "cells.import_ns": "of a library, not of a file",
    "cells.macs_per_byte": "only the roofline has it, which draws no A/A twin",
    "cells.peak_bytes_per_second": "the roof is at the median of all cells",
    "cells.peak_gmacs_per_second": "the roof is at the median of all cells",
    "choice.latency": "`latency_ns`, as the choice recorded it",
}


class Page(HTMLParser):
    """`texts` (section, words) of every block, `heads` and `rows` (section, words of each cell) of every table, and all
    that is `drawn`. A section is named by its heading.
    """

    BLOCKS = frozenset("td th p li dd dt h1 h2 h3 pre figcaption div header footer".split())

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.texts: list[tuple[str, str]] = []
        self.heads: list[tuple[str, list[str]]] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.drawn = ""
        self._section, self._words, self._aside, self._head = "", "", "", False
        self._row: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if self._aside:
            return
        if tag in ("svg", "script", "style", "head"):
            self._aside = tag
        elif tag == "tr":
            self._row = []
        elif tag in ("thead", "tbody"):
            self._head = tag == "thead"
        elif tag == "small":
            self._words += " "
        elif tag in self.BLOCKS:
            self._end()

    def handle_endtag(self, tag):
        if tag == self._aside:
            self._aside = ""
        elif self._aside:
            return
        elif tag == "small":
            self._words += " "
        elif tag == "h2":
            self._section = " ".join(self._words.split())
            self._end()
        elif tag in ("td", "th"):
            self._row.append(" ".join(self._words.split()))
            self._end()
        elif tag == "tr":
            self._take(self._row)
        elif tag in self.BLOCKS:
            self._end()

    def handle_data(self, data):
        if self._aside == "svg":
            self.drawn += data + "\n"
        elif not self._aside:
            self._words += data

    def _end(self):
        if words := " ".join(self._words.split()):
            self.texts.append((self._section, words))
        self._words = ""

    def _take(self, row):
        if not row[0]:  # one name for several rows
            row = [self.rows[-1][1][0], *row[1:]]
        (self.heads if self._head else self.rows).append((self._section, row))


def plain(line: str) -> str:
    """A line of Markdown as it is read."""
    return re.sub(r"\\([\\`*\[\]|#~_])", r"\1", stdlib_html.unescape(line))


def lines_of(text: str) -> Iterator[tuple[str, str]]:
    """(section, line) of the Markdown report, without headings and code."""
    section = ""
    for line in re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.S).splitlines():
        if line.startswith("## "):
            section = plain(line[3:])
        elif line and not line.startswith("# "):
            yield section, line


def whole() -> dict[str, Any]:
    """Facts of a report in which no section is missing, and no number of a section."""
    facts = everything()
    facts["warnings"].append("the run was stopped 3 times")
    facts["dataset"]["skipped"] = ["cat/17.png"]
    facts["recipe"] |= {"max_size": "900kB", "max_latency": "2ms"}
    timed = [m for m in facts["measurements"] if m["visits"]]
    for number, measurement in enumerate(timed):
        measurement["memory"] |= {"gpu_bytes": 300_000_000 + number}
        energy = {"joules": 500.0, "seconds": 100.0, "idle_watts": [2.0, 2.1], "reason": ""}
        measurement["sustained"] |= {"energy": energy}
        for visit in measurement["visits"]:
            # many enough for p99.9, and for numbers of four digits
            late = {"n": 4000, "late": 2100, "longest_late_run": 1500}
            visit |= {"n": 1200, "transfer_ns": 230_000 + number, "harness_ns": 480.0, "cold": visit["round"] % 2 == 1,
                      "outliers": {"mild": 30, "severe": 10}, "paced": visit["paced"] | late,
                      "tail_ns": [visit["quantiles_ns"][-1] * (1 + i / 100) for i in range(21)],
                      "effective": {"intra_op_threads": 1, "arena": True}}  # fmt: skip
    twice = json.loads(json.dumps(timed[3]))
    facts["measurements"].append(twice | {"cell": f"{twice['cell']}/batch 8", "batch": 8})
    timed[4]["visits"][0]["steal_fraction"] = 0.03
    for row in facts["accuracy"]:
        if not row["failure"]:
            row["divergence_nats"] = {"mean": 0.0214, "p95": 0.11}
    facts["against_parents"] = [
        {"stage": "int8", "parent": "distilled", "n": 10_000, "parent_only": 30, "this_only": 12}
    ]
    facts["converted"].append({**facts["converted"][1], "runtime": "ort_cpu", "precision": "int8", "failure": ""})
    facts["elsewhere"].append(
        {"stage": "int8", "where": "ARM", "how": "assumed", "words": "it adds exactly", "n": 0, "correct": 0,
         "parent_only": 0, "this_only": 0}
    )  # fmt: skip
    pruned = next(stage for stage in facts["stages"] if stage["name"] == "pruned")
    families = [{"layers": [f"body.c{i}"], "channels": 64, "kept": 64 - 8 * i} for i in range(4)]
    seen = [{"layer": f"c{i}", "correct": [4500, 4400 - 100 * i, 2000]} for i in range(4)]
    sensitivity = {"images": 5000, "correct": 4645, "shares": [0.25, 0.5, 0.75], "families": seen}
    pruned["pruning"] = [{"ratio": 0.3, "families": families, "stays": {"body.y": "why"}, "sensitivity": sensitivity}]
    facts["choice"] = choice()
    return facts


def choice() -> dict[str, Any]:
    taken = {
        "label": "mobilenet:width=0.5", "spec": "mobilenet:width=0.5", "parameters": 700_000, "macs": 6_500_000,
        "size_bytes": 2_790_000, "exported": True, "latency": measured(2.5e6, 2.4e6, 2.6e6), "correct": 4500,
        "out": "", "reason": "",
    }  # fmt: skip
    large = {"label": "resnet56", "exported": False, "latency": None, "correct": None, "out": "too large"}
    none = {"label": "none", "macs": 0, "parameters": 0, "latency": None, "correct": None, "out": "cannot"}
    return {
        "sentence": "mobilenet:width=0.5 is the best of 3 that fit", "chosen": taken["label"], "runtime": "ort_cpu",
        "threads": 1, "precision": "int8", "max_latency_ns": 2e6, "max_size_bytes": 900_000, "screen_epochs": 1,
        "select": 5000, "control": {**measured(1.01, 0.97, 1.05), "verdict": "inconclusive", "of": "mobilenet"},
        "candidates": [taken, {**taken, **large, "reason": "its file has 3.48 MB"}, {**taken, **none, "reason": "no"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """As it is read back: no two of its numbers are one object."""
    return json.loads(report.to_json(report.document_of(whole())))


@pytest.fixture(scope="module")
def page(document) -> Page:
    return Page(html.render(document))


@pytest.fixture(scope="module")
def text(document) -> str:
    return markdown.render(document)


def test_wordings_of_numbers_are_found_whole():
    said = (
        "int8 on top-1: 93.1 % (92.6-93.6), -0.3 points (-0.9 to +0.2); 1,234 of v1.31.0 in 4 min 05 s; a5 2.0e-04 4.1x"
    )
    assert NUMBER.findall(said) == [
        "93.1 % (92.6-93.6)", "-0.3 points (-0.9 to +0.2)", "1,234", "4 min 05 s", "2.0e-04", "4.1x",
    ]  # fmt: skip


def test_the_summary_tables_are_rows_of_the_page(page, text):
    wide = [row for section, row in page.rows if section == "Results"]
    place, compared = "", 0
    for section, line in lines_of(text):
        if line.startswith("**") and section == "Results":
            place = plain(line.strip("*"))
        if not line.startswith("|") or set(line) <= set("|- "):
            continue
        stage, *values = (plain(value.strip()) for value in re.split(r"(?<!\\)\|", line)[1:-1])
        if stage == "stage":
            heads = values
            assert set(heads) == set(COLUMNS)
            continue
        runtime, _, sizes = place.partition(", ")
        sizes += "" if "batch" in sizes else ", batch 1"
        (row,) = [row for row in wide if re.fullmatch(rf"{stage} {runtime}( [\d.]+)?, {sizes}( invalid)?", row[0])]
        for head, value in zip(heads, values, strict=True):
            shown = row[COLUMNS[head]].partition(" (")[0] if head == NO_INTERVAL else row[COLUMNS[head]]
            wanted = value.replace(" (", " % (", 1) if head == UNIT_IN_HEAD else value
            assert NUMBER.findall(shown) == NUMBER.findall(wanted), (stage, place, head, shown, value)
            compared += len(NUMBER.findall(wanted))
    assert compared >= 25


def test_every_number_of_the_markdown_report_is_in_the_page_in_the_same_words(page, text):
    compared, drawn, missing = 0, set(), []
    for section, line in lines_of(text):
        if line.startswith("|") or (line.startswith("**") and section == "Results"):
            continue  # the summary tables
        said = plain(line).removeprefix("- ")
        places = PLACES.get(section, (section,))
        # of a file's line the numbers stand in the rows of that file
        subject = re.match(r"(?:\*\*)?(.+?)(?:\*\*|,? on | \(|: |$)", said)[1]
        rows = [row for at, row in page.rows if at in places and re.match(rf"{re.escape(subject)}(?: |$)", row[0])]
        words = [cell for row in rows for cell in row] or [words for at, words in page.texts if at in places]
        words += [cell for at, row in page.heads for cell in row if at in places]
        known = {number for cell in words for number in NUMBER.findall(cell)}
        lacking = [number for number in NUMBER.findall(said) if number not in known]
        compared += len(NUMBER.findall(said))
        if lacking and section in DRAWN:
            drawn.add(section)
            pictured = {number for number in NUMBER.findall(page.drawn)}
            lacking = [number for number in lacking if number not in pictured]
        missing += [(section, said, number) for number in lacking]
    assert not missing, missing[:5]
    assert drawn == set(DRAWN) and compared > 300


def estimates(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its name, without the places in lists; the number) of every derived number that has a value."""
    if isinstance(node, dict):
        if {"value", "low", "high", "reason"} <= node.keys() and node["value"] is not None:
            yield ".".join(path), node
        for key, inner in node.items():
            yield from estimates(inner, (*path, key))
    elif isinstance(node, list):
        for inner in node:
            yield from estimates(inner, path)


# a value outside of its own interval may lie outside of a plot
@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_every_derived_number_shows(document, text):
    """One after the other is changed. The words are looked at first, then the two plots that have numbers of their own:
    the others take long, and show what tables have.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name in DRAWINGS:
            patch.setattr(module, name, lambda *given: None)
        words, quiet, count = html.render(document), [], 0
        for name, estimate in estimates(document["derived"]):
            count += 1
            with changed(estimate):
                if markdown.render(document) == text and html.render(document) == words:
                    quiet.append((name, estimate))
    labels, hidden = labels_of(document), set()
    before = {draw: draw(document, labels) for draw in PICTURED}
    for name, estimate in quiet:
        with changed(estimate):
            hidden |= {name} if all(draw(document, labels) == drawn for draw, drawn in before.items()) else set()
    assert count > 400 and hidden == set(ONLY_IN_JSON)


@contextlib.contextmanager
def changed(estimate: dict[str, Any]) -> Iterator[None]:
    kept = estimate["value"]
    estimate["value"] = 1.1 * kept + math.copysign(0.013, kept)
    yield
    estimate["value"] = kept
