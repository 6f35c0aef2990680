"""What pruning costs and gains: accuracy and measured latency at several ratios, three criteria against chance.

A mobile student is distilled from resnet56 on CIFAR-10 images, then pruned by each criterion at each ratio and
recovered by the same teacher for the same number of epochs. Top-1 is counted on the report split by the exported file
in ort_cpu; all files of a student are timed in one interleaved session. Finished trainings come from the store, so that
a script that was stopped goes on where it was. PRUNING.md and its picture are made from the records by `pruning.py
--page`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import record
from experiments import cifar10
from learning import job_with

from compress import artifact_steps, measuring, pruning_steps, schedules, stats, training_steps
from compress.plan import Job
from compress.progress import say
from compress.report import svg
from compress.store import Step, Store, read_json, write_atomic
from compress.types import Artifact

STUDENTS = ("mobilenet", "shufflenet")
CRITERIA = ("magnitude", "bn_scale", "taylor", "random")
RATIOS = (0.25, 0.5, 0.7)
PAGE, PICTURE = (Path(__file__).with_name(name) for name in ("PRUNING.md", "pruning.svg"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", nargs="?", default="mobilenet", choices=STUDENTS)
    parser.add_argument("--page", action="store_true", help="only write PRUNING.md and its picture, from the records")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher")
    parser.add_argument("--images", type=int, default=4000, help="train images, even over the classes")
    parser.add_argument("--epochs", type=int, default=8, help="of distillation")
    parser.add_argument("--recover-epochs", type=int, default=2, help="of recovery")
    parser.add_argument("--tier", default="quick", help="of the benchmark")
    parser.add_argument("--record", type=Path, help="file to write [records/pruning_STUDENT.json]")
    return parser.parse_args()


def job_of(options: argparse.Namespace, store: Store, pruner: str, ratio: float) -> Job:
    values = {
        **cifar10(options.data, options.teacher_checkpoint), "student": options.student, "epochs": options.epochs,
        "kd": ["kd"], "recover_epochs": options.recover_epochs, "prune": f"{ratio:g}", "pruner": pruner,
        "tier": options.tier, "runtimes": ["ort_cpu"], "max_drop": 100,
    }  # fmt: skip
    return job_with(values, store, options.images)


def artifact_of(job: Job, store: Store, stage: str, step: Step) -> Artifact:
    exported = artifact_steps.export_step(job, store, stage, step)
    return artifact_steps.onnx_artifact(job, stage, exported.folder / "model.onnx", "float32", exported.facts)


def measured(options: argparse.Namespace, store: Store) -> list[dict[str, Any]]:
    """One row a file: the whole student, then each criterion at each ratio."""
    whole = job_of(options, store, "magnitude", RATIOS[0])
    teachers = (training_steps.teacher_step(whole, store, 0),)
    (student,) = [one.step for one in schedules.students(whole, store, teachers)]
    artifacts = {("whole", 0.0): artifact_of(whole, store, "whole", student)}
    for ratio in RATIOS:
        for criterion in CRITERIA:
            say(f"{options.student}, {criterion}, {ratio:g}")
            job = job_of(options, store, criterion, ratio)
            step = pruning_steps.pruned(job, store, student, teachers)
            artifacts[criterion, ratio] = artifact_of(job, store, f"{criterion} {ratio:g}", step)
    report = whole.splits.report
    right = {
        key: int((artifact_steps.answers_step(whole, store, file, "ort_cpu", report).argmax(1) == report.labels).sum())
        for key, file in artifacts.items()
    }
    timed = measuring.latency(
        [(file, "ort_cpu") for file in artifacts.values()], ("1",), report.images, options.tier, 0, store
    )  # fmt: skip
    medians = {m.cell: [float(np.median(visit["samples_ns"])) for visit in m.visits] for m in timed}
    base = medians["whole/ort_cpu/1"]
    rows = []
    for (criterion, ratio), file in artifacts.items():
        own = medians[f"{file.stage}/ort_cpu/1"]
        ratio_of = stats.paired_ratio(base, own) if file.stage != "whole" else (1.0, 1.0, 1.0)
        rows.append({
            "criterion": criterion, "ratio": ratio, "macs": file.macs, "parameters": file.parameters,
            "size_bytes": file.size_bytes, "right": right[criterion, ratio], "images": len(report.labels),
            "latency_ns": float(np.median(own)), "round_medians_ns": own,
            "speedup": dict(zip(("ratio", "low", "high"), ratio_of, strict=True)),
        })  # fmt: skip
    control = stats.paired_ratio(base, medians["whole/ort_cpu/1" + measuring.TWIN])
    rows[0]["control"] = dict(zip(("ratio", "low", "high"), control, strict=True))
    return rows


def page() -> str:
    parts = [
        "# What pruning costs and gains here", "",
        "Made by `pruning.py --page` from `records/pruning_*.json`. Top-1 of the exported files on CIFAR-10's test"
        " images; latency in ort_cpu, one thread, all files of a student in one interleaved session, as a speed-up over"
        " the whole student paired by round with its 95 % interval. One seed, short schedules: read the differences"
        " between the criteria and chance, not the levels.", "",
        "![Top-1 against latency, by criterion](pruning.svg)",
    ]  # fmt: skip
    for name, found in _records():
        parts += [
            "", f"## {name}", "",
            f"{found['images']} train images; {found['epochs']} epochs of distillation from resnet56, "
            f"{found['recover_epochs']} of recovery (`bn_scale` trains as long once more with its penalty before). "
            f"{found['machine']['cpu_model']}.", "",
            "| channels removed | criterion | top-1 % | MMAC | bytes | latency | speed-up (95 %) |",
            "| ---: | --- | ---: | ---: | ---: | ---: | --- |",
        ]  # fmt: skip
        for row in found["rows"]:
            speed = row["speedup"]
            gain = "" if not row["ratio"] else f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"
            parts.append(
                f"| {row['ratio']:.0%} | {row['criterion']} | {100 * row['right'] / row['images']:.2f} "
                f"| {row['macs'] / 1e6:.2f} | {row['size_bytes']:,} | {row['latency_ns'] / 1e6:.3f} ms | {gain} |"
            )
        control = found["rows"][0]["control"]
        parts += ["", f"A/A control: {control['ratio']:.3f}x ({control['low']:.3f} to {control['high']:.3f})."]
    return "\n".join(parts) + "\n"


def _records() -> list[tuple[str, dict[str, Any]]]:
    paths = [record.RECORDS / f"pruning_{student}.json" for student in STUDENTS]
    return [(path.stem.removeprefix("pruning_"), read_json(path)) for path in paths if path.exists()]


COLOURS = {"whole": "#222", "magnitude": "#0072b2", "bn_scale": "#e69f00", "taylor": "#009e73", "random": "#999"}
STYLE = (
    "text{font:11.5px sans-serif;fill:#333}text[class]{stroke:none}.grid{stroke:#ddd}.axis{stroke:#333}"
    + ".line{fill:none;stroke-width:2}"
    + "".join(f".{name}{{stroke:{colour};fill:{colour}}}.line.{name}{{fill:none}}" for name, colour in COLOURS.items())
)


@svg.settings()
def picture() -> str:
    """Top-1 against latency, one panel a student, one line a criterion from the whole student on."""
    frames, width = [], 520.0
    records = _records()
    for number, (student, found) in enumerate(records):
        rows = found["rows"]
        at = {id(row): (row["latency_ns"] / 1e6, 100 * row["right"] / row["images"]) for row in rows}
        (left, right), (low, high) = (svg.spread(values) for values in zip(*at.values(), strict=True))
        x = svg.Span(low=left, high=right, title=f"{student}: median latency, ms")
        ax = svg.axes(x, svg.Span(low=low, high=high, title="top-1 %"), width=width)
        for place, criterion in enumerate(CRITERIA):
            points = [at[id(row)] for row in rows if row is rows[0] or row["criterion"] == criterion]
            svg.line(ax, *zip(*points, strict=True), f"line {criterion}")
            svg.marks(ax, "circle", [x for x, _ in points[1:]], [y for _, y in points[1:]], 3.5, criterion)
            svg.text(ax, 0.75, 0.35 - 0.06 * place, f"● {criterion}", criterion, xycoords="axes fraction")
        frames.append(f'<g transform="translate({number * width:g} 0)">{svg.inside(ax, student)}</g>')
    size = f'viewBox="0 0 {width * len(records):g} 340"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>Top-1 against latency after pruning</title>'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(frames)}</svg>\n'
    )


def main() -> int:
    options = arguments()
    if not options.page:
        facts = {key: getattr(options, key) for key in ("student", "images", "epochs", "recover_epochs", "tier")}
        path = options.record or record.RECORDS / f"pruning_{options.student}.json"
        record.write(path, {**facts, "rows": measured(options, Store.default())})
        return record.CLAIM_HOLDS
    write_atomic(PAGE, page().encode())
    write_atomic(PICTURE, picture().encode())
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
