"""Each network in each runtime, float and int8: does the converted file answer as the ONNX file, how well, how fast?

Each network is distilled from resnet56 on CIFAR-10 images for a few epochs, quantized by the ladder, converted for
every runtime, compared with the ONNX file, asked about all test images, and timed beside the teacher in the same
runtime, all by the steps of `compress run`. A script that was stopped goes on: finished steps come from the store,
finished networks from the record, unless they are wanted `--again`; each has the machine that it was measured on.
RUNTIMES.md, and the README's table, are made from the record by `runtimes.py --page`.
"""

import argparse
from pathlib import Path
from typing import Any

import record
from experiments import cifar10
from learning import job_with

from compress import facts, run_measurements
from compress.chain import Link, make_chain
from compress.plan import Job
from compress.progress import say
from compress.report.format import plural, ratio_interval
from compress.report.rows_accuracy import accuracy_rows
from compress.report.rows_cells import aa_row, cell_rows
from compress.report.rows_converted import converted_rows, gain, gain_words
from compress.store import Store, read_json, write_atomic

# name → what the recipe says of it
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenet_v1:width=0.5": {},
    "mobilenet": {},
    "mobilenet_v3_small": {},
    "shufflenet_v1:width=0.5": {},
    "shufflenet": {},
    "squeezenet": {},
    "resnet20": {},
    "mobilenet, pruned": {"student": "mobilenet", "prune": "0.3"},
    "mobilenet, trained in int8": {"student": "mobilenet", "quantize": "int8_qat"},
}
RUNTIMES = ("ort_cpu", "openvino", "litert", "executorch", "ncnn", "mnn", "ort_web")
PAGE = Path(__file__).with_name("RUNTIMES.md")
README = PAGE.parents[1] / "README.md"
BEGIN, END = "<!-- made by benchmarks/runtimes.py --page -->\n", "<!-- end -->"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="networks [all that are listed]")
    parser.add_argument("--again", action="store_true", help="those networks too that the record has")
    parser.add_argument("--page", action="store_true", help="only write the tables, from the record")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher")
    parser.add_argument("--images", type=int, default=4000, help="train images, even over the classes")
    parser.add_argument("--epochs", type=int, default=8, help="of distillation")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="runtimes; the browser takes the longest")
    parser.add_argument("--tier", default="smoke", help="of the benchmark")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "runtimes.json", help="file to write")
    return parser.parse_args()


def job_of(options: argparse.Namespace, store: Store, name: str) -> Job:
    values = {
        **cifar10(options.data, options.teacher_checkpoint), "student": name, "epochs": options.epochs, "kd": ["kd"],
        "tier": options.tier, "runtimes": options.runtimes.split(","), "threads": options.threads.split(","),
        "max_drop": 0.5, "quantize": "int8_auto", "least_speedup": 0, **NETWORKS[name],
    }  # fmt: skip
    return job_with(values, store, options.images)


def row_of(options: argparse.Namespace, store: Store, name: str) -> dict[str, Any]:
    job = job_of(options, store, name)
    links: list[Link] = list(make_chain(job, store))
    measured = run_measurements.measure(job, store, links)
    files = {link.artifact.stage: f"{link.artifact.stage}.onnx" for link in links}
    document = facts.of_run(name, job, links, files, measured | {"choice": None})
    shown = ("stage", "runtime", "threads", "size_bytes", "latency_ns", "speedup_same_runtime")
    cells = [
        {key: row[key] for key in shown}
        | {"invalid": [flag["text"] for flag in row["flags"] if flag["severity"] == "invalid"]}
        for row in cell_rows(document)
        if not row["control"]
    ]
    return {
        "network": name,
        "tier": options.tier,
        "threads": options.threads,
        "control": aa_row(document),
        "int8": int8_rows(document, links),
        "machine": {key: document["environment"][key] for key in ("cpu_model", "isa", "cores_allowed", "system")},
        "shipped": document["shipped"],
        "converted": converted_rows(document),
        "accuracy": accuracy_rows(document, "teacher"),
        "cells": cells,
    }


