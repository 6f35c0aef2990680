"""The page's tables: every row of `derived`, each number through `format`."""

from typing import Any

from compress.report import format as fmt
from compress.report.labels import Labels
from compress.report.markup import Markup, element
from compress.report.rows_cells import NATIVE_RUNTIME
from compress.report.rows_classes import SHOWN
from compress.report.table import counted, number, plain, sort_value, table, tag


def name_of(cell: dict[str, Any], labels: Labels) -> Markup:
    """A cell's head: stage, runtime, threads, and whether its rounds are not valid."""
    where = f"{cell['runtime']} {cell['runtime_version']}".strip() + f", {fmt.threads(cell['threads'])}"
    if labels.many_batches or cell["batch"] > 1:
        where += f", batch {cell['batch']}"
    twin = " (A/A twin)" if cell["control"] else ""
    broken = any(flag["severity"] == "invalid" for flag in cell["flags"])
    return element(
        "th", cell["stage"] + twin, element("small", where, class_="n"), tag("invalid") if broken else None, scope="row"
    )


def row_class(cell: dict[str, Any], document: dict[str, Any]) -> str | None:
    """The class of a cell's row: what the verdict speaks of stands out, the control steps back."""
    if cell["cell"] == document["derived"]["primary_cell"]:
        return "primary"
    return "aside" if cell["control"] else None


def failed_row(cell: dict[str, Any], columns: int, document: dict[str, Any], labels: Labels) -> Markup:
    """The row of a cell that was not measured, with its reason."""
    words = fmt.absent(cell["latency_ns"]["reason"])
    return element(
        "tr",
        name_of(cell, labels),
        element("td", words, class_="none", colspan=str(columns)),
        class_=row_class(cell, document),
    )


def results(document: dict[str, Any], labels: Labels) -> Markup:
    """One row a cell: accuracy, latency, speed-ups and size."""
    accuracy = {(r["stage"], r["runtime"]): r for r in document["derived"]["accuracy"]}
    # a run without torch has nothing to say in its column
    native = any(cell["runtime"] == NATIVE_RUNTIME for cell in document["derived"]["cells"])
    speedups = {"speedup_same_runtime": "same runtime"} | ({"speedup_native": NATIVE_RUNTIME} if native else {})
    heads = ("stage, runtime", "top-1 (95 %)", "against the teacher", "latency, median (95 %)",
             *(f"speed-up, {words}" for words in speedups.values()), "file")  # fmt: skip
    rows = []
    for cell in document["derived"]["cells"]:
        judged = accuracy.get((cell["stage"], cell["runtime"]))
        if cell["failure"] and (judged is None or judged["top1_fraction"]["value"] is None):
            rows.append(failed_row(cell, len(heads) - 1, document, labels))
            continue
        size = cell["size_bytes"]
        unknown = element("td", fmt.absent("no artifact was recorded"), class_="none")
        rows.append(
            element(
                "tr",
                name_of(cell, labels),
                *_accuracy_cells(judged),
                number(cell["latency_ns"], fmt.latency_interval),
                *(_speedup_cell(cell, key) for key in speedups),
                unknown if size is None else counted(size, fmt.size),
                class_=row_class(cell, document),
            )
        )
    return table("Results of each cell", heads, rows)


def _speedup_cell(cell: dict[str, Any], key: str) -> Markup:
    return number(cell[key], fmt.ratio_interval, cell[key].get("verdict", ""))


def _accuracy_cells(judged: dict[str, Any] | None) -> tuple[Markup, Markup]:
    if judged is None:
        nothing = element("td", fmt.absent("not evaluated in this runtime"), class_="none")
        return nothing, nothing
    difference = judged["difference_fraction"]
    return number(judged["top1_fraction"], fmt.percent_interval), number(
        difference, fmt.points_interval, judged["verdict"]
    )


def _agreement(row: dict[str, Any]) -> Markup:
    if not row["flips"]:
        return plain(row["agreement_fraction"], fmt.percent)
    said = [fmt.flips_words(row["flips"])]
    said += [fmt.divergence_words(row["divergence_nats"])] if row["divergence_nats"] else []
    lines = (element("small", words) for words in said)
    return element("td", fmt.shown(row["agreement_fraction"], fmt.percent), *lines, class_="notes")


