"""The report's page in a real browser: with script and without, narrow and wide, light and dark, on paper, by keyboard;
it asks nothing of any network, and hostile text in it stays text.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from test_classes import balanced
from test_confidence import with_confidence
from test_ladder import with_ladder
from test_report import make_facts
from test_report_tree import with_tree

from compress import corruptions, facts, report
from compress.report import html
from compress.runtimes import ort_web
from compress.types import Scenario

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from report_page import crowded  # noqa: E402

PROGRAM = next(filter(None, map(shutil.which, ort_web.PROGRAMS)), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on the PATH")

WIDTHS = (360, 768, 1280)
# 40 ways to break out of text, an attribute, a script or a style sheet, or to be taken for markup
PAYLOADS = (
    "<script>hit()</script>", "</script><script>hit()</script>", "<img src=x onerror=hit()>", "<svg onload=hit()>",
    '"><img src=x onerror=hit()>', "'><img src=x onerror=hit()>", '" onmouseover="hit()',
    "' onfocus='hit()' autofocus='",
    "</style><script>hit()</script>", "</title><script>hit()</script>", "</textarea><script>hit()</script>",
    "]]><script>hit()</script>", "--><script>hit()</script>", "<!--<script>hit()</script>", "<iframe src=//a.test>",
    "<iframe srcdoc='<script>parent.hit()</script>'>", "<object data=//a.test>", "<embed src=//a.test>",
    "<link rel=stylesheet href=//a.test>", "<base href=//a.test>", "<meta http-equiv=refresh content='0;//a.test'>",
    "<form action=//a.test><input autofocus onfocus=hit()>", "<details open ontoggle=hit()>", "<video src=//a.test>",
    "<audio src=x onerror=hit()>", "<body onload=hit()>", "<style>@import '//a.test';</style>",
    "<p style='background:url(//a.test)'>", "<math><mi xlink:href='javascript:hit()'>", "javascript:hit()",
    "<a href=javascript:hit()>x</a>", "{{constructor.constructor('hit()')()}}", "${hit()}", "#{hit()}", "$body $script",
    "\\u003cscript\\u003ehit()\\u003c/script\\u003e", "&lt;script&gt;hit()&lt;/script&gt;",
    "%3Cscript%3Ehit()%3C/script%3E",
    "<scr\x00ipt>hit()</scr\x00ipt>", "\u202e\u2066<img src=x onerror=hit()>\u2028\ud800",
)  # fmt: skip


def _every(items: list[dict[str, Any]], key: str) -> Callable[[str], None]:
    return lambda text: [item.update({key: text}) for item in items] and None


def places(facts: dict[str, Any]) -> dict[str, Callable[[str], None]]:
    """Thirteen kinds of text that come from outside, each with what puts a text there."""
    rungs = [rung for stage in facts["stages"] for rung in stage.get("ladder") or []]
    layers = [row for rung in rungs for row in rung.get("layers", {}).get("layers", [])]
    failed = [m for m in facts["measurements"] if m["failure"]]
    return {
        "run name": _every([facts["run"]], "name"),
        "command": _every([facts["run"]], "command"),
        "note on the data": _every([facts["run"]], "data_note"),
        "data set": _every([facts["dataset"]], "name"),
        "class names": lambda text: facts["dataset"].update(class_names=[text] * 10),
        "images left out": lambda text: facts["dataset"].update(skipped=[text]),
        "processor": _every([facts["environment"]], "cpu_model"),
        "recipe": lambda text: facts.update(recipe=dict.fromkeys(facts["recipe"], text)),
        "warnings": lambda text: facts.update(warnings=[text]),
        "what a stage did": _every(facts["stages"], "what"),
        "file name": _every(facts["artifacts"][-1:], "file"),
        "exception": _every(failed, "failure"),
        "node names": _every(layers, "layer"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield program
        program.close()


class Watched:
    """A page that is open, and all that it did beside showing itself."""

    def __init__(self, browser: Browser, path: Path, address: str = "", **options: Any):
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; };")
        self.open(path, address)

    def open(self, path: Path, address: str = "") -> None:
        """Another file in the same window, which is twice as quick as another window."""
        self.requests.clear(), self.said.clear()
        self.url = path.as_uri()
        self.page.goto(self.url + address)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.close()

    def quiet(self) -> bool:
        """Whether it asked for nothing but itself and said nothing."""
        assert [url.partition("#")[0] for url in self.requests] == [self.url] and self.said == []
        return True


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return report.write(make_facts(), tmp_path_factory.mktemp("report"))["html"]


def everything() -> dict[str, Any]:
    """A report in which no section is missing."""
    found = with_confidence() | {"tree": with_tree(3, 3)["tree"], "stages": with_ladder()["stages"]}
    found["run"] |= {"fps": 30.0, "deadline_ns": 3e7}
    late = facts._paced(np.linspace(5e6, 4e7, 200), Scenario(fps=30.0, deadline_ns=3e7))
    timed = [measurement for measurement in found["measurements"] if measurement["visits"]]
    for measurement in timed:
        windows = [
            {"end_s": 60.0 * (i + 1), "n": 100, "median_ns": 1e6 * (1 + i / 5), "p90_ns": 2e6, "celsius": 50.0 + i,
             "megahertz": 2400.0}
            for i in range(6)
        ]  # fmt: skip
        measurement["sustained"] = {"windows": windows, "failure": ""}
        for visit in measurement["visits"]:
            visit |= {"paced": late, "peak_gmacs_per_second": 80.0, "peak_bytes_per_second": 9e9}
    kinds = [{"kind": kind, "correct": [9000, 8000 - 300 * i, 6000]} for i, kind in enumerate(corruptions.KINDS)]
    found["corruptions"] = [
        {"stage": stage, "n": 10_000, "kinds": kinds, "lost_points": 17.0, "extra_points": extra, "low": extra - 1,
         "high": extra + 1}
        for stage, extra in (("teacher", 0.0), ("distilled", 2.5), ("int8", 3.0))
    ]  # fmt: skip
    for row in found["accuracy"]:
        if not row["failure"]:
            row["classes"] = balanced([40] * 9 + [90], [35] * 10, n=1000)
    gate = {
        "images": 1000, "agreement_fraction": 0.999, "difference_of_spread": 2e-4, "tolerance": 1e-3, "labelled": 1000,
        "expected_only": 1, "this_only": 0, "reference": "the ONNX file", "why": "",
    }  # fmt: skip
    made = {
        "runtime": "ncnn", "format": "ncnn", "precision": "float32", "digest": "0" * 64, "size_bytes": 10**6,
        "files": ["ncnn/model.param"], "seconds": 3.0, "tools": {"pnnx": "1"}, "notes": ["3 parts"], "locks": {},
        "gate": gate, "failure": "",
    }  # fmt: skip
    found["converted"] = [{**made, "stage": "distilled"}, {**made, "stage": "int8", "failure": "it answers otherwise"}]
    saturating = {"stage": "int8", "where": "x86 without VNNI", "how": "emulated", "words": "sums are clipped"}
    found["elsewhere"] = [{**saturating, "n": 10_000, "correct": 8700, "parent_only": 60, "this_only": 40}]
    return found


SECTIONS = (
    "On corrupted images", "Class by class", "Files for other runtimes", "int8 on other CPUs", "How int8 was repaired",
    "Arithmetic under the CPU", "How sure, and how often right", "The soft decision tree", "At 30 frames per second",
    "Without a pause",
)  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_every_section_fits_and_leaves_nobody_out(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    path = report.write(everything(), tmp_path)["html"]
    with Watched(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme) as it:
        titles = " ".join(it.page.locator("h2, h3").all_inner_texts())
        assert [name for name in SECTIONS if name not in titles] == []
        assert it.page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(it.page).response["violations"]
        assert not found, [(v["id"], [n["target"] for n in v["nodes"]][:3]) for v in found]
        assert it.quiet()


def column(page: Page, table: str, number: int) -> list[str]:
    rows = page.locator(f"table[aria-label='{table}'] tbody tr:not([hidden])")
    return rows.evaluate_all(f"rows => rows.map(r => r.cells[{number}] ? r.cells[{number}].innerText : null)")


# colours do not depend on the script
LOOKS = (("light", True), ("dark", True), ("light", False))


@pytest.mark.parametrize(("scheme", "script"), LOOKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_nobody_is_left_out(browser: Browser, path: Path, width: int, scheme: str, script: bool) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "java_script_enabled": script}
    with Watched(browser, path, **options) as it:
        page = it.page
        assert page.locator("h1").inner_text() == "cifar10-resnet56-mobilenet"
        assert page.locator("svg[role=img]").count() == 6 and page.locator("table").count() == 6
        assert page.locator(".sort, .filter, .copy").count() > 0 if script else page.locator("button").count() == 0
        if script:
            # what is wider scrolls inside a region of its own
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page).response["violations"]
            assert not found, [(v["id"], [n["target"] for n in v["nodes"]][:3]) for v in found]
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
                "light": "rgb(245, 246, 248)", "dark": "rgb(14, 19, 25)",
            }[scheme]  # fmt: skip
        assert it.quiet()


def test_rows_are_sorted_by_keyboard(browser: Browser, path: Path) -> None:
    with Watched(browser, path) as it:
        page, name = it.page, "Results of each cell"
        before = column(page, name, 0)
        head = page.locator(f"table[aria-label='{name}'] th").filter(has_text="latency, median")
        head.locator("button").focus()
        latencies = []
        for expected in ("ascending", "descending", None):
            page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == expected
            shown = column(page, name, 3)
            latencies.append([float(t.split()[0]) for t in shown if t])
            # what was not measured comes last either way
            assert expected is None or set(shown[len(latencies[-1]) :]) == {None}
        assert latencies[0] == sorted(latencies[2]) and latencies[1] == sorted(latencies[2], reverse=True)
        assert latencies[0] != latencies[2] and column(page, name, 0) == before
        # by words; and one column at a time is sorted
        page.keyboard.press("Enter")
        page.locator(f"table[aria-label='{name}'] th button").first.press("Space")
        stages = [text.split()[0] for text in column(page, name, 0)]
        assert head.get_attribute("aria-sort") is None
        assert stages == sorted(stages) != [text.split()[0] for text in before]
        assert page.locator("table[aria-label='Stages of the chain'] button").count() == 0, "a chain has an order"
        assert it.quiet()


def test_rows_are_filtered_and_the_address_keeps_it(browser: Browser, path: Path) -> None:
    name = "Results of each cell"
    with Watched(browser, path) as it:
        box = it.page.locator("input[type=search]").first
        every = column(it.page, name, 0)
        for asked, kept in (
            ("INT8", lambda text: "int8" in text),
            ("ort_cpu !twin", lambda text: "ort_cpu" in text and "twin" not in text),
            ("!", lambda text: True),
            ("nothing has this", lambda text: False),
        ):
            box.fill(asked)
            shown = column(it.page, name, 0)
            assert shown == [text for text in every if kept(text)]
            assert it.page.locator(".filter output").first.inner_text() == f"{len(shown)} of {len(every)}"
        box.fill("int8 ort")
        address = it.page.evaluate("location.hash")
        assert it.quiet()
    with Watched(browser, path, address) as it:
        assert it.page.locator("input[type=search]").first.input_value() == "int8 ort"
        assert 0 < len(column(it.page, name, 0)) < len(every)
    for address, shown in (("#other=%E0%A4%A", every), ("#rows=%E0%A4%A&rows=x", [])):
        with Watched(browser, path, address) as it:
            assert column(it.page, name, 0) == shown and it.quiet()


def test_commands_are_copied(browser: Browser, path: Path) -> None:
    with Watched(browser, path, permissions=["clipboard-read", "clipboard-write"]) as it:
        it.page.locator(".copy").first.click()
        it.page.locator(".copy").filter(has_text="copied").wait_for()
        assert it.page.evaluate("navigator.clipboard.readText()") == it.page.locator("pre").first.inner_text()


def test_on_paper_nothing_is_cut_off(browser: Browser, path: Path) -> None:
    with Watched(browser, path, viewport={"width": 1040, "height": 1400}) as it:
        it.page.emulate_media(media="print")
        wider = it.page.evaluate(
            "[...document.querySelectorAll('.wide, .chart, pre')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => e.getAttribute('aria-label') || e.tagName)"
        )
        assert wider == []
        assert it.page.locator(".filter").first.is_hidden() and it.page.locator(".copy").first.is_hidden()
        assert it.page.pdf(format="A4", print_background=True)[:5] == b"%PDF-"


def test_places_and_payloads_are_as_many_as_they_claim() -> None:
    assert len(set(PAYLOADS)) == 40 and len(places(with_ladder())) == 13


@pytest.fixture(scope="module")
def window(browser: Browser, path: Path) -> Iterator[Watched]:
    with Watched(browser, path) as it:
        yield it


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_runs_nowhere(window: Watched, tmp_path: Path, payload: str) -> None:
    """All places at once, told apart by a number before the text."""
    facts = with_ladder()
    for number, put in enumerate(places(facts).values()):
        put(f"place {number}: {payload}")
    path = tmp_path / "report.html"
    path.write_text(html.render(report.document_of(facts)), encoding="utf-8")
    window.open(path)
    text, names, scripts, hits = window.page.evaluate(
        """payload => {
            const box = document.querySelector("input[type=search]");
            box.value = payload;
            box.dispatchEvent(new Event("input"));
            document.querySelectorAll(".sort, .copy").forEach(button => button.click());
            document.querySelectorAll("[title], pre, td, th").forEach(e => e.dispatchEvent(new Event("mouseover")));
            const every = [...document.querySelectorAll("*")];
            return [document.documentElement.textContent, [...new Set(every.map(e => e.localName))],
                    document.scripts.length, window.hits];
        }""",
        payload,
    )
    assert [n for n in range(13) if f"place {n}: " not in text] == []
    assert hits == 0 and scripts == 1 and window.quiet()
    named = {"iframe", "object", "embed", "link", "base", "form", "video", "audio", "img", "a", "math", "details"}
    assert not named & set(names)


@pytest.mark.slow
def test_two_hundred_cells_of_a_thousand_classes_are_shown_and_sorted_at_once(browser: Browser, tmp_path: Path) -> None:
    """The bar of one second is that of benchmarks/report_page.py; here three, for the neighbours of this machine."""
    file = report.write(crowded(200, 1000), tmp_path)["html"]
    started = time.monotonic()
    with Watched(browser, file) as it:
        assert len(column(it.page, "Results of each cell", 0)) >= 200
        it.page.locator("table[aria-label='Results of each cell'] th button").nth(3).click()
        assert time.monotonic() - started < 3 and it.quiet()


def test_fifty_cells_fit_in_a_megabyte(tmp_path: Path) -> None:
    assert report.write(crowded(50, 100), tmp_path)["html"].stat().st_size < 1_000_000
