"""The page: one self-contained file, whole without script, made from the report's document alone."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from compress.report import format as fmt
from compress.report import (
    keys,
    plots_comparison,
    plots_confidence,
    plots_corruptions,
    plots_ladder,
    plots_latency,
    plots_pruning,
    plots_roofline,
    plots_stages,
    plots_tree,
    rows_pruning,
    tables,
    tables_converted,
    tables_corruptions,
    tables_latency,
    words,
)
from compress.report.labels import Labels, drawn, labels_of, timed
from compress.report.markup import Markup, clean, element, escape, join
from compress.report.rows_classes import CLASSES_FILE, SHOWN
from compress.report.runner import runner_sentences
from compress.report.table import pairs

_FOLDER = Path(__file__).parent
_ICONS = {
    "pass": "M4 12.5l5.2 5.3L20 7",
    "fail": "M6 6l12 12M18 6L6 18",
    "invalid": "M6 6l12 12M18 6L6 18",
    "inconclusive": "M8.5 9a3.6 3.6 0 1 1 5.2 3.2c-1.2.6-1.7 1.3-1.7 2.6M12 18.6v.2",
}
_WORDS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "invalid": "Invalid: machine too noisy"}


def _icon(status: str) -> Markup:
    stroke = element("path", d=_ICONS[status], class_="icon")
    return element("svg", stroke, viewBox="0 0 24 24", class_=status, aria_hidden="true")


def _header(document: dict[str, Any]) -> Markup:
    run, dataset = document["run"], document["dataset"]
    channels, height, width = dataset["input_shape"]
    facts = f"{dataset['name']} at {width} x {height} px, {len(dataset['class_names'])} classes"
    when = f"{run['started']}, took {fmt.duration(run['seconds'])}"
    title = element("div", element("h1", run["name"]), element("div", facts, class_="meta"))
    return element("header", title, element("div", when, class_="meta"), class_="top")


def _verdict(document: dict[str, Any]) -> Markup:
    verdict, tier = document["derived"]["verdict"], document["derived"]["short_tier"]
    stamp = element("span", f"{tier} tier", class_="stamp") if tier else None
    gates = [
        element(
            "li",
            _icon(g["status"]),
            element("div", element("b", g["name"]), ": ", g["value"], " ", element("span", f"({g['limit']})")),
        )
        for g in verdict["gates"]
    ]
    return element(
        "div",
        element("div", _icon(verdict["status"]), element("span", _WORDS[verdict["status"]]), stamp, class_="word"),
        element("p", verdict["sentence"], class_="sentence"),
        element("ul", *gates, class_="gates"),
        class_=f"verdict {verdict['status']}",
        role="region",
        aria_label="Verdict",
    )


def _tile(value: str, caption: str, *, missing: bool = False) -> Markup:
    number = element("b", value, class_="none" if missing else None)
    return element("div", number, element("span", caption), class_="tile")


def _tiles(document: dict[str, Any]) -> Markup | None:
    """The four numbers that a reader looks for first, of the cell that the verdict speaks of."""
    derived = document["derived"]
    cell = next((c for c in derived["cells"] if c["cell"] == derived["primary_cell"]), None)
    if cell is None:
        return None
    size = derived["size_ratio"]
    judged = next(
        (r for r in derived["accuracy"] if (r["stage"], r["runtime"]) == (cell["stage"], cell["runtime"])), None
    )
    shown = [
        (cell["speedup_same_runtime"], fmt.ratio, f"as fast as the teacher in {cell['runtime']}"),
        (cell["latency_ns"], fmt.latency, f"median latency, {fmt.threads(cell['threads'])}"),
        (size, fmt.ratio, "smaller file than the teacher's"),
    ]
    if judged:
        shown.append((judged["top1_fraction"], fmt.percent, f"top-1 on {fmt.count(judged['n'])} images"))
    tiles = [_tile(fmt.shown(e, one), caption, missing=e["value"] is None) for e, one, caption in shown]
    return element("div", *tiles, class_="tiles")


def _warnings(document: dict[str, Any]) -> Markup | None:
    skipped = [f"left out of the data: {name}" for name in document["dataset"]["skipped"]]
    texts = [*document["warnings"], *runner_sentences(document), *document["derived"]["warnings"], *skipped]
    if not texts:
        return None
    items = element("ul", *(element("li", text) for text in texts))
    return element("div", element("h2", "Warnings"), items, class_="warnings", role="region", aria_label="Warnings")


def _section(title: str, *children: Any) -> Markup:
    return element("section", element("h2", title), *children)


def _note(sentence: str) -> Markup:
    return element("p", sentence, class_="note")


def _chart(title: str, drawing: Markup, class_: str = "chart") -> Markup:
    """A plot that scrolls sideways on a narrow screen, by keyboard too."""
    return element("div", drawing, class_=class_, tabindex="0", role="group", aria_label=title)


def _figure(
    title: str, caption: str, drawing: Markup | None, key: Markup | None = None, *, alone: bool = False
) -> Markup:  # fmt: skip
    """`alone`: it has the page's width to itself, and is drawn no larger for that."""
    chart = "chart alone" if alone else "chart"
    body = _chart(title, drawing, chart) if drawing else element("p", fmt.absent("no data"), class_="note")
    parts = (element("h2", title), element("figcaption", caption), body, key if drawing else None)
    return element("figure", *parts, class_="alone" if alone else None)