def accuracy_detail(document: dict[str, Any]) -> Markup:
    """One row an artifact and runtime: all that was counted on the report split."""
    sure = any(row["calibration_error"]["value"] is not None for row in document["derived"]["accuracy"])
    heads = ("stage, runtime", "images", "top-1 (95 %)", "top-5 (95 %)", "against the teacher", "McNemar",
             "same answer as the teacher", *(["calibration error (95 %)"] if sure else []))  # fmt: skip
    rows = []
    for row in document["derived"]["accuracy"]:
        name = element("th", row["stage"], element("small", row["runtime"]), scope="row")
        if row["failure"]:
            rows.append(
                element(
                    "tr", name, element("td", fmt.absent(row["failure"]), class_="none", colspan=str(len(heads) - 1))
                )
            )
            continue
        more = row["more_images"]
        p, temperature = row["mcnemar_p"], fmt.temperature_words(row)
        rows.append(
            element(
                "tr",
                name,
                counted(row["n"], fmt.count),
                number(row["top1_fraction"], fmt.percent_interval),
                number(row["top5_fraction"], fmt.percent_interval),
                number(row["difference_fraction"], fmt.points_interval, row["verdict"]),
                element("td", "" if p is None else fmt.p_value(p),
                        element("small", f"about {fmt.about(more)} more images needed") if more else None, class_="n"),
                _agreement(row),
                *([number(row["calibration_error"], fmt.percent_interval, note=temperature)] if sure else []),
            )
        )  # fmt: skip
    return table("Accuracy in detail", heads, rows)


def stages(document: dict[str, Any]) -> Markup:
    """One row a stage: what it did, cost and gained, and whether it paid."""
    facts = {s["name"]: s for s in document["stages"]}
    heads = ("stage", "top-1 on select", "top-1 on report", "latency", "bytes", "did it pay?", "time")
    rows = []
    for row in document["derived"]["stages"]:
        fact, gain = facts[row["stage"]], row["latency_gain"]
        notes = [fact["what"], fact["pairing"], *fact["events"]]
        parent = element("small", f"from {row['parent']}") if row["parent"] else None
        report = row["cost_on_report_fraction"]
        unpaired = element("small", "unpaired interval") if report["value"] is not None and not report["paired"] else ""
        rows.append(
            element(
                "tr",
                element("th", row["stage"], parent, *(element("small", n) for n in notes if n),
                        scope="row", class_="notes"),
                number(row["cost_on_select_fraction"], fmt.points_interval),
                element("td", fmt.points_interval(report), unpaired,
                        class_="none" if report["value"] is None and not report.get("is_baseline") else "n"),
                number(gain, fmt.ratio_interval, gain.get("verdict", "")),
                number(row["size_gain"], fmt.ratio_interval),
                element("td", tag(row["paid"]) if row["paid"] else "", element("small", row["why"])),
                element("td", fmt.duration(fact["seconds"]),
                        element("small", "from the store") if fact["reused"] else None, class_="n"),
            )
        )  # fmt: skip
    return table("Stages of the chain", heads, rows, in_order=True)


def parity_text(parity: dict[str, Any] | None) -> str:
    """Agreement of an exported file with the network that it came from."""
    if not parity or not parity["images"]:
        return fmt.absent("no image was compared")
    agreement = fmt.percent(parity["top1_agreement_fraction"])
    return f"{agreement} of {fmt.count(parity['images'])} images, largest difference {parity['max_difference']:.2g}"


def artifacts(document: dict[str, Any]) -> Markup:
    """One row a file: bytes, parameters, MACs, parity with torch and digest."""
    heads = (
        "stage",
        "file",
        "format",
        "bytes",
        "in gzip",
        "parameters",
        "MACs per image",
        "same top-1 as in torch",
        "sha256",
    )
    rows = [
        element(
            "tr",
            element("th", a["stage"], element("small", "shipped") if a["stage"] == document["shipped"] else None,
                    scope="row"),
            element("td", a["file"] or "not shipped"),
            element("td", f"{a['format']}, {a['precision']}", class_="n"),
            counted(a["size_bytes"], fmt.size),
            counted(a.get("gzip_bytes"), fmt.size),
            counted(a["parameters"] or None, fmt.quantity, fmt.absent("not counted")),
            counted(a["macs"] or None, fmt.quantity, fmt.absent("not counted")),
            element("td", parity_text(a["parity"]) if a["format"] == "onnx" else "", class_="p"),
            element("td", element("code", fmt.short_digest(a["digest"])), class_="n"),
        )
        for a in document["artifacts"]
    ]  # fmt: skip
    return table("Artifacts", heads, rows)


def ladder(document: dict[str, Any]) -> Markup:
    """One row a file that the ladder tried: what it cost and gained."""
    heads = ("rung", "how the file was made", "top-1 on select", "agrees with float", "bytes", "time", "verdict")
    rows, rung = [], ""
    for row in document["derived"]["ladder"]:
        tried = row["word"] != "left out"
        name = element("th", row["rung"], scope="row") if row["rung"] != rung else element("td", "")
        rung = row["rung"]
        rows.append(
            element(
                "tr",
                name,
                element("td", row["what"], class_=None if tried else "none"),
                number(row["cost_on_select_fraction"], fmt.points_interval) if tried else element("td", ""),
                number(row["agreement_fraction"], fmt.percent_interval) if tried else element("td", ""),
                element("td", fmt.size(row["size_bytes"]) if tried else "", class_="n"),
                element("td", fmt.duration(row["seconds"]) if tried else "", class_="n"),
                element("td", tag(row["word"])),
                class_="primary" if row["word"] == "better" else None,
            )
        )
    return table("Rungs of the int8 ladder", heads, rows, in_order=True)