def int8_rows(document: dict[str, Any], links: list[Link]) -> list[dict[str, Any]]:
    """What int8 gains over the float file that it was made of, in each runtime, and what its makers say of it."""
    notes = {each["runtime"]: each["notes"] for each in document["converted"] if each["stage"] == "int8"}
    notes["ort_cpu"] = next((link.facts["notes"] for link in links if link.artifact.stage == "int8"), [])
    timed = dict.fromkeys(m["runtime"] for m in document["measurements"] if m["stage"] == "int8" and m["visits"])
    of_int8 = {"stage": "int8", "precision": "int8"}
    return [
        {"runtime": runtime, "gain": gain(document, of_int8 | {"runtime": runtime}), "notes": notes.get(runtime, [])}
        for runtime in timed
    ]


def said_of_int8(row: dict[str, Any]) -> list[str]:
    """A line for each runtime, also where nothing was decided."""
    # rows of old know it of converted files only
    found = row.get("int8") or [each for each in row["converted"] if each["stage"] == "int8" and "gain" in each]
    return [
        f"- int8 in {each['runtime']}: "
        + "; ".join([gain_words(each) or f"not decided, {each['gain']['reason']}", *each["notes"]])
        for each in found
        if not each.get("failure")
    ]


def table_of(row: dict[str, Any]) -> list[str]:
    """One network's table in Markdown."""
    threads, machine = sorted({each["threads"] for each in row["cells"]}), row["machine"]
    lines = [
        f"## `{row['network']}`", "",
        f"{machine['cpu_model']} ({', '.join(machine.get('isa') or ['instruction sets not recorded'])}), "
        f"{plural(machine['cores_allowed'], 'core')}, {machine['system']}. " + _control_words(row), "",
        "| stage | runtime | same answers as ONNX | top-1 % (95 %) | bytes |"
        + "".join(f" ms, {plural(number, 'thread')} (95 %) | over the teacher there |" for number in threads),
        "| --- | --- | --- | --- | ---: |" + " --- | --- |" * len(threads),
    ]  # fmt: skip
    converted = {(each["stage"], each["runtime"]): each for each in row["converted"]}
    cells = {(each["stage"], each["runtime"], each["threads"]): each for each in row["cells"]}
    for each in row["accuracy"]:
        key = (each["stage"], each["runtime"])
        gate, timed = converted.get(key), [cells[*key, number] for number in threads]
        if each["failure"]:
            reason = each["failure"].replace("|", "/")
            lines.append(f"| {key[0]} | {key[1]} | **none**: {reason} | | |" + " | |" * len(threads))
            continue
        same = "it is the reference"
        if gate:
            same = f"{100 * gate['agreement_fraction']['value']:.1f} % of {gate['images']}"
            same += ", as in float" if "float" in gate.get("reference", "") else ""
            same += f", {gate['difference_fraction']['value']:.1e} of the spread"
        top1 = each["top1_fraction"]
        lines.append(
            f"| {key[0]} | {key[1]} | {same} | {100 * top1['value']:.2f} ({100 * top1['low']:.2f} to "
            f"{100 * top1['high']:.2f}) | {timed[0]['size_bytes']:,} |"
            + "".join(f" {_ms(cell)} | {_times(cell['speedup_same_runtime'])} |" for cell in timed)
        )
    said = said_of_int8(row)
    not_run = [name for name in RUNTIMES if name not in {cell["runtime"] for cell in row["cells"]}]
    said += [f"- not run: {', '.join(not_run)}"] if not_run else []
    return [*lines, *([""] if said else []), *said, ""]


def _control_words(row: dict[str, Any]) -> str:
    if "control" not in row:
        return "Tier `smoke`; which rounds are valid was not kept."
    control = row["control"]
    return f"Tier `{row['tier']}`; A/A control {ratio_interval(control)}, {control['verdict']}."


def _ms(cell: dict[str, Any]) -> str:
    latency = cell["latency_ns"]
    if latency["value"] is None:
        return ""
    value = f"{latency['value'] / 1e6:.3f}"
    if latency["low"] is not None:
        value += f" ({latency['low'] / 1e6:.3f} to {latency['high'] / 1e6:.3f})"
    return value + (", not valid" if cell.get("invalid") else "")