def _drawn_words(document: dict[str, Any]) -> str:
    shown, every = len(drawn(document)), len(timed(document))
    return "" if shown == every else f" {words.DRAWN.format(shown=shown, every=every)}"


def _trade(document: dict[str, Any], labels: Labels) -> Markup:
    return _figure(
        "Accuracy against latency",
        words.PARETO + _drawn_words(document),
        plots_comparison.accuracy_latency(document, labels),
        keys.runtime_key(document, labels),
        alone=True,
    )


def _plots(document: dict[str, Any], labels: Labels) -> Markup:
    some = _drawn_words(document)
    return element(
        "div",
        _figure("Speed-up", words.FOREST + some, plots_comparison.speedups(document, labels)),
        _figure(
            "How latency is distributed",
            words.ECDF + some,
            plots_latency.distributions(document, labels),
            keys.cell_key(drawn(document), labels),
        ),
        _figure(
            "Round by round",
            words.ROUNDS + some,
            plots_latency.rounds(document, labels),
            keys.cell_key(drawn(document, controls=True), labels),
            alone=True,
        ),
        class_="plots",
    )


def _stages(document: dict[str, Any], labels: Labels) -> Markup | None:
    if not document["stages"]:  # files of the user's own, or a bench
        return None
    figures = element(
        "div",
        _figure("Top-1 from stage to stage", words.WATERFALL,
                plots_stages.waterfall(document, labels)),
        _figure("Training loss", words.LOSSES, plots_stages.losses(document, labels),
                keys.curve_key(document, labels)),
        class_="two",
    )  # fmt: skip
    layers = plots_pruning.sensitivity(document)
    pruning = layers and _figure(
        "How much hangs on each layer, and how much of it went",
        f"{words.SENSITIVITY} {'; '.join(rows_pruning.around(document)).capitalize()}.",
        layers,
        keys.line_key(plots_pruning.shares(document)),
    )
    return _section("What each stage cost and gained", _note(words.STAGES), tables.stages(document), figures, pruning)


def _ladder(document: dict[str, Any]) -> Markup | None:
    if not document["derived"]["ladder"]:
        return None
    layers = plots_ladder.sensitivity(document)
    figure = layers and _figure("What leaving one layer in float takes off the error", words.LAYERS, layers)
    return _section("How int8 was repaired", _note(words.LADDER), tables.ladder(document), figure)


