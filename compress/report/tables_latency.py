"""The tables of latency in detail, and of the settings that it was measured with."""

from collections.abc import Callable
from typing import Any

from compress.report import format as fmt
from compress.report.labels import Labels
from compress.report.markup import Markup, element
from compress.report.table import number, plain, sort_value, table
from compress.report.tables import failed_row, name_of, row_class


def latency_detail(document: dict[str, Any], labels: Labels) -> Markup:
    """One row a measured cell: tail, start-up, CPU time, memory and throughput; copies where there is a device."""
    cells = document["derived"]["cells"]
    copies = ["transfer_ns"] if any(cell["transfer_ns"]["value"] for cell in cells) else []
    heads = ("stage, runtime", "p90", "p95", "p99", *("of which copies" for _ in copies),
             "first inference", "load",
             "CPU time per query", "peak memory", "throughput", "arithmetic", "rounds, queries")  # fmt: skip
    rows = []
    for cell in cells:
        if cell["latency_ns"]["value"] is None:
            rows.append(failed_row(cell, len(heads) - 1, document, labels))
            continue
        tail = cell["percentiles_ns"]
        of_time = [cell[k] for k in (*copies, "first_inference_ns")]
        rows.append(
            element(
                "tr",
                name_of(cell, labels),
                *(_tail(tail[p]) for p in ("p90", "p95")),
                _tail(tail["p99"], cell),
                *(plain(e, fmt.latency) for e in of_time),
                _with(cell["load_ns"], fmt.latency, cell["load_cold_ns"], "cold: {}"),
                plain(cell["cpu_ns_per_inference"], fmt.latency),
                _memory(cell),
                plain(cell["images_per_second"], fmt.rate),
                _with(cell["gmacs_per_second"], fmt.gmacs, cell["peak_share"], "{} of float32's peak", fmt.percent),
                element("td", f"{len(cell['rounds'])}, {fmt.count(cell['queries'])}", _outliers(cell), class_="n"),
                class_=row_class(cell, document),
            )
        )
    return table("Latency in detail", heads, rows)


def _memory(cell: dict[str, Any]) -> Markup:
    """The peak, and below it what of that came with the model, PSS, the peak without an arena, and GPUs' memory."""
    peak = cell["peak_rss_bytes"]
    if peak["value"] is None:
        return plain(peak, fmt.size)
    more = (
        ("own", cell["own_rss_bytes"]), ("PSS", cell["pss_bytes"]), ("no arena", cell["arena_off_peak_rss_bytes"]),
        ("GPU", cell["gpu_bytes"]),
    )  # fmt: skip
    lines = (element("small", f"{name}: {fmt.size(e['value'])}") for name, e in more if e["value"] is not None)
    return element("td", fmt.size(peak["value"]), *lines, class_="n", data_v=sort_value(peak["value"]))


def _tail(estimate: dict[str, Any], cell: dict[str, Any] | None = None) -> Markup:
    """A percentile with its interval below it; with a `cell`, how far p99 lies from its median, and its p99.9."""
    value, _, interval = fmt.latency_interval(estimate).partition(" (")
    if estimate["value"] is None or not interval:
        return plain(estimate, fmt.latency)
    notes = [f"({interval}"]
    if cell and cell["jitter"]["value"] is not None:
        notes.append(f"{fmt.ratio(cell['jitter']['value'])} the median")
    if cell and cell["percentiles_ns"]["p99.9"]["value"] is not None:
        notes.append(f"p99.9: {fmt.latency(cell['percentiles_ns']['p99.9']['value'])}")
    lines = (element("small", words) for words in notes)
    return element("td", value, *lines, class_="n", data_v=sort_value(estimate["value"]))


def _outliers(cell: dict[str, Any]) -> Markup | None:
    if cell["outliers_fraction"]["value"] is None:
        return None
    beyond, far = (fmt.percent(cell[f"{of}outliers_fraction"]["value"]) for of in ("", "severe_"))
    return element("small", f"outliers {beyond}, far {far}")


def settings(document: dict[str, Any]) -> Markup:
    """One row a runtime and number of threads: the settings that were in effect there."""
    rows = [
        element(
            "tr",
            element("th", row["runtime"], element("small", fmt.threads(row["threads"])), scope="row"),
            element("td", ", ".join(row["stages"])),
            element("td", row["settings"]),
        )
        for row in document["derived"]["settings"]
    ]
    return table("Settings in effect", ("runtime", "files", "as far as the runtime tells them"), rows)


def _with(
    estimate: dict[str, Any], show: Callable[[float], str], more: dict[str, Any], words: str,
    show_more: Callable[[float], str] | None = None,
) -> Markup:  # fmt: skip
    """A number, and another one below it where there is one."""
    small = words.format((show_more or show)(more["value"])) if more["value"] is not None else ""
    return number(estimate, lambda e: fmt.shown(e, show), note=small)
