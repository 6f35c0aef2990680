"""What distillation teaches, by paired seeds on real images: one of the experiments of `experiments.py`.

All variants of an experiment train from the same initial weights on the same images in the same order, seed by seed;
a difference is paired over the seeds, with a 95 % interval (Student's t). Answers are counted on the report split.
Each result is written as it comes; a script that was stopped goes on where it was. LEARNING.md is made from the records
by `learning.py --page`.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import experiments
import numpy as np
import record
import torch
from experiments import Experiment

from compress import data_source, dataset, plan, randomness, recipe, schedules, train, training_steps
from compress.errors import InputRejected, UsageError, unknown
from compress.losses import mean_of_probabilities
from compress.plan import Job
from compress.progress import duration, say
from compress.stats import t_quantile
from compress.store import Store, digest, read_json, write_atomic
from compress.types import Splits

SHIPS = "distilled"  # the outcome that a variant's name alone means
PATHS = ("data", "teacher_checkpoint")
PAGE = Path(__file__).with_name("LEARNING.md")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = experiments.all_of("", "")
    names = "\n".join(f"  {name:14} {one.about}" for name, one in known.items())
    parser.epilog = "experiments:\n" + names
    parser.add_argument("experiment", nargs="?", default="", help="one of those below")
    parser.add_argument("--page", action="store_true", help="only write LEARNING.md anew, from the records")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images, for the experiments on it")
    parser.add_argument("--teacher-checkpoint", default="", help="weights of the resnet56 teacher, for these")
    parser.add_argument("--images", type=int, help="train images, even over the classes [the experiment's]")
    parser.add_argument("--epochs", type=int, help="[the experiment's]")
    parser.add_argument("--seeds", type=int, help="[the experiment's]")
    parser.add_argument("--variants", default="", help="only these, apart by semicolons [all]")
    parser.add_argument("--record", type=Path, help="file to write [records/learning_EXPERIMENT.json]")
    options = parser.parse_args()
    if options.page:
        return options
    if options.experiment not in known:
        raise unknown("experiment", options.experiment, list(known))
    for name, low in (("images", 100), ("epochs", 1), ("seeds", 1)):
        if getattr(options, name) is not None and getattr(options, name) < low:
            raise UsageError(f"--{name} must be at least {low}, got {getattr(options, name)}")
    return options


def chosen(options: argparse.Namespace) -> Experiment:
    """The experiment with what the command line changes of it."""
    found = experiments.all_of(options.data, options.teacher_checkpoint)[options.experiment]
    if not found.common["data"] or not all(found.common.get("teacher_checkpoint", ["none needed"])):
        raise UsageError(f"`{options.experiment}` needs --data CIFAR10 --teacher-checkpoint FILE (a resnet56)")
    if options.epochs:
        found = dataclasses.replace(found, common={**found.common, "epochs": options.epochs})
    changes = {key: getattr(options, key) for key in ("images", "seeds") if getattr(options, key)}
    return dataclasses.replace(found, **changes)


def fewer(splits: Splits, count: int) -> Splits:
    """The same splits with `count` train images, each class as often as any other; the same ones every time."""
    train_split = splits.train
    if not count or count >= len(train_split.labels):
        return splits
    fraction = count / len(train_split.labels)
    _, ids = data_source.stratified(train_split.labels, fraction, randomness.derive("distillation table"))
    images, labels = train_split.images[ids], train_split.labels[ids]
    name = dataset.digest(images, labels, train_split.class_names)
    return dataclasses.replace(
        splits, train=dataclasses.replace(train_split, images=images, labels=labels, digest=name)
    )  # fmt: skip


def job_with(values: dict[str, Any], store: Store, count: int) -> Job:
    """What a recipe of these values asks for, on `count` of its train images."""
    wanted = recipe.from_values(values)
    return plan.make(wanted, fewer(plan.load_data(wanted, store), count))


def outcomes(job: Job, store: Store, classes: tuple[str, ...]) -> dict[str, int]:
    """Right answers on the report split of all that the schedule makes, by stage."""
    report = job.splits.report
    teachers = tuple(training_steps.teacher_step(job, store, number) for number in range(len(job.teachers)))
    made = list(schedules.students(job, store, teachers))
    steps = {one.stage: one.step for one in made}
    if job.recipe.transfer_lacks:
        steps["corrected"] = training_steps.corrected_step(job, store, steps[SHIPS])
    answers = {stage: train.predict(training_steps.trained(job, step), report.images) for stage, step in steps.items()}
    generations = [answers[one.stage] for one in made if one.stage.startswith("generation-")]
    for count in range(2, len(generations) + 1):
        # Furlanello et al. 2018: the mean of the predictions of the generations after the first network
        answers[f"ensemble of {count}"] = mean_of_probabilities(
            torch.from_numpy(np.stack(generations[:count])).double(), 1.0
        ).numpy()
    counts = {stage: int((logits.argmax(1) == report.labels).sum()) for stage, logits in answers.items()}
    for name in classes:
        among = report.labels == report.class_names.index(name)
        for stage, logits in answers.items():
            counts[f"{stage}, of class {name}"] = int((logits.argmax(1) == report.labels)[among].sum())
    return counts


def points(ours: list[int], baseline: list[int], images: int) -> dict[str, Any]:
    """Mean difference in points of top-1 over the seeds, with a 95 % interval from two seeds on.

    >>> points([52, 53, 54], [50, 51, 53], 100)["high"] > 2
    True
    """
    differences = [100 * (a - b) / images for a, b in zip(ours, baseline, strict=True)]
    mean, count = float(np.mean(differences)), len(differences)
    found: dict[str, Any] = {"seeds": count, "points": mean, "low": None, "high": None}
    if count > 1:
        half = t_quantile(0.975, count - 1) * float(np.std(differences, ddof=1)) / math.sqrt(count)
        found |= {"low": mean - half, "high": mean + half}
    return found


class Results:
    """variant → seed → what it counted, in a record that is written after each."""

    def __init__(self, path: Path, experiment: Experiment, setting: dict[str, Any]):
        self.path, self.experiment, self.setting = path, experiment, setting
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            before = read_json(path)
            if before["setting"] != setting:
                raise InputRejected(f"{path} was made with {before['setting']}", hint="name another --record")
            self.found = before["results"]

    def add(self, variant: str, seed: int, counted: dict[str, Any]) -> None:
        self.found.setdefault(variant, {})[str(seed)] = counted
        self.write()

    def write(self) -> None:
        common = {k: v for k, v in self.experiment.common.items() if k not in PATHS}
        facts = {
            "about": self.experiment.about, "common": common, "setting": self.setting, "rows": self.rows(),
            "comparisons": self.comparisons(), "results": self.found,
        }  # fmt: skip
        record.write(self.path, facts)

    def counts(self, address: str) -> tuple[dict[str, int], int]:
        """seed → right answers at "variant" or "variant/outcome", and of how many images."""
        variant, _, outcome = address.partition("/")
        by_seed = {seed: one["outcomes"][outcome or SHIPS] for seed, one in self.found.get(variant, {}).items()}
        _, _, name = outcome.partition(", of class ")
        return by_seed, self.setting["class_images"][name] if name else self.setting["report_images"]

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for variant, by_seed in self.found.items():
            for outcome in next(iter(by_seed.values()))["outcomes"]:
                counts, images = self.counts(f"{variant}/{outcome}")
                rows.append({
                    "variant": variant, "outcome": outcome, "seeds": len(counts),
                    "top1_percent": 100 * float(np.mean(list(counts.values()))) / images,
                    "published_cifar100_percent": self.experiment.published.get(variant),
                    "seconds": float(np.median([one["seconds"] for one in by_seed.values()])),
                })  # fmt: skip
        return rows

    def comparisons(self) -> list[dict[str, Any]]:
        compared = []
        for ours, baseline in self.experiment.compared:
            (a, images), (b, _) = self.counts(ours), self.counts(baseline)
            seeds = sorted(set(a) & set(b), key=int)
            if seeds:
                difference = points([a[s] for s in seeds], [b[s] for s in seeds], images)
                compared.append({"ours": ours, "baseline": baseline, **difference})
        return compared

    def show(self) -> None:
        for row in self.rows():
            published = row["published_cifar100_percent"]
            words = f"  (CIFAR-100, published: {published:.2f})" if published else ""
            name = row["variant"] if row["outcome"] == SHIPS else f"{row['variant']}/{row['outcome']}"
            print(f"{name:52} n={row['seeds']} {row['top1_percent']:6.2f} %{words}")
        for one in self.comparisons():
            interval = "one seed" if one["low"] is None else f"{one['low']:+.2f} to {one['high']:+.2f}"
            print(f"{one['ours']} against {one['baseline']}: {one['points']:+.2f} points ({interval})")


def page(records: Path = record.RECORDS) -> str:
    """All records of learning experiments as one Markdown page."""
    parts = [
        "# What distillation teaches here", "",
        "Made by `learning.py --page` from `records/learning_*.json`, which hold every count. Variants of an experiment"
        " share data, initial weights, order and views, seed by seed; differences are paired over the seeds, with 95 %"
        " intervals (Student's t); one seed has none. Schedules are short, for two cores: read the differences, not the"
        " levels, and of these only what the interval keeps away from 0.",
    ]  # fmt: skip
    for path in sorted(records.glob("learning_*.json")):
        found = read_json(path)
        images, values = found["setting"]["images"], found["common"]
        said = "; ".join(f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items())
        parts += [
            "", f"## {found['about']}", "",
            f"{images or 'all'} train images; {found['setting']['report_images']} report images; {said or 'defaults'}. "
            f"{found['machine']['cpu_model']}, {found['machine']['cores_allowed']} of its cores allowed.",
            "", "| | seeds | top-1 % | CIFAR-100, published % |", "| --- | ---: | ---: | ---: |",
        ]  # fmt: skip
        for row in found["rows"]:
            name = row["variant"] if row["outcome"] == SHIPS else f"{row['variant']}: {row['outcome']}"
            published = row["published_cifar100_percent"]
            shown = f"{published:.2f}" if published else ""
            parts.append(f"| {name} | {row['seeds']} | {row['top1_percent']:.2f} | {shown} |")
        parts += ["", "| | against | seeds | points of top-1 (95 %) |", "| --- | --- | ---: | --- |"]
        for one in found["comparisons"]:
            interval = "" if one["low"] is None else f" ({one['low']:+.2f} to {one['high']:+.2f})"
            ours, baseline = (one[side].replace("/", ": ") for side in ("ours", "baseline"))
            parts.append(f"| {ours} | {baseline} | {one['seeds']} | {one['points']:+.2f}{interval} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    options = arguments()
    if options.page:
        write_atomic(PAGE, page().encode())
        return record.CLAIM_HOLDS
    experiment = chosen(options)
    store = Store.default()
    wanted = [name for name in options.variants.split(";") if name] or list(experiment.variants)
    for name in wanted:
        if name not in experiment.variants:
            raise unknown("variant", name, list(experiment.variants))
    base = recipe.from_values(experiment.common)
    report = plan.load_data(base, store).report
    setting = {
        "experiment": digest([{k: v for k, v in experiment.common.items() if k not in PATHS}, experiment.variants]),
        "images": experiment.images, "report_images": len(report.labels),
        "class_images": {n: int((report.labels == report.class_names.index(n)).sum()) for n in experiment.classes},
    }  # fmt: skip
    path = options.record or record.RECORDS / f"learning_{options.experiment}.json"
    results = Results(path, experiment, setting)
    paired = experiment.variants if experiment.paired is None else experiment.paired
    # seed by seed, so that an experiment that is stopped early is paired as far as it goes
    todo = [(v, seed) for seed in range(experiment.seeds) for v in wanted if seed == 0 or v in paired]
    started = time.monotonic()
    for number, (variant, seed) in enumerate(todo):
        if str(seed) in results.found.get(variant, {}):
            continue
        say(f"{variant}, seed {seed} ({number + 1} of {len(todo)}, {duration(time.monotonic() - started)})")
        values = {**experiment.common, **experiment.variants[variant], "seed": seed}
        # the split is that of one seed, so that the teacher's kept answers serve all of them
        splits = plan.load_data(recipe.from_values({**values, "seed": 0}), store)
        job = plan.make(recipe.from_values(values), fewer(splits, experiment.images))
        began = time.monotonic()
        counted = outcomes(job, store, experiment.classes)
        results.add(variant, seed, {"outcomes": counted, "seconds": round(time.monotonic() - began, 1)})
    results.write()
    results.show()
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
