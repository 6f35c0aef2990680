"""Training step, resnet56 -> resnet20, batch 64: our images a second against a plain loop's with a live teacher.

The claims: at least 1.5 times the plain loop with the best of 0, 1 and 2 DataLoader workers when our teacher is live
too, and at least 3 times with `--answers kept`, as a second run finds them. Every round visits each plain variant and,
next to it, ours; steady windows only; the ratio is paired by round, with a 95 % interval.
"""

import argparse
import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_loop
import record
import torch

from compress import catalog, distill, environment, execution, network, plan, recipe, stats, train
from compress.answers import AnswerFile
from compress.augment import Augmenter
from compress.errors import UsageError
from compress.execution import Execution
from compress.network import Network
from compress.progress import say
from compress.store import Store
from compress.teacher import Kept, Live
from compress.types import Batch, Dataset

TARGET_RATIOS = {"live": 1.5, "kept": 3.0}
BUSY_LOAD = 0.5
WORKERS = (0, 1, 2)
METHOD = "kd:temperature=4"
MOMENTUM, WEIGHT_DECAY, LEARNING_RATE = 0.9, 5e-4, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ClockedAugmenter(Augmenter):
    """Notes the clock whenever the loop asks for a batch, which is the start of a step."""

    def __init__(self, dataset: Dataset):
        super().__init__(dataset)
        self.starts_s: list[float] = []

    def batch(self, index: np.ndarray, view: np.ndarray, progress: float = 0.0) -> Batch:
        self.starts_s.append(time.perf_counter())
        return super().batch(index, view, progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What both sides train: the same nets, images, method and optimizer."""

    data: Dataset
    student: Network
    method: catalog.Entry
    training: train.Plan
    student_execution: Execution
    asked: Live | Kept  # the teacher as our side asks it
    plain: plain_loop.PlainProcess
    plain_threads: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of 32x32 images, such as CIFAR-10's [random images]")
    parser.add_argument("--teacher-checkpoint", type=Path, help="weights of the teacher [random weights]")
    parser.add_argument("--teacher", default="resnet56", help="[resnet56]")
    parser.add_argument("--student", default="resnet20", help="[resnet20]")
    parser.add_argument("--answers", choices=list(TARGET_RATIOS), default="live", help="of our teacher [live]")
    parser.add_argument("--batch-size", type=int, default=64, help="[64]")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5 for a record that counts [7]")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a window [20]")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before a window [6]")
    parser.add_argument("--plain-threads", type=int, default=0, help="the plain loop's; 0: torch's own choice [0]")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "training_step.json", help="file to write")
    options = parser.parse_args()
    for name, low in (("batch_size", 2), ("rounds", 2), ("steps", 1), ("warm_up", 0), ("plain_threads", 0)):
        if getattr(options, name) < low:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(options, name)}")
    return options


def synthetic(images: int) -> Dataset:
    """Random 32x32 colour images in ten classes."""
    draw = np.random.default_rng(0)
    return Dataset(
        name="synthetic random images",
        split="train",
        images=draw.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8),
        labels=draw.integers(0, 10, images),
        class_names=tuple(map(str, range(10))),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        may_flip=True,
        digest="",
    )


def load_data(folder: str, least_images: int) -> Dataset:
    """The train split of a folder, or random images. Raises UsageError when a window does not fit into it."""
    if not folder:
        return synthetic(max(8192, least_images))
    data = plan.load_data(recipe.from_values({"data": folder}), Store.default()).train
    if data.input_shape != (3, 32, 32) or len(data.labels) < least_images:
        raise UsageError(
            f"{folder} has {len(data.labels)} train images of shape {data.input_shape}; needed: "
            f"{least_images} of shape (3, 32, 32)",
            hint="another folder, or a smaller --steps",
        )
    return data


def prepare(options: argparse.Namespace, scratch: Path) -> tuple[Setup, dict[str, str]]:
    """The setup, and what the probe chose for our side, in words. Kept answers go to `scratch`."""
    steps = options.warm_up + options.steps + 1
    data = load_data(options.data, steps * options.batch_size)
    facts = {"class_names": data.class_names, "input_shape": data.input_shape, "mean": MEAN, "std": STD, "seed": 0}
    teacher, student = (network.build(spec, **facts) for spec in (options.teacher, options.student))
    if options.teacher_checkpoint:
        checkpoint = options.teacher_checkpoint
        network.load_state(teacher, network.read_checkpoint(checkpoint), checkpoint)
    plain_threads = options.plain_threads or torch.get_num_threads()
    probe = Augmenter(data).plain(np.arange(options.batch_size)).inputs
    choices = tuple(sorted({1, environment.allowed_threads()}))
    ours, student_facts = execution.choose(student, probe, frozen=False, threads=choices)
    frozen, teacher_facts = execution.choose(teacher, probe, frozen=True, threads=(ours.threads,))
    training = train.Plan(
        epochs=steps / (len(data.labels) // options.batch_size),
        batch_size=options.batch_size,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    asked: Live | Kept = Live(teacher.eval(), frozen)
    if options.answers == "kept":
        training = dataclasses.replace(training, views=1)
        file = AnswerFile(scratch, {}, count=len(data.labels), classes=len(data.class_names), views=1)
        asked = Kept(asked, file, seconds_per_image=1 / teacher_facts["images_per_second"])
    setting = plain_loop.PlainSetting(
        batch_size=options.batch_size,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        threads=plain_threads,
        method=METHOD,
    )
    images = plain_loop.PillowImages(data, MEAN, STD)
    setup = Setup(
        data=data,
        student=student,
        plain=plain_loop.PlainProcess(student.body, teacher.body, images, setting),
        method=catalog.load("methods", METHOD),
        training=training,
        student_execution=ours,
        asked=asked,
        plain_threads=plain_threads,
    )
    return setup, {"student": student_facts["sentence"], "teacher": teacher_facts["sentence"]}


def our_window(setup: Setup) -> list[float]:
    """Starts of the steps of one short `distill.distill`, with a fresh copy of the student."""
    augmenter = ClockedAugmenter(setup.data)
    with tempfile.TemporaryDirectory(prefix="compress-step-") as folder:
        distill.distill(
            copy.deepcopy(setup.student),
            setup.asked,
            (setup.method,),
            augmenter,
            distill.Training(
                plan=setup.training,
                name="ours",
                seed=0,
                student_execution=setup.student_execution,
                thread_choices=(setup.student_execution.threads,),
                folder=Path(folder),
            ),
        )
    return augmenter.starts_s


def seconds_per_image(starts_s: list[float], warm_up: int, steps: int, batch_size: int) -> float:
    """Over the `steps` steps after `warm_up`: from the start of the first to the start of the one after the last.

    >>> seconds_per_image([0.0, 9.0, 10.0, 11.0], warm_up=1, steps=2, batch_size=4)
    0.25
    """
    return (starts_s[warm_up + steps] - starts_s[warm_up]) / (steps * batch_size)


def measure(setup: Setup, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds an image, by plain variant: its own windows and ours beside them, one of each a round."""
    steps = options.warm_up + options.steps + 1
    rows: dict[str, dict[str, list[float]]] = {f"plain{w}": {"plain": [], "ours": []} for w in WORKERS}
    for number in range(options.rounds):
        shift = number % len(WORKERS)
        for workers in WORKERS[shift:] + WORKERS[:shift]:
            visits: dict[str, Callable[[], list[float]]] = {
                "plain": lambda w=workers: setup.plain.step_starts_s(workers=w, steps=steps),
                "ours": lambda: our_window(setup),
            }
            # which of the two comes first alternates, so that a drift of the machine favours none
            for side in sorted(visits, reverse=number % 2 == 0):
                seconds = seconds_per_image(visits[side](), options.warm_up, options.steps, options.batch_size)
                rows[f"plain{workers}"][side].append(seconds)
        say(f"round {number + 1} of {options.rounds} done")
    return rows


def verdict(low: float, high: float, target: float) -> str:
    """`holds` when the whole interval reaches the target, `fails` when none of it does, else `undecided`."""
    if low >= target:
        return "holds"
    return "fails" if high < target else "undecided"


def result(rows: dict[str, dict[str, list[float]]], target: float) -> dict[str, Any]:
    """Rates by variant and the paired ratio against the variant that was fastest here."""
    medians = {name: stats.median(row["plain"]) for name, row in rows.items()}
    best = min(medians, key=lambda name: medians[name])
    ratios = {name: stats.paired_ratio(row["plain"], row["ours"]) for name, row in rows.items()}
    ours = [seconds for row in rows.values() for seconds in row["ours"]]
    return {
        "images_per_second": {"ours": 1 / stats.median(ours)} | {name: 1 / m for name, m in medians.items()},
        "best_plain": best,
        "ratio": dict(zip(("value", "low", "high"), ratios[best], strict=True)) | {"confidence": 0.95},
        "ratio_by_variant": {name: list(values) for name, values in ratios.items()},
        "target_ratio": target,
        "verdict": verdict(ratios[best][1], ratios[best][2], target),
        "seconds_per_image": rows,
    }


def show(facts: dict[str, Any], setup: Setup) -> None:
    rates, ratio = facts["images_per_second"], facts["ratio"]
    print(f"{facts['what']}; {setup.data.name}")
    for name, rate in rates.items():
        note = setup.student_execution.describe() if name == "ours" else f"{name[-1]} DataLoader workers"
        print(f"  {name:8} {rate:8.1f} images/s   {note}")
    print(
        f"  ours / {facts['best_plain']}: {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}, 95 %, "
        f"{facts['n_rounds']} rounds); target {facts['target_ratio']}: {facts['verdict']}"
    )


def main() -> int:
    options = arguments()
    if record.LOAD_AT_START > BUSY_LOAD:
        say(f"load average {record.LOAD_AT_START:.1f}: a busy machine slows the plain loop's threads more than ours")
    with tempfile.TemporaryDirectory(prefix="compress-answers-") as scratch:
        setup, chosen = prepare(options, Path(scratch))
        for role, sentence in chosen.items():
            say(f"  {role}: {sentence}")
        if options.answers == "kept":
            our_window(setup)  # as a first run would leave them
        with setup.plain:
            rows = measure(setup, options)
    facts = {
        "what": f"training step, {options.teacher} -> {options.student}, batch {options.batch_size}, our teacher's "
        f"answers {options.answers}",
        "data": setup.data.name,
        "teacher_weights": options.teacher_checkpoint.name if options.teacher_checkpoint else "random",
        "execution": chosen,
        "plain_threads": setup.plain_threads,
        "n_rounds": options.rounds,
        "steps_per_window": options.steps,
        "warm_up_steps": options.warm_up,
    } | result(rows, TARGET_RATIOS[options.answers])
    record.write(options.record, facts)
    show(facts, setup)
    return record.CLAIM_HOLDS if facts["verdict"] == "holds" else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