def _latency_detail(document: dict[str, Any], labels: Labels) -> Markup:
    settings = document["derived"]["settings"]
    shown = (element("h3", "Settings in effect"), tables_latency.settings(document)) if settings else ()
    detail = tables_latency.latency_detail(document, labels)
    return _section("Latency in detail", _note(fmt.harness_words(document)), detail, *shown)


def _classes(document: dict[str, Any]) -> Markup | None:
    found = document["derived"]["classes"]
    if not found:
        return None
    rest = f" Shown are {SHOWN}; all are in {CLASSES_FILE} beside this file." if len(found["rows"]) > SHOWN else ""
    return _section("Class by class", _note(fmt.classes_words(found) + rest), tables.classes(document))


def _paced(document: dict[str, Any]) -> Markup | None:
    if not document["derived"]["paced"]:
        return None
    return _section(fmt.paced_title(document), _note(words.PACED), tables.paced(document))


def _listed(document: dict[str, Any], key: str, title: str, note: str, table: Callable[..., Markup]) -> Markup | None:
    """A section of one table, where there is something to list."""
    return _section(title, _note(note), table(document)) if document["derived"][key] else None


def _sustained(document: dict[str, Any], labels: Labels) -> Markup | None:
    if not document["derived"]["sustained"]:
        return None
    drawing = plots_latency.sustained(document, labels)
    key = keys.cell_key(plots_latency.sustained_cells(document), labels)
    chart = drawing and join(_chart("Without a pause", drawing, "chart alone"), key)
    return _section(fmt.sustained_title(document), _note(words.SUSTAINED), tables.sustained(document), chart)


def _choice(document: dict[str, Any]) -> Markup | None:
    choice = document.get("choice")
    if not choice:
        return None
    return _section(
        "How the student was chosen", _note(f"{choice['sentence']}. {words.CHOICE}"), tables.choice(document),
        *(_note(text) for text in fmt.control_words(choice["control"])),
    )  # fmt: skip


def _tree(document: dict[str, Any]) -> Markup | None:
    drawn = plots_tree.tree(document)
    if drawn is None:
        return None
    cut = len(document["tree"]["filters"]) < len(document["tree"]["leaves"]) - 1
    return element(
        "section",
        _figure(f"The soft decision tree ({document['tree']['stage']})", words.TREE + words.TREE_CUT * cut, drawn),
        _figure("Paths of some images", words.TREE_PATHS, plots_tree.paths(document)),
    )


def _environment(document: dict[str, Any]) -> Markup:
    env, data = document["environment"], document["dataset"]
    quota = f"{env['cpu_quota']:g} cores" if env["cpu_quota"] else "no limit"
    virtual = {True: "yes: what others do on the same machine may slow it down", False: "no"}
    machine = pairs([
        ("processor", env["cpu_model"]), ("instructions", " ".join(env["isa"])),
        ("cores allowed", env["cores_allowed"]),
        ("quota of the group", quota), ("memory", fmt.size(env["memory_bytes"])), ("GPU", env["gpu"] or "none"),
        ("system", env["system"]), ("virtual machine", virtual.get(env.get("virtual"), "")),
        ("Python", env["python"]), ("commit of the tool", env["commit"]),
        ("packages", ", ".join(f"{k} {v}" for k, v in sorted(env["packages"].items()))),
    ])  # fmt: skip
    images = pairs([
        ("data set", data["name"]), ("train", fmt.count(data["train"])), ("select", fmt.count(data["select"])),
        ("calibrate", fmt.count(data["calibrate"])), ("report", fmt.count(data["report"])),
        ("input", " x ".join(map(str, data["input_shape"])) + " (channels, height, width)"),
        ("classes", ", ".join(data["class_names"])), ("note", document["run"]["data_note"]),
    ])  # fmt: skip
    machine = element("div", element("h3", "Machine"), machine)
    return _section(
        "Environment and data", element("div", machine, element("div", element("h3", "Data"), images), class_="two")
    )


