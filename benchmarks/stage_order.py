"""Whether the order of stages matters: prune and recover before int8, or int8 at once and recover through its rounding.

A MobileNetV2 is distilled from resnet56 on CIFAR-10 images, half of its channels are removed, and int8 files are made

    float, recovered       prune, recover by distillation; no int8, for comparison
    recovered, then int8   the chain's order
    int8 at once           prune, BatchNorm statistics estimated anew, int8: no recovery
    int8, then trained     as before, then as many epochs of training through the rounding as the chain recovers for

Weights have 7 bits, so that no CPU clips their products. Top-1 is that of the files in ort_cpu on the test images,
paired with the whole float student. Finished steps come from the store. STAGE_ORDER.md is made by `stage_order.py
--page`.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import record
from experiments import cifar10
from int8 import in_words
from learning import job_with
from pruning import artifact_of

from compress import artifact_steps, evaluate, int8_steps, pruning_steps, schedules, training_steps
from compress.plan import Job
from compress.store import Step, Store, read_json, write_atomic
from compress.types import Artifact

PAGE = Path(__file__).with_name("STAGE_ORDER.md")
KNOBS = {"calibrator": "mse", "reduce_range": True}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only write STAGE_ORDER.md, from the record")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher")
    parser.add_argument("--student", default="mobilenet")
    parser.add_argument("--prune", default="0.5", help="part of the channels to remove")
    parser.add_argument("--images", type=int, default=4000, help="train images, even over the classes")
    parser.add_argument("--epochs", type=int, default=8, help="of distillation")
    parser.add_argument(
        "--recover-epochs", type=int, default=2, help="of recovery, and of training through the rounding"
    )
    parser.add_argument("--record", type=Path, default=record.RECORDS / "stage_order.json", help="file to write")
    return parser.parse_args()


def job_of(options: argparse.Namespace, store: Store) -> Job:
    values = {
        **cifar10(options.data, options.teacher_checkpoint), "student": options.student, "epochs": options.epochs,
        "kd": ["kd"], "recover_epochs": options.recover_epochs, "prune": options.prune, "runtimes": ["ort_cpu"],
        "quantize": f"int8_qat:qat_share={options.recover_epochs / options.epochs}",
    }  # fmt: skip
    return job_with(values, store, options.images)


def measured(options: argparse.Namespace, store: Store) -> list[dict[str, Any]]:
    job = job_of(options, store)
    teachers = (training_steps.teacher_step(job, store, 0),)
    (student,) = [one.step for one in schedules.students(job, store, teachers)]
    whole = artifact_of(job, store, "whole", student)
    cut = pruning_steps.cut_step(job, store, student, 1, None)
    recovered = pruning_steps.pruned(job, store, student, teachers)
    files = {"float, recovered": artifact_of(job, store, "recovered", recovered)}

    def in_int8(step: Step, *, trained: bool) -> Artifact:
        parent = artifact_of(job, store, "parent", step)
        place = int8_steps.Place(job=job, store=store, parent=parent, teachers=teachers)
        how = int8_steps.How(parent=parent, network=step, knobs=KNOBS, trained=trained)
        if trained:  # what it lost by the cut is to be learnt from the whole student
            place = dataclasses.replace(place, parent=whole)
        return int8_steps.made(place, how).artifact

    files["recovered, then int8"] = in_int8(recovered, trained=False)
    files["int8 at once"] = in_int8(cut, trained=False)
    files["int8, then trained"] = in_int8(cut, trained=True)
    report = job.splits.report
    base = artifact_steps.answers_step(job, store, whole, "ort_cpu", report)
    rows = [
        {"order": "whole student, float", "size_bytes": whole.size_bytes, **evaluate.counts(base, report.labels, base)}
    ]
    for name, file in files.items():
        logits = artifact_steps.answers_step(job, store, file, "ort_cpu", report)
        rows.append({"order": name, "size_bytes": file.size_bytes, **evaluate.counts(logits, report.labels, base)})
    return rows


def page(found: dict[str, Any]) -> str:
    parts = [
        "# Whether the order of stages matters", "",
        f"Made by `stage_order.py --page` from `records/stage_order.json`: {found['student']}, {found['images']} train "
        f"images, {found['epochs']} epochs of distillation from resnet56, {found['prune']} of the channels removed by "
        f"`magnitude`, {found['recover_epochs']} epochs of recovery or of training through the rounding; top-1 on "
        "CIFAR-10's test images, one seed. Points are lost against the whole float student on the same images (95 %).",
        "", "| order | top-1 % | points lost | bytes |", "| --- | ---: | --- | ---: |",
    ]  # fmt: skip
    for number, row in enumerate(found["rows"]):
        lost = in_words(row) if number else ""
        parts.append(f"| {row['order']} | {100 * row['correct'] / row['n']:.2f} | {lost} | {row['size_bytes']:,} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    options = arguments()
    if options.page:
        write_atomic(PAGE, page(read_json(options.record)).encode())
        return record.CLAIM_HOLDS
    rows = measured(options, Store.default())
    facts = {key: getattr(options, key) for key in ("student", "prune", "images", "epochs", "recover_epochs")}
    record.write(options.record, {**facts, "rows": rows})
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
