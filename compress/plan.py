"""Plan: turn a recipe into a job: data loaded, names resolved, every automatic value chosen, everything checked that
can be checked before an hour of work.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import catalog, dataset, progress
from compress.catalog import Entry
from compress.errors import InputRejected, UsageError, unknown
from compress.recipe import Recipe, parse_channels
from compress.store import Store
from compress.types import Splits

# a run without --epochs sees about this many images, so that two cores finish within the hour
IMAGES_SEEN = 900_000
MOST_EPOCHS, LEAST_EPOCHS = 30, 5
LARGE_TRAIN_SPLIT = 10_000
# the teacher that is trained on the spot: wide for tiny images, lighter as they grow
TEACHERS_BY_SIZE = ((16, "resnet20x4"), (64, "resnet20"), (10_000, "torchvision:resnet18"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A resolved recipe with what it names."""

    recipe: Recipe
    splits: Splits
    teacher: Entry
    student: Entry
    methods: tuple[Entry, ...]
    pruner: Entry | None
    quantizer: Entry | None
    plugins: tuple[Path, ...]
    device: str


def load_data(recipe: Recipe, store: Store, plugins: tuple[Path, ...] = ()) -> Splits:
    """The splits that the recipe names. Raises UsageError or InputRejected."""
    spec = data_spec(recipe, plugins)
    entry = catalog.load("data", spec, plugins)
    source = entry.module.load(
        entry.config,
        download=recipe.download,
        on_bad=recipe.on_bad,
        cache=store.cache,
        progress=progress.counter("decoding", "images"),
    )
    if source.skipped:
        progress.say(f"left out {len(source.skipped)} unreadable files; the report lists them")
    return dataset.prepare(
        source,
        seed=recipe.seed,
        select_fraction=recipe.select_fraction,
        calibration_images=recipe.calibration_images,
    )


def data_spec(recipe: Recipe, plugins: tuple[Path, ...] = ()) -> str:
    """`--data` as a catalogue spec: a name stays, anything that looks like a path becomes `folder:path=…`."""
    name = recipe.data.partition(":")[0]
    if name in catalog.names("data", plugins):
        if recipe.image_size and name != "folder":
            raise UsageError(f"`image_size` is for folders of images; `{name}` has its own size")
        return recipe.data + (f",size={recipe.image_size}" if recipe.image_size else "")
    path = Path(recipe.data).expanduser()
    if path.exists() or os.sep in recipe.data:
        if "," in recipe.data:
            raise UsageError(f"the path {recipe.data} holds a comma, which separates knobs", hint="rename the folder")
        return f"folder:path={recipe.data},size={recipe.image_size}"
    error = unknown("data set", name, catalog.names("data", plugins))
    raise UsageError(
        f"{error.message}; and there is no folder {recipe.data}",
        hint=error.hint or "give a name, or the path of a folder DIR/{train,val,test}/CLASS/*",
    )