def _reliability(document: dict[str, Any], labels: Labels) -> Markup | None:
    drawing = plots_confidence.reliability(document, labels)
    if drawing is None:
        return None
    key = keys.line_key([(labels.colour(row["stage"]), row["stage"]) for row in plots_confidence.shown(document)])
    return element(
        "div",
        element("h3", "How sure, and how often right"),
        _note(words.RELIABILITY),
        _chart("Reliability", drawing, "chart alone"),
        key,
    )


def _corruptions(document: dict[str, Any], labels: Labels) -> Markup | None:
    drawing = plots_corruptions.corruptions(document, labels)
    if drawing is None:
        return None
    key = keys.line_key([(labels.colour(stage), stage) for stage in plots_corruptions.drawn(document)])
    chart = _chart("Top-1 on corrupted images", drawing, "chart alone")
    return _section(
        "On corrupted images",
        _note(words.CORRUPTIONS),
        tables_corruptions.corruptions(document),
        _note(words.CORRUPTIONS_DRAWN),
        chart,
        key,
    )


def _roofline(document: dict[str, Any], labels: Labels) -> Markup | None:
    drawing = plots_roofline.roofline(document, labels)
    key = keys.cell_key(plots_roofline.shown(document), labels)
    return drawing and _section(
        "Arithmetic under the CPU's roofs", _note(words.ROOFLINE), _chart("Roofline", drawing, "chart alone"), key
    )


def _reproduce(document: dict[str, Any]) -> Markup:
    run = document["run"]
    recipe = "\n".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in sorted(document["recipe"].items()))
    digests = [(f"{a['stage']} ({a['format']})", element("code", a["digest"])) for a in document["artifacts"]]
    return _section(
        "Reproduce",
        element("pre", run["command"]),
        pairs([("seed", run["seed"]), ("benchmark tier", run["tier"]),
                      ("allowed drop", f"{run['max_drop_points']:g} points of top-1"),
                      ("tool", f"{document['tool']['version']} {document['tool']['commit']}".strip()),
                      ("recipe digest", element("code", run["recipe_digest"])),
                      ("data digest", element("code", document["dataset"]["digest"])), *digests]),
        element("h3", "Recipe"),
        element("pre", recipe),
    )  # fmt: skip


def _body(document: dict[str, Any]) -> Markup:
    labels = labels_of(document)
    main = element(
        "main",
        _verdict(document),
        _warnings(document),
        _tiles(document),
        _trade(document, labels),
        _section("Results", _note(words.RESULTS), tables.results(document, labels)),
        _plots(document, labels),
        _paced(document),
        _sustained(document, labels),
        _stages(document, labels),
        _ladder(document),
        _listed(document, "elsewhere", "int8 on other CPUs", words.ELSEWHERE, tables.elsewhere),
        _listed(
            document,
            "converted",
            "Files for other runtimes",
            tables_converted.note(document),
            tables_converted.converted,
        ),
        _choice(document),
        _tree(document),
        _latency_detail(document, labels),
        _section("Accuracy in detail", tables.accuracy_detail(document), _reliability(document, labels)),
        _classes(document),
        _corruptions(document, labels),
        _roofline(document, labels),
        _section("Artifacts", tables.artifacts(document)),
        _environment(document),
        _reproduce(document),
        _section("Glossary", pairs(list(words.GLOSSARY.items()))),
    )
    made = f"Made by compress {document['tool']['version']} {words.RAW}"
    return join(_header(document), main, element("footer", made))


def _digest(text: str) -> str:
    """As a content-security policy names it: of exactly the text between the tags."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(document: dict[str, Any]) -> str:
    """The page as text, a pure function of `document`. All text from the document is escaped."""
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    return Template((_FOLDER / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(clean(f"{document['run']['name']}: compression report")),
        style=style,
        style_hash=_digest(style),
        script=script,
        script_hash=_digest(script),
        body=_body(document),
    )