def elsewhere(document: dict[str, Any]) -> Markup:
    """One row a file and kind of CPU: what it costs there, and how that is known."""
    heads = ("file", "where", "how it is known", "images", "top-1 against its float file", "why")
    rows = []
    for row in document["derived"]["elsewhere"]:
        cost = row["cost_fraction"]
        rows.append(
            element(
                "tr",
                element("th", row["stage"], scope="row"),
                element("td", row["where"]),
                element("td", tag(row["how"])),
                counted(row["n"] or None, fmt.count),
                number(cost, fmt.points_interval) if row["n"] else element("td", ""),
                element("td", element("small", row["words"]) if row["words"] else ""),
            )
        )
    return table("int8 on other CPUs", heads, rows)


def classes(document: dict[str, Any]) -> Markup:
    """One row a class, those that lost most first; of very many only these."""
    heads = ("class", "images", "top-1 (95 %)", "against the teacher", "p, for all classes")
    rows = [
        element(
            "tr",
            element("th", row["name"], scope="row"),
            counted(row["n"], fmt.count),
            number(row["top1_fraction"], fmt.percent_interval),
            number(row["difference_fraction"], fmt.points_interval, row["word"]),
            counted(row["p"], fmt.p_value),
        )
        for row in document["derived"]["classes"]["rows"][:SHOWN]
    ]
    return table("Class by class", heads, rows)


def sustained(document: dict[str, Any]) -> Markup:
    """One row a cell that worked without a pause."""
    heads = (
        "stage, runtime", "first window", "last window", "last / first", "10 % slower after", "slowest window",
        "hottest", "processor's energy per query", "queries",
    )  # fmt: skip
    rows = []
    for row in document["derived"]["sustained"]:
        where = f"{row['runtime']}, {fmt.threads(row['threads'])}"
        rows.append(
            element(
                "tr",
                element("th", row["stage"], element("small", where, class_="n"), scope="row"),
                plain(row["first_ns"], fmt.latency),
                plain(row["last_ns"], fmt.latency),
                plain(row["last_of_first"], fmt.ratio),
                counted(row["slower_after_s"]["value"], fmt.duration, "never" if row["queries"] else ""),
                plain(row["worst_ns"], fmt.latency),
                plain(row["celsius"], fmt.celsius),
                plain(row["joules_per_query"], fmt.energy),
                counted(row["queries"], fmt.count),
            )
        )
    return table("Without a pause", heads, rows)


def paced(document: dict[str, Any]) -> Markup:
    """One row a cell that was asked at a rate."""
    heads = (
        "stage, runtime",
        "median (95 %)",
        "p99",
        "of back to back",
        "late (95 %)",
        "longest run of late",
        "queries",
    )
    rows = []
    for row in document["derived"]["paced"]:
        where = f"{row['runtime']}, {fmt.threads(row['threads'])}"
        rows.append(
            element(
                "tr",
                element("th", row["stage"], element("small", where, class_="n"), scope="row"),
                number(row["latency_ns"], fmt.latency_interval),
                plain(row["p99_ns"], fmt.latency),
                plain(row["against_back_to_back"], fmt.ratio),
                number(row["late_fraction"], fmt.percent_interval),
                counted(row["longest_late_run"], fmt.count),
                counted(row["queries"], fmt.count),
            )
        )
    return table("Queries at a rate", heads, rows)


def choice(document: dict[str, Any]) -> Markup:
    """One row a candidate: what it costs, what a trial said of it, and why it was taken or not."""
    heads = (
        "candidate", "parameters", "MACs per image", "bytes", "latency, median (95 %)", "top-1 on select", "decision"
    )  # fmt: skip
    rows = []
    for row in document["derived"]["choice"]:
        name = element("th", row["label"], scope="row")
        word = element("td", tag(row["word"]), element("small", row["reason"]) if row["reason"] else None)
        if not row["macs"]:
            rows.append(element("tr", name, element("td", fmt.absent("not built"), class_="none", colspan="5"), word))
            continue
        least = "" if row["exported"] else "at least "
        rows.append(
            element(
                "tr",
                name,
                counted(row["parameters"], fmt.quantity),
                counted(row["macs"], fmt.quantity),
                element("td", least + fmt.size(row["size_bytes"]), class_="n", data_v=sort_value(row["size_bytes"])),
                number(row["latency_ns"], fmt.latency_interval),
                number(row["top1_fraction"], fmt.percent_interval),
                word,
                class_="primary" if row["word"] == "chosen" else None,
            )
        )
    return table("Candidates for the student", heads, rows)