def make(recipe: Recipe, splits: Splits, plugins: tuple[Path, ...] = ()) -> Job:
    """Resolve every name and automatic value. Raises UsageError naming the key."""
    images = len(splits.train.labels)
    _, height, _ = splits.train.input_shape
    teacher_spec = recipe.teacher
    if teacher_spec == "auto":
        if recipe.teacher_checkpoint:
            raise UsageError(
                "--teacher-checkpoint needs --teacher: which network is it?", hint="for example --teacher resnet56"
            )
        teacher_spec = next(name for limit, name in TEACHERS_BY_SIZE if height <= limit)
    overrides = {"width": recipe.width} if recipe.width else {}
    student = catalog.load("nets", recipe.student, plugins, overrides)
    if recipe.width and not hasattr(student.config, "width"):
        raise UsageError(
            f"--width: `{student.name}` has no width multiplier",
            hint="leave --width away, or --width 0 over a recipe's",
        )
    teacher = catalog.load("nets", teacher_spec, plugins)
    methods = tuple(catalog.load("methods", spec, plugins) for spec in recipe.kd)
    pruner = catalog.load("pruners", recipe.pruner, plugins) if recipe.prune else None
    quantizer = catalog.load("quantizers", recipe.quantize, plugins) if recipe.quantize else None
    for name in recipe.runtimes:
        catalog.load("runtimes", name, plugins)
    data = catalog.load("data", data_spec(recipe, plugins), plugins)
    automatic = max(LEAST_EPOCHS, min(MOST_EPOCHS, round(IMAGES_SEEN / images)))
    epochs = recipe.epochs or getattr(data.module, "EPOCHS", automatic)
    teacher_epochs = recipe.teacher_epochs or getattr(data.module, "TEACHER_EPOCHS", automatic)
    resolved = dataclasses.replace(
        recipe,
        teacher=teacher.spec,
        student=student.spec,
        width=0.0,  # the student's spec holds it now
        kd=tuple(m.spec for m in methods),
        pruner=pruner.spec if pruner else recipe.pruner,
        quantize=quantizer.spec if quantizer else "",
        epochs=epochs,
        teacher_epochs=teacher_epochs,
        recover_epochs=recipe.recover_epochs or max(1, round(epochs / 4)),
        batch_size=min(images, recipe.batch_size or (128 if images >= LARGE_TRAIN_SPLIT else 32)),
        tier=getattr(data.module, "TIER", "quick") if recipe.tier == "auto" else recipe.tier,
    )
    _check_teacher_statistics(resolved, splits)
    return Job(
        recipe=resolved,
        splits=splits,
        teacher=teacher,
        student=student,
        methods=methods,
        pruner=pruner,
        quantizer=quantizer,
        plugins=plugins,
        device=_device(recipe.device),
    )


def _check_teacher_statistics(recipe: Recipe, splits: Splits) -> None:
    channels = splits.train.input_shape[0]
    for key in ("teacher_mean", "teacher_std"):
        values = parse_channels(getattr(recipe, key), key)
        if values and len(values) != channels:
            raise UsageError(f"`{key}` has {len(values)} values, the images have {channels} channels")
    if recipe.teacher_checkpoint and not Path(recipe.teacher_checkpoint).is_file():
        raise InputRejected(f"checkpoint {recipe.teacher_checkpoint} does not exist or is not a file")


def teacher_statistics(job: Job) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the teacher: as given, else those of the train split."""
    mean = parse_channels(job.recipe.teacher_mean, "teacher_mean")
    std = parse_channels(job.recipe.teacher_std, "teacher_std")
    return mean or job.splits.train.mean, std or job.splits.train.std


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here", hint="leave --device away, or use cpu")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def describe(job: Job) -> list[str]:
    """The plan in words, one line a stage."""
    recipe, splits = job.recipe, job.splits
    channels, height, width = splits.train.input_shape
    methods = " + ".join(method.label for method in job.methods)
    counts = ", ".join(f"{s} {len(getattr(splits, s).labels)}" for s in ("train", "select", "calibrate", "report"))
    lines = [
        f"data     {splits.train.name}: {len(splits.train.class_names)} classes, {channels}×{height}×{width}; {counts}",
        f"teacher  {job.teacher.label}: "
        + (
            f"weights from {recipe.teacher_checkpoint}"
            if recipe.teacher_checkpoint
            else f"{recipe.teacher_epochs} epochs"
        ),
        f"student  {job.student.label}{_fitted(job)}: {recipe.epochs} epochs of {methods}",
    ]
    if job.pruner:
        lines.append(
            f"prune    {recipe.prune:.0%} of the channels by {job.pruner.label}, {recipe.recover_epochs} epochs"
        )
    if job.quantizer:
        lines.append(f"quantize {job.quantizer.label}, calibrated on {len(splits.calibrate.labels)} train images")
    lines.append(
        f"measure  {', '.join(recipe.runtimes)}; tier {recipe.tier}; threads {', '.join(recipe.threads)}; "
        f"seed {recipe.seed}"
    )
    return lines


def _fitted(job: Job) -> str:
    describe_net: Any = getattr(job.student.module, "describe", None)
    return f" ({describe_net(job.student.config, job.splits.train.input_shape)})" if describe_net else ""
