"""Networks on an NVIDIA GPU: how well and how fast do the files answer there, one image at a time and in batches?

Students are distilled from resnet56 on CIFAR-10 images, on the GPU itself, exported, and one is quantized for ONNX
Runtime's CUDA provider, by the steps of `compress run`. Then every file is asked about all test images and timed, in
ONNX Runtime on the GPU and on the CPU, and as a network in PyTorch, step by step and as a CUDA graph; all cells of a
round are interleaved, and copies to the GPU and back are told apart. A script that was stopped finds finished steps in
the store. GPU.md is made from the record by `gpu.py --page`.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import record
from experiments import cifar10
from learning import job_with

from compress import artifact_steps, bench, environment, evaluate, facts, files
from compress.chain import Link, make_chain
from compress.plan import Job
from compress.progress import Progress, say
from compress.report.rows_cells import cell_rows
from compress.stats import wilson
from compress.store import Store, read_json, write_atomic
from compress.types import SINGLE_STREAM, Artifact

# name → what the recipe says of it
STUDENTS: dict[str, dict[str, Any]] = {"mobilenet": {"quantize": "int8", "target": "cuda"}, "shufflenet": {}}
IN_TORCH = ("resnet56", "mobilenet")  # a process that imports PyTorch takes three times as long
ORT, TORCH, CPU = "ort_cuda", ("torch_cuda", "torch_cuda_graph"), "ort_cpu"
PAGE = Path(__file__).with_name("GPU.md")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only write GPU.md, from the record")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher")
    parser.add_argument("--images", type=int, default=15000, help="train images, even over the classes")
    parser.add_argument("--epochs", type=int, default=20, help="of distillation")
    parser.add_argument("--batches", default="1,32,256", help="batch sizes of ONNX files; networks: first and last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what a reader must know of this machine")
    parser.add_argument("--train-only", action="store_true", help="leave the results in the store")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "gpu.json", help="file to write")
    return parser.parse_args()


def job_of(options: argparse.Namespace, store: Store, name: str) -> Job:
    values = {
        **cifar10(options.data, options.teacher_checkpoint), "student": name, "epochs": options.epochs, "kd": ["kd"],
        "batch_size": 128, "device": "cuda", "max_drop": 0.5, "least_speedup": 0, **STUDENTS[name],
    }  # fmt: skip
    return job_with(values, store, options.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A file, and the network behind it where that is measured too."""

    artifact: Artifact
    network: Artifact | None


def everything(options: argparse.Namespace, store: Store) -> tuple[Job, dict[str, Made], dict[str, Any]]:
    """The last job; the teacher and every student by name, int8 apart; and images a second of each phase."""
    made: dict[str, Made] = {}
    trained: dict[str, Any] = {}
    for name in STUDENTS:
        job = job_of(options, store, name)
        for link in make_chain(job, store):
            label = {"teacher": "resnet56", "distilled": name}.get(link.artifact.stage, f"{name}, int8")
            made.setdefault(label, _named(job, link, label))
            if label == name:
                trained[name] = {k: v["images_per_second"] for k, v in link.facts["phases"].items()}
    return job, made, trained


def _named(job: Job, link: Link, label: str) -> Made:
    artifact = dataclasses.replace(link.artifact, stage=label)
    network = None
    if link.network and label in IN_TORCH:
        network = artifact_steps.torch_artifact(job, label, link.network, vars(artifact))
    return Made(artifact=artifact, network=network)


def cells_of(made: dict[str, Made], batches: list[int]) -> list[bench.Cell]:
    def cell(artifact: Artifact, runtime: str, batch: int) -> bench.Cell:
        name = f"{artifact.stage}/{runtime}/{batch}"
        return bench.Cell(name=name, artifact=artifact, runtime=runtime, threads=1, batch=batch)

    cells = [cell(each.artifact, ORT, batch) for each in made.values() for batch in batches]
    cells += [cell(each.artifact, CPU, 1) for each in made.values()]
    ends = sorted({batches[0], batches[-1]})
    return cells + [
        cell(each.network, runtime, batch) for each in made.values() if each.network for runtime in TORCH
        for batch in ends
    ]  # fmt: skip


def accuracy(job: Job, store: Store, made: dict[str, Made]) -> list[dict[str, Any]]:
    """Right answers of each file and network in each runtime, and how many are those of the file on the CPU."""
    rows, split = [], job.splits.report
    for name, each in made.items():
        base = artifact_steps.answers_step(job, store, each.artifact, CPU, split)
        asked = [(each.artifact, CPU), (each.artifact, ORT), *((each.network, r) for r in TORCH if each.network)]
        for artifact, runtime in asked:
            logits = artifact_steps.answers_step(job, store, artifact, runtime, split)
            counted = evaluate.counts(logits, split.labels, base)
            difference = float(abs(logits - base).max() / (base.max() - base.min()))
            rows.append({
                "name": name, "runtime": runtime, "n": counted["n"], "correct": counted["correct"],
                "agree": counted["agree"], "difference_of_spread": difference,
            })  # fmt: skip
    return rows


