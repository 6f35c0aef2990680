"""Distillation methods on one teacher and one mobile student, on real images: top-1 of each, paired by seed.

Every method trains the same student from the same initial weights on the same images in the same order, seed by seed;
the difference from plain cross-entropy is paired over the seeds, with a 95 % interval (Student's t). The named methods
get `--seeds` seeds, the others one, and are labelled so. Each result is written as it comes; a script that was stopped
goes on where it was. The published column is another data set, CIFAR-100, and another teacher.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

from compress import catalog, data_source, dataset, plan, randomness, recipe, train, training_steps
from compress.errors import InputRejected, UsageError
from compress.plan import Job
from compress.progress import duration, say
from compress.stats import t_quantile
from compress.store import Step, Store, read_json
from compress.types import Splits

BASELINE = "cross_entropy"
PAIRED = (BASELINE, "kd", "fitnet", "attention", "similarity", "rkd", "crd", "dkd", "dist")
# top-1 % of MobileNetV2 taught by VGG13 on CIFAR-100, 240 epochs: the tables of RepDistiller (last epoch) and of
# mdistiller (DKD, best epoch) and the logit standardisation paper
PUBLISHED = {
    BASELINE: 64.60, "kd": 67.37, "fitnet": 64.14, "attention": 59.40, "similarity": 66.30, "vid": 65.56, "rkd": 64.52,
    "pkt": 67.13, "factor": 61.78, "nst": 58.16, "crd": 69.73, "dkd": 69.71,
}  # fmt: skip
LEFT_OUT = ("soft_tree",)  # for trees


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's images")
    parser.add_argument("--teacher-checkpoint", type=Path, required=True, help="weights of the resnet56 teacher")
    parser.add_argument("--images", type=int, default=10_000, help="train images, even over the classes [10000]")
    parser.add_argument("--epochs", type=int, default=6, help="[6]")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the paired methods [5]")
    parser.add_argument("--student", default="mobilenet", help="[mobilenet]")
    parser.add_argument("--methods", default="", help="only these, apart by commas [all]")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "distillation_table.json", help="file to write")
    options = parser.parse_args()
    for name, low in (("images", 100), ("epochs", 1), ("seeds", 2)):
        if getattr(options, name) < low:
            raise UsageError(f"--{name} must be at least {low}, got {getattr(options, name)}")
    return options


def fewer(splits: Splits, count: int) -> Splits:
    """The same splits with `count` train images, each class as often as any other; the same ones every time."""
    train_split = splits.train
    if count >= len(train_split.labels):
        return splits
    fraction = count / len(train_split.labels)
    _, ids = data_source.stratified(train_split.labels, fraction, randomness.derive("distillation table"))
    images, labels = train_split.images[ids], train_split.labels[ids]
    digest = dataset.digest(images, labels, train_split.class_names)
    return dataclasses.replace(
        splits, train=dataclasses.replace(train_split, images=images, labels=labels, digest=digest)
    )


def job_for(options: argparse.Namespace, splits: Splits, method: str, seed: int) -> Job:
    values = {
        "data": options.data, "teacher": ["resnet56"], "teacher_checkpoint": [str(options.teacher_checkpoint)],
        "teacher_mean": [".485,.456,.406"], "teacher_std": [".229,.224,.225"], "student": options.student,
        "kd": [method], "epochs": options.epochs, "seed": seed, "batch_size": 64,
    }  # fmt: skip
    return plan.make(recipe.from_values(values), splits)


def trained(job: Job, store: Store, teacher: Step) -> tuple[int, float]:
    """(right answers on the report split, seconds of training) of one student. Finished ones are found in the store."""
    statistics = job.splits.train.mean, job.splits.train.std
    student = training_steps.build(job, job.student.spec, *statistics, job.recipe.seed)
    training = training_steps.plan_for(job, job.recipe.epochs, job.recipe.learning_rate, views=job.recipe.views)
    step = training_steps.train_step(job, store, "distilled", student, (teacher,), job.methods, training)
    report = job.splits.report
    answers = train.predict(training_steps.trained(job, step), report.images)
    return int((answers.argmax(1) == report.labels).sum()), step.facts["seconds"]


def paired_gain(ours: list[int], baseline: list[int], images: int) -> dict[str, float]:
    """Mean difference in points of top-1 over the seeds, with a 95 % interval.

    >>> {k: round(v, 2) for k, v in paired_gain([52, 53, 54], [50, 51, 52], 100).items()}
    {'points': 2.0, 'low': 2.0, 'high': 2.0}
    """
    differences = [100 * (a - b) / images for a, b in zip(ours, baseline, strict=True)]
    mean, half = float(np.mean(differences)), 0.0
    if len(differences) > 1:
        half = (
            t_quantile(0.975, len(differences) - 1) * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
        )
    return {"points": mean, "low": mean - half, "high": mean + half}


def row(method: str, results: dict[str, dict[str, Any]], images: int) -> dict[str, Any] | None:
    """A method's line: its top-1, and its gain over the baseline on the same seeds; None without results."""
    found, baseline = results.get(method, {}), results.get(BASELINE, {})
    seeds = sorted(set(found) & set(baseline), key=int)
    if not seeds:
        return None
    correct = [found[seed]["correct"] for seed in seeds]
    gain = paired_gain(correct, [baseline[seed]["correct"] for seed in seeds], images) if len(seeds) > 1 else None
    return {
        "method": method,
        "seeds": len(seeds),
        "top1_percent": 100 * float(np.mean(correct)) / images,
        "gain": gain,
        "published_cifar100_percent": PUBLISHED.get(method),
        "seconds": float(np.median([found[seed]["seconds"] for seed in seeds])),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print("method              n  top-1 %  over cross-entropy, points     CIFAR-100, published")
    for one in rows:
        gain = one["gain"]
        words = f"{gain['points']:+5.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})" if gain else "one seed"
        published = one["published_cifar100_percent"]
        print(
            f"{one['method']:18} {one['seeds']:2}  {one['top1_percent']:6.2f}   {words:26}  "
            f"{'' if published is None else f'{published:.2f}'}"
        )


def main() -> int:
    options = arguments()
    store = Store.default()
    splits = fewer(plan.load_data(recipe.from_values({"data": options.data}), store), options.images)
    names = [name for name in catalog.names("methods") if name not in LEFT_OUT]
    wanted = options.methods.split(",") if options.methods else [*PAIRED, *(n for n in names if n not in PAIRED)]
    setting = {k: getattr(options, k) for k in ("images", "epochs", "seeds", "student")}
    results: dict[str, dict[str, Any]] = {}
    if options.record.exists():
        before = read_json(options.record)
        if before["setting"] != setting:
            raise InputRejected(f"{options.record} was made with {before['setting']}", hint="name another --record")
        results = before["results"]
    # seed by seed, so that a table that is stopped early is paired as far as it goes
    todo = [(m, seed) for seed in range(options.seeds) for m in wanted if seed == 0 or m in PAIRED]
    teacher = training_steps.teacher_step(job_for(options, splits, "kd", 0), store, 0)
    started, images = time.monotonic(), len(splits.report.labels)
    for number, (method, seed) in enumerate(todo):
        if str(seed) in results.get(method, {}):
            continue
        say(f"{method}, seed {seed} ({number + 1} of {len(todo)}, {duration(time.monotonic() - started)})")
        correct, seconds = trained(job_for(options, splits, method, seed), store, teacher)
        results.setdefault(method, {})[str(seed)] = {"correct": correct, "seconds": seconds}
        rows = [line for m in wanted if (line := row(m, results, images))]
        record.write(options.record, {"setting": setting, "report_images": images, "rows": rows, "results": results})
    show([line for m in wanted if (line := row(m, results, images))])
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