def _times(ratio: dict[str, Any]) -> str:
    if ratio["value"] is None or ratio["low"] is None:
        return ""
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def short_table(rows: list[dict[str, Any]]) -> list[str]:
    """A row a network: top-1 of its float and its int8 file in ONNX Runtime, then in each runtime float's median of one
    image on one thread, and how many times as fast int8 is there.
    """
    names = [name for name in RUNTIMES if any(cell["runtime"] == name for row in rows for cell in row["cells"])]
    lines = [
        f"| network | top-1 %: float, int8 | {' | '.join(f'`{name}`' for name in names)} |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for row in rows:
        top1 = {e["stage"]: e["top1_fraction"]["value"] for e in row["accuracy"] if e["runtime"] == "ort_cpu"}
        found = row.get("int8") or [each for each in row["converted"] if each["stage"] == "int8" and "gain" in each]
        gains = {each["runtime"]: each["gain"] for each in found if not each.get("failure")}
        made_of = next(filter(None, (each["parent"] for each in gains.values())), "distilled")
        medians = {
            cell["runtime"]: cell["latency_ns"]["value"]
            for cell in row["cells"]
            if cell["threads"] == 1 and cell["stage"] == made_of
        }
        failed = {each["runtime"] for each in row["converted"] if each["stage"] == "int8" and each["failure"]}
        timed = [_float_and_gain(medians.get(name), gains.get(name), name in failed) for name in names]
        accuracies = f"{100 * top1[made_of]:.1f}, {100 * top1['int8']:.1f}"
        lines.append(f"| `{row['network']}` | {accuracies} | {' | '.join(timed)} |")
    return lines


def _float_and_gain(of_float: float | None, of_int8: dict[str, Any] | None, refused: bool) -> str:
    if not of_float:
        return "not run"
    said = "refused" if refused else "not decided"
    if of_int8:
        low, high = of_int8["low"], of_int8["high"]
        said = "not valid" if of_int8["value"] is None else f"{of_int8['value']:.2f}x ({low:.2f}-{high:.2f})"
    return f"{of_float / 1e6:.2f} ms, {said}"


def into_readme(rows: list[dict[str, Any]]) -> str:
    """The README with the short table in its place. ValueError where it has no such place."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README} has no {BEGIN.strip()} with {END} behind it")
    return before + begin + "\n".join(short_table(rows)) + "\n" + end + after


def refused(rows: list[dict[str, Any]]) -> list[str]:
    """What a runtime was not offered, in words."""
    return [
        f"{row['network']}, {each['stage']} in {each['runtime']}: {each['failure']}"
        for row in rows
        for each in row["converted"]
        if each["failure"]
    ]


def page(found: dict[str, Any]) -> str:
    rows = found["rows"]
    offered = sum(len(row["converted"]) for row in rows)
    failures = refused(rows)
    lines = [
        "# Networks in runtimes", "",
        f"Made by `runtimes.py --page` from `records/runtimes.json`: {found['images']} train images, {found['epochs']} "
        "epochs of distillation from resnet56; top-1 of the files themselves on CIFAR-10's 10,000 test images; latency "
        "of one image, every file of a network interleaved with the teacher in every runtime.",
        "", "Latencies are of the machine named with each network, and those of a desktop CPU rank no phones.", "",
        f"{offered - len(failures)} of {offered} files for other runtimes answer as their ONNX file does, or, "
        "where the row says so, as it does in float, and are offered.", *(f"- {text}" for text in failures), "",
    ]  # fmt: skip
    lines += [line for row in rows for line in table_of(row)]
    left = [name for name in NETWORKS if name not in {row["network"] for row in rows}]
    return "\n".join([*lines, *([f"Not run yet: {', '.join(left)}.", ""] if left else [])])


def main() -> int:
    options = arguments()
    if options.page:
        found = read_json(options.record)
        write_atomic(PAGE, page(found).encode())
        write_atomic(README, into_readme(found["rows"]).encode())
        return record.CLAIM_HOLDS
    store = Store.default()
    for name in options.networks:
        rows = read_json(options.record)["rows"] if options.record.exists() else []
        if options.again or name not in {row["network"] for row in rows}:
            say(name)
            others = [row for row in rows if row["network"] != name]
            rows = sorted([*others, row_of(options, store, name)], key=lambda row: list(NETWORKS).index(row["network"]))
            settings = {key: getattr(options, key) for key in ("images", "epochs", "tier")}
            record.write(options.record, settings | {"rows": rows})
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
