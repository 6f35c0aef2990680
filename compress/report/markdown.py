"""The Markdown report and the terminal's summary: the same texts as the page, made from the same document."""

import re
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from compress.report import format as fmt
from compress.report import rows_layers, rows_pruning, rows_tree, tables_corruptions
from compress.report.markup import clean
from compress.report.rows_converted import gain_words
from compress.report.runner import runner_sentences
from compress.report.tables import parity_text
from compress.report.words import CHOICE, CORRUPTIONS

WIDTH = 80
_HEADS = ("stage", "top-1 % (95 %)", "median", "speed-up (95 %)", "file")


def escaped(text: Any) -> str:
    """`text` so that Markdown shows it as it is, on one line."""
    line = " ".join(clean(text).split())
    line = re.sub(r"([\\`*\[\]|#~])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # inside a word it marks nothing
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", "&#58;//")


def fenced(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{clean(text)}\n{fence}"


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: max(1, most - 1)] + "…"


def _bare(text: str) -> str:
    """A reason is too long for the narrow table; it stands below it."""
    return "not measured" if text.startswith("not measured") else text


def _summary_row(cell: dict[str, Any], judged: dict[str, Any] | None) -> list[str]:
    top1 = fmt.percent_interval(judged["top1_fraction"], unit=False) if judged else "not measured"
    size = fmt.size(cell["size_bytes"]) if cell["size_bytes"] is not None else "not measured"
    return [
        cell["stage"],
        _bare(top1),
        _bare(fmt.shown(cell["latency_ns"], fmt.latency)),
        _bare(fmt.ratio_interval(cell["speedup_same_runtime"])),
        size,
    ]


def _place(cell: dict[str, Any]) -> str:
    batch = f", batch {cell['batch']}" if cell["batch"] > 1 else ""
    return f"{cell['runtime']}, {fmt.threads(cell['threads'])}{batch}"


def _absences(cell: dict[str, Any], judged: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(why, what) of each number that this cell lacks."""
    estimates = [("latency", cell["latency_ns"])] + ([("top-1", judged["top1_fraction"])] if judged else [])
    if cell["latency_ns"]["value"] is not None:
        estimates.append(("speed-up", cell["speedup_same_runtime"]))
    lacking = [(name, e) for name, e in estimates if e["value"] is None and not e.get("is_baseline")]
    return [(fmt.absent(e["reason"]), f"{name} of {cell['stage']}") for name, e in lacking]


def _reasons(absences: list[tuple[str, str]]) -> list[str]:
    """One line for each reason, whatever number of cells share it."""
    return [
        f"{', '.join(what for why, what in absences if why == reason)}: {reason}"
        for reason in dict.fromkeys(why for why, _ in absences)
    ]


def _groups(document: dict[str, Any]) -> list[tuple[str, list[list[str]], list[str]]]:
    """For each runtime and number of threads: its name, the table's rows, and the reasons for what is missing."""
    derived = document["derived"]
    accuracy = {(r["stage"], r["runtime"]): r for r in derived["accuracy"]}
    cells = sorted(
        (c for c in derived["cells"] if not c["control"]), key=lambda c: (c["runtime"], c["threads"], c["batch"])
    )
    groups = []
    for place, members in groupby(cells, _place):
        rows, absences = [], []
        for cell in members:
            judged = accuracy.get((cell["stage"], cell["runtime"]))
            absences += _absences(cell, judged)
            if cell["latency_ns"]["value"] is not None or (judged and judged["top1_fraction"]["value"] is not None):
                rows.append(_summary_row(cell, judged))
        groups.append((place, rows, _reasons(absences)))
    return groups


def _widths(rows: Sequence[Sequence[str]], around: int) -> list[int]:
    """Column widths; the first column gives way so that a line, `around` included, stays within WIDTH."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = max(4, min(widths[0], WIDTH - around - sum(widths[1:])))
    return widths


def _markdown_rows(rows: list[list[str]]) -> list[str]:
    escaped_rows = [[escaped(value) for value in row] for row in [list(_HEADS), *rows]]
    widths = _widths(escaped_rows, around=3 * len(_HEADS) + 1)
    for row in escaped_rows:
        # A cut inside an escape would leave a lone backslash before the column's bar.
        row[0] = row[0] if len(row[0]) <= widths[0] else _short(row[0], widths[0]).rstrip("\\…") + "…"
    lines = ["| " + " | ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) + " |" for row in escaped_rows]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return lines


def _summary_tables(document: dict[str, Any]) -> list[str]:
    lines = []
    for place, rows, reasons in _groups(document):
        lines += [f"**{escaped(place)}**", ""]
        lines += [*_markdown_rows(rows), ""] if rows else []
        lines += [*(f"- {escaped(reason)}" for reason in reasons), ""] if reasons else []
    return lines


def _stage_lines(document: dict[str, Any]) -> list[str]:
    facts = {stage["name"]: stage for stage in document["stages"]}
    lines = []
    for row in document["derived"]["stages"]:
        stage = facts[row["stage"]]
        words = [f"took {fmt.duration(stage['seconds'])}", *stage["events"]]
        if row["parent"]:
            words = [
                f"{row['paid']} ({row['why']})",
                f"top-1 {fmt.points_interval(row['cost_on_select_fraction'])} on select",
                f"{fmt.points_interval(row['cost_on_report_fraction'])} on report",
                f"latency {fmt.ratio_interval(row['latency_gain'])}",
                f"bytes {fmt.ratio_interval(row['size_gain'])}",
                *words,
            ]
        origin = f" from {escaped(row['parent'])}" if row["parent"] else ""
        lines.append(f"- **{escaped(row['stage'])}**{origin}: {escaped('; '.join(words))}")
    return lines


def _artifact_lines(document: dict[str, Any]) -> list[str]:
    return [
        "- "
        + escaped(
            f"{a['stage']} ({a['format']}, {a['precision']}): {a['file'] or 'not shipped'}, "
            f"{fmt.size(a['size_bytes'])}, "
            + (f"{fmt.size(a['gzip_bytes'])} in gzip, " if a.get("gzip_bytes") else "")
            + (f"{fmt.quantity(a['parameters'])} parameters, " if a["parameters"] else "parameters not counted, ")
            + (f"{fmt.quantity(a['macs'])} MACs" if a["macs"] else f"MACs {fmt.absent('not counted')}")
            + (f", same top-1 as in torch: {parity_text(a['parity'])}" if a["format"] == "onnx" else "")
            + f", sha256 {fmt.short_digest(a['digest'])}"
        )
        for a in document["artifacts"]
    ]


def _comparison_lines(document: dict[str, Any]) -> list[str]:
    derived = document["derived"]
    lines = [f"- A/A control: {escaped(_with_verdict(fmt.ratio_interval(derived['aa']), derived['aa']['verdict']))}"]
    for cell in derived["cells"]:
        if not cell["control"] and cell["latency_ns"]["value"] is not None:
            native = cell["speedup_native"]
            words = (
                f"{cell['stage']} on {_place(cell)}: {fmt.latency_interval(cell['latency_ns'])}; against the teacher "
                f"in torch_eager {_with_verdict(fmt.ratio_interval(native), native['verdict'])}"
            )
            lines.append(f"- {escaped(words)}")
    for row in derived["accuracy"]:
        if row["verdict"]:
            words = f"{row['stage']} on {row['runtime']}: {fmt.points_interval(row['difference_fraction'])} of top-1"
            flips = f"; {fmt.flips_words(row['flips'])}" if row["flips"] else ""
            flips += f"; {fmt.divergence_words(row['divergence_nats'])}" if row["divergence_nats"] else ""
            lines.append(f"- {escaped(_with_verdict(words, row['verdict']) + flips)}")
    for row in derived["accuracy"]:
        if row["calibration_error"]["value"] is not None:
            said = [f"calibration error {fmt.percent_interval(row['calibration_error'])}", fmt.temperature_words(row)]
            lines.append(f"- {escaped(row['stage'])} on {escaped(row['runtime'])}: {', '.join(filter(None, said))}")
    return lines


def _ladder_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["derived"]["ladder"]:
        words = [row["what"]]
        if row["word"] != "left out":
            cost, agree = (
                fmt.points_interval(row["cost_on_select_fraction"]),
                fmt.percent_interval(row["agreement_fraction"]),
            )
            words += [f"top-1 {cost} on select", f"agrees with float on {agree}", fmt.size(row["size_bytes"])]
            words += [f"took {fmt.duration(row['seconds'])}"]
        lines.append(f"- **{escaped(row['rung'])}**: {row['word']}; {escaped('; '.join(words))}")
    layers = [f"- {escaped(words)}" for words in rows_layers.in_words(document)]
    heading = ["", "Left in float alone, a layer would take off the error of all:", ""]
    return [*lines, *(heading + layers if layers else [])]


def _converted_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["derived"]["converted"]:
        said = [row["word"], *([row["failure"]] if row["failure"] else [])]
        if row["agreement_fraction"]["value"] is not None:
            same = fmt.percent(row["agreement_fraction"]["value"])
            said += [
                f"same answer as {row['reference']} on {same} of {fmt.count(row['images'])} images",
                f"logits within {fmt.shown(row['difference_fraction'], fmt.power)} of their spread",
                f"top-1 {fmt.points_interval(row['cost_fraction'])}",
            ]
        said += [*([fmt.size(row["size_bytes"])] if row["size_bytes"] else []), *filter(None, [gain_words(row)])]
        said += row["notes"]
        lines.append(f"- **{escaped(row['stage'])}** in {escaped(row['runtime'])}: {escaped('; '.join(said))}")
    return lines


def _paced_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["derived"]["paced"]:
        said = [
            f"median {fmt.latency_interval(row['latency_ns'])}, {fmt.ratio(row['against_back_to_back']['value'])} "
            "of back to back",
            f"p99 {fmt.shown(row['p99_ns'], fmt.latency)}",
            f"late {fmt.percent_interval(row['late_fraction'])} of {fmt.count(row['queries'])}, "
            f"at most {fmt.count(row['longest_late_run'])} in a row",
        ]
        where = f"{row['runtime']}, {fmt.threads(row['threads'])}"
        lines.append(f"- **{escaped(row['stage'])}** in {escaped(where)}: {escaped('; '.join(said))}")
    return lines


def _sustained_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["derived"]["sustained"]:
        where = f"{row['runtime']}, {fmt.threads(row['threads'])}"
        lines.append(f"- **{escaped(row['stage'])}** in {escaped(where)}: {escaped(fmt.sustained_words(row))}")
    return lines


def _elsewhere_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["derived"]["elsewhere"]:
        cost = (
            [f"top-1 {fmt.points_interval(row['cost_fraction'])} on {fmt.count(row['n'])} images"] if row["n"] else []
        )
        said = "; ".join([row["how"], *cost, *([row["words"]] if row["words"] else [])])
        lines.append(f"- **{escaped(row['stage'])}**, {escaped(row['where'])}: {escaped(said)}")
    return lines


def _choice_lines(document: dict[str, Any]) -> list[str]:
    choice, lines = document["choice"], []
    for row in document["derived"]["choice"]:
        facts = [row["word"] + (f" ({row['reason']})" if row["reason"] else "")]
        if row["macs"]:
            facts += [
                f"{fmt.quantity(row['macs'])} MACs",
                ("" if row["exported"] else "at least ") + fmt.size(row["size_bytes"]),
                fmt.latency_interval(row["latency_ns"]) if row["latency"] else "not timed",
            ]
        if row["correct"] is not None:
            facts.append(f"top-1 on select {fmt.percent_interval(row['top1_fraction'])}")
        lines.append(f"- **{escaped(row['label'])}**: {escaped('; '.join(facts))}")
    notes = [f"- {escaped(text)}" for text in fmt.control_words(choice["control"])]
    return [f"{escaped(choice['sentence'])}. {escaped(CHOICE)}", "", *lines, *notes]


def _with_verdict(text: str, verdict: str) -> str:
    return f"{text}, {verdict}" if verdict else text


def render(document: dict[str, Any]) -> str:
    """The report as GitHub-flavoured Markdown; the summary tables fit 80 columns. Pure."""
    verdict, run, env = document["derived"]["verdict"], document["run"], document["environment"]
    tier = document["derived"]["short_tier"]
    stamp = f" ({tier} tier)" if tier else ""
    parts = [
        f"# {escaped(run['name'])}",
        "",
        f"**{verdict['status'].upper()}{stamp and ' ' + escaped(stamp.strip())}.** {escaped(verdict['sentence'])}",
    ]
    parts += ["", *(f"- {escaped(reason)}" for reason in verdict["reasons"]), ""]
    skipped = [f"left out of the data: {name}" for name in document["dataset"]["skipped"]]
    said = [*runner_sentences(document), *document["derived"]["warnings"]]
    if texts := [*document["warnings"], *said, *skipped]:
        parts += ["## Warnings", "", *(f"- {escaped(text)}" for text in texts), ""]
    parts += ["## Results", "", *_summary_tables(document)]
    parts += ["## Comparisons", "", *_comparison_lines(document), "", escaped(fmt.harness_words(document)), ""]
    for row in document["derived"]["settings"]:
        where = f"{row['runtime']}, {fmt.threads(row['threads'])}, {', '.join(row['stages'])}"
        parts.append(f"- settings in effect in {escaped(where)}: {escaped(row['settings'])}")
    parts.append("")
    if document["derived"]["classes"]:
        parts += ["## Class by class", "", escaped(fmt.classes_words(document["derived"]["classes"])), ""]
    if document["derived"]["paced"]:
        parts += [f"## {fmt.paced_title(document)}", "", *_paced_lines(document), ""]
    if document["derived"]["sustained"]:
        parts += [f"## {fmt.sustained_title(document)}", "", *_sustained_lines(document), ""]
    parts += ["## Stages", "", *_stage_lines(document), ""]
    if lines := rows_pruning.lines(document):
        parts += ["## The layers on which most hangs", "", *(f"- {escaped(words)}" for words in lines), ""]
    if document["derived"]["ladder"]:
        parts += ["## How int8 was repaired", "", *_ladder_lines(document), ""]
    if document["derived"]["elsewhere"]:
        parts += ["## int8 on other CPUs", "", *_elsewhere_lines(document), ""]
    if document["derived"]["converted"]:
        parts += ["## Files for other runtimes", "", *_converted_lines(document), ""]
    if lines := tables_corruptions.lines(document):
        parts += ["## On corrupted images", "", escaped(CORRUPTIONS), "", *(f"- {escaped(text)}" for text in lines), ""]
    if document["derived"]["choice"]:
        parts += ["## How the student was chosen", "", *_choice_lines(document), ""]
    if document["derived"]["tree"]:
        lines = [f"- {escaped(words)}" for words in rows_tree.path_words(document)]
        parts += ["## Paths of some images through the tree", "", *lines, ""]
    parts += ["## Artifacts", "", *_artifact_lines(document), ""]
    allowed = f"{fmt.plural(env['cores_allowed'], 'core')} allowed"
    machine = f"{env['cpu_model']}, {allowed}, {env['system']}, Python {env['python']}"
    machine += ", a virtual machine: what others do on the same machine may slow it down" * bool(env.get("virtual"))
    parts += ["## Reproduce", "", escaped(machine), "", fenced(run["command"]), ""]
    parts += [f"Seed {run['seed']}, benchmark tier {escaped(run['tier'])}, recipe {escaped(run['recipe_digest'])}."]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def _flagged(document: dict[str, Any]) -> list[str]:
    """How many cells have something against them; what, is in the report."""
    flagged = [cell for cell in document["derived"]["cells"] if cell["flags"]]
    invalid = [c for c in flagged if any(flag["severity"] == "invalid" for flag in c["flags"])]
    if not flagged:
        return []
    codes = dict.fromkeys(flag["code"].replace("_", " ") for cell in flagged for flag in cell["flags"])
    worst = f", {len(invalid)} of them not valid" if invalid else ""
    return [f"latency: warnings for {fmt.plural(len(flagged), 'cell')}{worst} ({', '.join(codes)})"]


def summary(document: dict[str, Any]) -> str:
    """The text that ends a run: verdict and tables, no line wider than 80 columns."""
    verdict, tier = document["derived"]["verdict"], document["derived"]["short_tier"]
    stamp = f" ({tier} tier)" if tier else ""
    lines = textwrap.wrap(f"{verdict['status'].upper()}{stamp}: {clean(verdict['sentence'])}", WIDTH)
    for place, rows, reasons in _groups(document):
        lines += ["", _short(clean(place), WIDTH)]
        if rows:
            all_rows = [list(_HEADS), *([clean(v).replace("\n", " ") for v in row] for row in rows)]
            widths = _widths(all_rows, around=2 + 2 * (len(_HEADS) - 1))
            for row in all_rows:
                row[0] = _short(row[0], widths[0])
                lines.append("  " + "  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())
        for reason in reasons:
            lines += textwrap.wrap(clean(reason), WIDTH, initial_indent="  ", subsequent_indent="    ")
    scenarios = (("paced", fmt.paced_title, _paced_lines), ("sustained", fmt.sustained_title, _sustained_lines))
    for key, title, lines_of in scenarios:
        lines += ["", title(document)] if document["derived"][key] else []
        for line in lines_of(document):
            lines += textwrap.wrap(line.replace("**", ""), WIDTH, initial_indent="  ", subsequent_indent="    ")
    for reason in (*verdict["reasons"], *runner_sentences(document), *_flagged(document)):
        lines += textwrap.wrap(clean(reason), WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"
