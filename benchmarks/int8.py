"""What int8 costs and gains on mobile networks: the float file, onnxruntime's own defaults, and the ladder.

Each network is distilled from resnet56 on CIFAR-10 images for a few epochs, exported, and quantized twice: by
`quantize_static` as the library has it, and by `--quantize int8_auto`. Top-1 is counted on all test images by the files
in ort_cpu, paired with the float file's; speed is that over the float file, paired by round. A script that was stopped
goes on: finished steps come from the store, finished networks from the record. INT8.md is made from the record by
`int8.py --page`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import record
from experiments import cifar10
from learning import job_with
from onnxruntime import quantization
from pruning import artifact_of

from compress import (
    artifact_steps,
    environment,
    evaluate,
    judge,
    ladder,
    payoff,
    qdq,
    schedules,
    stats,
    training_steps,
)
from compress.plan import Job
from compress.progress import say
from compress.report.rows_ladder import ladder_rows
from compress.store import Store, file_digest, read_json, write_atomic, write_json
from compress.types import Artifact
from compress.worker import to_inputs

STUDENTS = (
    "mobilenet_v1:width=0.5", "mobilenet", "mobilenet_v3_small", "shufflenet_v1:width=0.5", "shufflenet", "squeezenet",
    "mnasnet", "resnet8", "resnet20",
)  # fmt: skip
MOST_LOST_POINTS = 0.5
EMULATED_IMAGES = 4000  # of the other kind of CPU: its drop is held to the same bound
PAGE = Path(__file__).with_name("INT8.md")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=STUDENTS, help="networks [all that are listed]")
    parser.add_argument("--page", action="store_true", help="only write INT8.md, from the record")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher")
    parser.add_argument("--images", type=int, default=4000, help="train images, even over the classes")
    parser.add_argument("--epochs", type=int, default=8, help="of distillation")
    parser.add_argument("--tier", default="quick", help="of the benchmark")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "int8.json", help="file to write")
    return parser.parse_args()


def job_of(options: argparse.Namespace, store: Store, student: str) -> Job:
    values = {
        **cifar10(options.data, options.teacher_checkpoint), "student": student, "epochs": options.epochs,
        "kd": ["kd"], "tier": options.tier, "runtimes": ["ort_cpu"], "max_drop": MOST_LOST_POINTS,
        "quantize": "int8_auto",
    }  # fmt: skip
    return job_with(values, store, options.images)


class Reader(quantization.CalibrationDataReader):
    """The calibration images, as the library asks for them."""

    def __init__(self, images: Any):
        self.batches = iter(to_inputs(images[i : i + 16]) for i in range(0, len(images), 16))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def by_default(job: Job, parent: Artifact, folder: Path) -> Artifact:
    """What `quantize_static` makes when it is given nothing but the file and the images."""
    path = folder / "naive.onnx"
    qdq.prepare(parent.path, folder / "prepared.onnx")
    quantization.quantize_static(folder / "prepared.onnx", path, Reader(job.splits.calibrate.images))
    facts = {"digest": file_digest(path), "parameters": parent.parameters, "macs": parent.macs}
    return artifact_steps.onnx_artifact(job, "naive", path, "int8", facts)


def row_of(options: argparse.Namespace, store: Store, name: str) -> dict[str, Any]:
    job = job_of(options, store, name)
    teachers = (training_steps.teacher_step(job, store, 0),)
    (student,) = [one.step for one in schedules.students(job, store, teachers)]
    parent, report = artifact_of(job, store, "float", student), job.splits.report
    expected = artifact_steps.answers_step(job, store, parent, "ort_cpu", report)
    row = {
        "student": name, "parameters": parent.parameters, "float_bytes": parent.size_bytes,
        "float": evaluate.counts(expected, report.labels),
    }  # fmt: skip
    best, rungs = ladder.climb(job, store, parent, student, teachers)
    with tempfile.TemporaryDirectory() as folder:
        for kind, file in (("naive", by_default(job, parent, Path(folder))), ("ladder", best.artifact)):
            logits = artifact_steps.answers_step(job, store, file, "ort_cpu", report)
            row[kind] = {
                "counts": evaluate.counts(logits, report.labels, expected), "size_bytes": file.size_bytes,
                "speedup": payoff.speedup(job, store, parent, file), "kernels": qdq.kernels(file.path, Path(folder)),
                "elsewhere": judge.elsewhere(job, store, [(file, parent)]),
            }  # fmt: skip
    return {**row, "rungs": rungs, "select": best.counts}


def lost_points(counts: dict[str, Any]) -> tuple[float, float, float]:
    """(estimate, low, high) of the top-1 lost against the float file, in points, on the same images."""
    gain, low, high = stats.paired_difference(counts["baseline_only"], counts["this_only"], counts["n"])
    return -100 * gain, -100 * high, -100 * low


def elsewhere(row: dict[str, Any], kind: str) -> str:
    """What the file loses on the other kind of CPU, in words for a table."""
    found = next((each for each in row[kind]["elsewhere"] if each["how"] == "emulated"), None)
    if found is None:
        # a file of the defaults has signed activations; records of before they were emulated say nothing of them
        return "the same" if kind == "ladder" else "not emulated"
    return in_words({"baseline_only": found["parent_only"], "this_only": found["this_only"], "n": found["n"]})


def in_words(counts: dict[str, Any]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*lost_points(counts))


def worst(rows: list[dict[str, Any]]) -> tuple[float, float | None]:
    """The most points that the ladder lost: measured, and emulated for the other kind of CPU, None where no file can
    give other answers there.
    """
    emulated = [
        100 * (each["parent_only"] - each["this_only"]) / each["n"]
        for row in rows
        for each in row["ladder"]["elsewhere"]
        if each["how"] == "emulated"
    ]
    return max(lost_points(row["ladder"]["counts"])[0] for row in rows), max(emulated, default=None)


def holds(rows: list[dict[str, Any]]) -> bool:
    return max(points for points in worst(rows) if points is not None) <= MOST_LOST_POINTS


def page(found: dict[str, Any]) -> str:
    machine = found["machine"]
    clips = "are clipped to 16 bits" if found["saturates"] else "are not clipped"
    other = "exact sums, as with VNNI" if found["saturates"] else "clipped sums, as without VNNI"
    parts = [
        "# What int8 costs and gains here", "",
        f"Made by `int8.py --page` from `records/int8.json`: {found['images']} train images, {found['epochs']} epochs "
        "of distillation from resnet56, top-1 of the files in ort_cpu on CIFAR-10's test images, one seed. Points are "
        "lost against the float file on the same images (95 %); speed-ups are over the float file, paired by round.",
        "", f"{machine['cpu_model']}: sums of two int8 products {clips} there; `elsewhere` is emulated on "
        f"{EMULATED_IMAGES} of the test images: {other}. `naive` is onnxruntime's `quantize_static` with its "
        f"defaults; the ladder was allowed {MOST_LOST_POINTS:g} points on `select`.", "",
        "| network | float top-1 % | naive: points lost | naive, elsewhere | ladder: points lost | ladder, elsewhere | "
        "rungs that helped | bytes, float to ladder | speed-up: naive | ladder | int8 layers |",
        "| --- | ---: | --- | --- | --- | --- | --- | --- | --- | --- | ---: |",
    ]  # fmt: skip
    for row in found["rows"]:
        lost = [text for kind in ("naive", "ladder") for text in (in_words(row[kind]["counts"]), elsewhere(row, kind))]
        helped = [r["what"] for r in ladder_rows({"stages": [{"ladder": row["rungs"]}]}) if r["word"] == "better"]
        speeds = [
            "{ratio:.2f}x ({low:.2f} to {high:.2f})".format(**row[kind]["speedup"]) for kind in ("naive", "ladder")
        ]
        ran = row["ladder"]["kernels"]
        parts.append(
            f"| `{row['student']}` | {100 * row['float']['correct'] / row['float']['n']:.2f} | {' | '.join(lost)} "
            f"| {helped[-1]} | {row['float_bytes']:,} to {row['ladder']['size_bytes']:,} | {speeds[0]} | {speeds[1]} "
            f"| {ran['int8']} of {ran['int8'] + ran['float']} |"
        )
    measured, emulated = worst(found["rows"])
    elsewhere_words = "none of its files is computed otherwise on the other kind of CPU"
    if emulated is not None:
        elsewhere_words = f"{emulated:.2f} emulated for the other kind of CPU"
    parts += [
        "",
        f"The most that the ladder lost on {len(found['rows'])} networks: {measured:.2f} points measured (allowed: "
        f"{MOST_LOST_POINTS:g}); {elsewhere_words}.",
    ]
    if left := [name for name in STUDENTS if name not in {row["student"] for row in found["rows"]}]:
        parts += ["", f"Not run yet: {', '.join(left)}."]
    return "\n".join(parts) + "\n"


def main() -> int:
    options = arguments()
    if options.page:
        found = read_json(options.record)
        write_atomic(PAGE, page(found).encode())
        return record.CLAIM_HOLDS if holds(found["rows"]) else record.CLAIM_FAILS
    judge.EMULATED_IMAGES = EMULATED_IMAGES
    partial, store = options.record.with_suffix(".partial.json"), Store.default()
    rows = read_json(partial)["rows"] if partial.exists() else []
    for name in options.students:
        if name not in {row["student"] for row in rows}:
            say(name)
            rows.append(row_of(options, store, name))
            write_json(partial, {"rows": rows})
    saturates = environment.int8_saturates(environment.capture())
    facts = {key: getattr(options, key) for key in ("images", "epochs", "tier")}
    record.write(options.record, {**facts, "saturates": saturates, "rows": rows})
    partial.unlink()
    return record.CLAIM_HOLDS if holds(rows) else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