def measured(job: Job, store: Store, cells: list[bench.Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    tier = dataclasses.replace(bench.TIERS["smoke"], rounds=options.rounds)
    with Progress("benchmark", len(cells) * tier.rounds, "visits") as bar:
        found = bench.measure(
            cells, job.splits.report.images, tier, seed=0, scratch=store.root / "scratch",
            on_visit=lambda done, total: bar.to(done),
        )  # fmt: skip
    artifacts = {cell.artifact.stage: cell.artifact for cell in cells if cell.artifact.format == "onnx"}
    document = files.document(
        list(artifacts.values()), [facts.measurement_facts(m, "") for m in found], command="", tier=tier.name, seed=0,
        image_count=bench.POOL_SIZE, data_note="", scenario=SINGLE_STREAM, environment=environment.capture(),
    )  # fmt: skip
    keys = (
        "stage", "runtime", "batch", "size_bytes", "latency_ns", "transfer_ns", "speedup_same_runtime", "failure",
        "round_medians_ns", "runtime_version",
    )  # fmt: skip
    return [{key: row[key] for key in keys} for row in cell_rows(document)]


def _microseconds(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return ""
    value = f"{estimate['value'] / 1e3:,.0f}"
    if estimate["low"] is None:
        return value
    return f"{value} ({estimate['low'] / 1e3:,.0f} to {estimate['high'] / 1e3:,.0f})"


def _times(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None or estimate["low"] is None:
        return ""
    return f"{estimate['value']:.2f}x ({estimate['low']:.2f} to {estimate['high']:.2f})"


def page(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        "# Networks on a GPU", "",
        f"Made by `gpu.py --page` from `records/gpu.json`: {found['images']:,} train images, {found['epochs']} "
        f"epochs of distillation from resnet56 on the GPU; {found['rounds']} rounds of interleaved cells; one thread. "
        "Copies to the GPU and back are part of the latency, and shown apart.", "",
        f"{machine['gpu']}, {machine['cpu_model']}, {machine['cores_allowed']} cores, {machine['system']}. "
        f"{found['note']}", "",
        "## Answers", "", "| network | runtime | top-1 % (95 %) | answers as on the CPU | of the logits' spread |",
        "| --- | --- | --- | ---: | ---: |",
    ]  # fmt: skip
    for row in found["accuracy"]:
        low, high = wilson(row["correct"], row["n"])
        lines.append(
            f"| {row['name']} | {row['runtime']} | {100 * row['correct'] / row['n']:.2f} ({100 * low:.2f} to "
            f"{100 * high:.2f}) | {row['agree']:,} of {row['n']:,} | {row['difference_of_spread']:.1e} |"
        )
    lines += [
        "", "## Latency", "",
        "| network | runtime | batch | µs (95 %) | of it copies | images/s | over resnet56 there |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in found["cells"]:
        if row["failure"]:
            lines.append(f"| {row['stage']} | {row['runtime']} | {row['batch']} | **none**: {row['failure']} | | | |")
            continue
        lines.append(
            f"| {row['stage']} | {row['runtime']} | {row['batch']} | {_microseconds(row['latency_ns'])} | "
            f"{_microseconds({**row['transfer_ns'], 'low': None})} | "
            f"{row['batch'] * 1e9 / row['latency_ns']['value']:,.0f} | {_times(row['speedup_same_runtime'])} |"
        )
    lines += ["", "## Training", "", "| student | images/s, the teacher's part included |", "| --- | ---: |"]
    for name, row in found["trained"].items():
        lines.append(f"| {name} | {', '.join(f'{rate:,.0f}' for rate in row.values())} |")
    return "\n".join([*lines, ""])


def main() -> int:
    options = arguments()
    if options.page:
        write_atomic(PAGE, page(read_json(options.record)).encode())
        return record.CLAIM_HOLDS
    store = Store.default()
    job, made, trained = everything(options, store)
    say(f"images a second: {trained}")
    if options.train_only:
        return record.CLAIM_HOLDS
    cells = cells_of(made, [int(batch) for batch in options.batches.split(",")])
    rows = measured(job, store, cells, options)
    found = {k: getattr(options, k) for k in ("images", "epochs", "rounds", "note")}
    found |= {"trained": trained, "cells": rows, "accuracy": accuracy(job, store, made)}
    record.write(options.record, found)
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
