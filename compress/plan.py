"""Plan: turn a recipe into a job: data loaded, names resolved, every automatic value chosen, everything checked that
can be checked before an hour of work.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import answers, catalog, dataset, environment, progress, sampling, targets, teacher_plan, transfer
from compress.catalog import Entry
from compress.errors import InputRejected, UsageError, unknown
from compress.recipe import MOST_OF_A_LAYER, Recipe, parse_prune
from compress.store import Store, file_digest, limit_bytes
from compress.targets import Target
from compress.teacher_plan import TeacherPlan
from compress.types import Dataset, Splits

# a run without --epochs sees about this many images, so that two cores finish within the hour
IMAGES_SEEN = 1_350_000
MOST_VIEWS = 16  # of an image, where the teacher's answers are kept: half of a run of 30 epochs finds them
_TOGETHER = {
    "probabilities": "the mean of their probabilities",
    "logits": "the mean of their logits",
    "random": "one of them at random each step",
}
MOST_EPOCHS, LEAST_EPOCHS = 30, 5
LARGE_TRAIN_SPLIT = 10_000
LEARNING_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """A resolved recipe with what it names."""

    recipe: Recipe
    splits: Splits
    teachers: tuple[TeacherPlan, ...]
    student: Entry
    assistants: tuple[Entry, ...]
    peers: tuple[Entry, ...]
    methods: tuple[Entry, ...]
    pruner: Entry | None
    quantizer: Entry | None
    plugins: tuple[Path, ...]
    device: str

    @property
    def round_to(self) -> int:
        """Widths that pruning leaves are multiples of this."""
        return self.recipe.prune_round_to or targets.find(self.recipe.target).round_to

    @property
    def transfer(self) -> Dataset:
        """What students learn from."""
        return self.splits.transfer or self.splits.train


def plugins_digest(job: Job) -> list[str]:
    return [file_digest(path) for path in job.plugins]


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
    splits = dataset.prepare(
        source,
        seed=recipe.seed,
        select_fraction=recipe.select_fraction,
        calibration_images=recipe.calibration_images,
    )
    if not (recipe.unlabelled or recipe.transfer_lacks):
        return splits
    more = None
    if recipe.unlabelled:
        show = progress.counter("decoding", "images")
        more = transfer.read_unlabelled(Path(recipe.unlabelled).expanduser(), splits.train, store.cache, show)
    return dataclasses.replace(splits, transfer=transfer.transfer_set(splits.train, recipe.transfer_lacks, more))


def data_spec(recipe: Recipe, plugins: tuple[Path, ...] = ()) -> str:
    """`--data` as a catalogue spec: a name stays, anything that looks like a path becomes `folder:path=…`."""
    name = recipe.data.partition(":")[0]
    if name == "folder" and "lacks=" in recipe.data:
        raise UsageError(
            "the knob `lacks` of a folder is set by --transfer-lacks",
            code="E-OPTION-CONFLICT",
            hint="give that instead",
        )
    if name in catalog.names("data", plugins):
        if recipe.image_size and name != "folder":
            raise UsageError(
                f"`image_size` is for folders of images; `{name}` has its own size", code="E-OPTION-CONFLICT"
            )
        size = f",size={recipe.image_size}" if recipe.image_size else ""
        return recipe.data + size + (_lacks(recipe) if name == "folder" else "")
    path = Path(recipe.data).expanduser()
    if path.exists() or os.sep in recipe.data:
        if "," in recipe.data:
            raise UsageError(
                f"the path {recipe.data} holds a comma, which separates knobs",
                code="E-OPTION-VALUE",
                hint="rename the folder",
            )
        return f"folder:path={recipe.data},size={recipe.image_size}{_lacks(recipe)}"
    error = unknown("data set", name, catalog.names("data", plugins))
    refused = UsageError(
        f"{error.message}; and there is no folder {recipe.data}",
        code="E-NAME-UNKNOWN",
        hint=error.hint or "give a name, or the path of a folder DIR/{train,val,test}/CLASS/*",
    )
    refused.subject = error.subject
    raise refused


def _lacks(recipe: Recipe) -> str:
    """The knob of a folder that says which classes its train split may lack. A name with a comma, which separates
    knobs, cannot be among them.
    """
    names = [name for name in recipe.transfer_lacks if "," not in name]
    return f",lacks={';'.join(names)}" if names else ""


def make(recipe: Recipe, splits: Splits, plugins: tuple[Path, ...] = ()) -> Job:
    """Resolve every name and automatic value. Raises UsageError naming the key."""
    learnt_from = splits.transfer or splits.train
    teachers = teacher_plan.resolve(recipe, splits.train, plugins)
    _check_classes(recipe, splits, teachers)
    overrides = {"width": recipe.width} if recipe.width else {}
    student = catalog.load("nets", recipe.student, plugins, overrides)
    if recipe.width and not hasattr(student.config, "width"):
        raise UsageError(
            f"--width: `{student.name}` has no width multiplier",
            code="E-OPTION-CONFLICT",
            hint="leave --width away, or --width 0 over a recipe's",
        )
    methods = tuple(catalog.load("methods", spec, plugins) for spec in recipe.kd)
    assistants, peers = (
        tuple(catalog.load("nets", spec, plugins) for spec in specs) for specs in (recipe.assistant, recipe.peer)
    )
    pruner = _pruner(recipe, plugins)
    target = targets.find(recipe.target)
    quantizer = _quantizer(recipe, target, plugins)
    if calibrates(quantizer):
        _refuse_leaked_images(splits)
    for name in recipe.runtimes:
        catalog.load("runtimes", name, plugins)
    refuse_threads(recipe.threads, environment.allowed_threads())
    resolved = dataclasses.replace(
        recipe,
        teacher=tuple(teacher.spec for teacher in teachers),
        student=student.spec,
        width=0.0,  # the student's spec holds it now
        kd=tuple(m.spec for m in methods),
        assistant=tuple(entry.spec for entry in assistants),
        peer=tuple(entry.spec for entry in peers),
        pruner=pruner.spec if pruner else recipe.pruner,
        quantize=quantizer.label if quantizer else "",  # what the target sets, another target may set otherwise
        **_chosen_from(catalog.load("data", data_spec(recipe, plugins), plugins), recipe, learnt_from),
    )
    return Job(
        recipe=resolved,
        splits=splits,
        teachers=teachers,
        student=student,
        assistants=assistants,
        peers=peers,
        methods=methods,
        pruner=pruner,
        quantizer=quantizer,
        plugins=plugins,
        device=_device(recipe.device),
    )


def _chosen_from(data: Entry, recipe: Recipe, learnt_from: Dataset) -> dict[str, Any]:
    """How to train and measure: as the recipe says, else as the data's own module, else by the number of images."""
    images, own = len(learnt_from.labels), vars(data.module)
    automatic = max(LEAST_EPOCHS, min(MOST_EPOCHS, round(IMAGES_SEEN / images)))
    epochs = recipe.epochs or own.get("EPOCHS", automatic)
    usual_batch = own.get("BATCH_SIZE", 128 if images >= LARGE_TRAIN_SPLIT else 32)
    return {
        "epochs": epochs,
        "teacher_epochs": recipe.teacher_epochs or own.get("TEACHER_EPOCHS", automatic),
        "recover_epochs": recipe.recover_epochs or max(1, round(epochs / 4)),
        "batch_size": min(images, recipe.batch_size or usual_batch),
        "learning_rate": recipe.learning_rate or own.get("LEARNING_RATE", LEARNING_RATE),
        "views": recipe.views or _views(recipe, learnt_from, epochs),
        "tier": own.get("TIER", "quick") if recipe.tier == "auto" else recipe.tier,
    }


def refuse_threads(asked: tuple[str, ...], allowed: int) -> None:
    """Raises UsageError for more threads than may be kept busy (0: the machine does not say): they would wait for each
    other, and the number would be of no machine that has so many cores.
    """
    most = max(map(int, asked))
    if 0 < allowed < most:
        raise UsageError(
            f"{most} threads are asked for, and {allowed} may be kept busy there (affinity and quota)",
            code="E-OPTION-VALUE",
            hint=f"at most {allowed}: --threads {allowed}, or of a run --set threads={allowed}",
        )


def calibrates(quantizer: Entry | None) -> bool:
    """Whether the quantizer looks at images."""
    return quantizer is not None and getattr(quantizer.module, "CALIBRATES", True)


def _refuse_leaked_images(splits: Splits) -> None:
    """Raises InputRejected where int8 would be calibrated on images that it is judged by."""
    judged = set(dataset.contents(splits.report.images))
    leaked = sum(image in judged for image in dataset.contents(splits.calibrate.images))
    if leaked:
        raise InputRejected(
            f"{leaked} of the {len(splits.calibrate.labels)} train images that would calibrate int8 are also in the "
            "test set, pixel for pixel: its accuracy there would not be that on new images",
            code="E-DATA-LEAK",
            hint="take the copies out of train or out of test; another --seed draws other images to calibrate with",
        )


def _quantizer(recipe: Recipe, target: Target, plugins: tuple[Path, ...]) -> Entry | None:
    """The quantizer, its knobs the target's unless the user set them."""
    if not recipe.quantize:
        return None
    entry = catalog.load("quantizers", recipe.quantize, plugins, defaults=target.knobs())
    if hasattr(entry.module, "check"):
        entry.module.check(entry.config)
    return entry


def _pruner(recipe: Recipe, plugins: tuple[Path, ...]) -> Entry | None:
    """The pruner, where there is something to prune. Raises UsageError for a target that is not its own."""
    target = parse_prune(recipe.prune)
    if target is None:
        return None
    entry = catalog.load("pruners", recipe.pruner, plugins)
    kind, value = target
    if hasattr(entry.module, "masks") and kind != "channels":
        raise UsageError(
            f"--prune {recipe.prune}: `{entry.name}` sets single weights to zero, which leaves {kind} as they are",
            code="E-PRUNE-PRUNER",
            hint="give the part of the weights, as in --prune 0.8, or take --pruner magnitude",
        )
    if hasattr(entry.module, "masks") and (recipe.prune_scope, recipe.prune_round_to) != ("global", 0):
        raise UsageError(
            f"prune_scope and prune_round_to are for channels: `{entry.name}` looks at single weights",
            code="E-PRUNE-PRUNER",
        )
    if kind == "latency" and recipe.prune_steps > 1:
        raise UsageError(
            f"--prune {recipe.prune}: a latency is searched in one step, prune_steps is {recipe.prune_steps}",
            code="E-PRUNE-PRUNER",
            hint="take --set prune_steps=1, or --prune macs=0.5",
        )
    if hasattr(entry.module, "check"):
        entry.module.check(entry.config, value, recipe.prune_steps)
    if not hasattr(entry.module, "masks") and kind == "channels" and value > MOST_OF_A_LAYER:
        raise UsageError(
            f"--prune {recipe.prune} would leave layers empty: at least {1 - MOST_OF_A_LAYER:.0%} of each layer stays",
            code="E-PRUNE-VALUE",
            hint=f"prune at most {MOST_OF_A_LAYER:g}, or take a smaller --width",
        )
    return entry


def _check_classes(recipe: Recipe, splits: Splits, teachers: tuple[TeacherPlan, ...]) -> None:
    """Raises InputRejected where a class that students do not see cannot be taught or corrected."""
    names = splits.train.class_names
    for name in recipe.transfer_lacks:
        label = names.index(name)
        if any(teacher.file is None for teacher in teachers) and not (splits.train.labels == label).any():
            raise InputRejected(
                f"train has no images of the class `{name}`, so a teacher that is trained here would not know it",
                code="E-TRANSFER-IMAGES",
                hint="name one that does, with --teacher-checkpoint, or an ONNX file with --teacher",
            )
        if not (splits.select.labels == label).any():
            raise InputRejected(
                f"there is no image of the class `{name}` to choose the correction of its bias by: select has none",
                code="E-TRANSFER-IMAGES",
                hint="give the folder both val (for choices) and test (for the report), with images of all classes",
            )


def _views(recipe: Recipe, train: Dataset, epochs: int) -> int:
    """Where the teacher's answers are kept one view an epoch, so that the next run sees the same ones, up to a number
    beyond which more hardly teach; fewer where an image has fewer views that differ. Endless, with nothing kept, where
    they would fill more than a quarter of the store, and where images are mixed: no mixture comes twice.
    """
    views = min(epochs, MOST_VIEWS, sampling.variants(train))
    fits = answers.bytes_needed(len(train.labels), len(train.class_names), views) < limit_bytes() / 4
    return views if recipe.keep_answers and fits and not recipe.mixup else sampling.VIEW_COUNT


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no CUDA device here", code="E-DEVICE", hint="leave --device away, or use cpu"
        )
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
        *([f"transfer {_transfer(job)}"] if splits.transfer else []),
        *(f"teacher  {_source(teacher, recipe)}" for teacher in job.teachers),
        *([f"together {_TOGETHER[recipe.ensemble]}"] if len(job.teachers) > 1 else []),
        *(f"assist   {entry.label}: {recipe.epochs} epochs of {methods}" for entry in job.assistants),
        f"student  {job.student.label}{_fitted(job)}: {recipe.epochs} epochs of {methods}"
        + "".join(f", together with {entry.label}" for entry in job.peers),
        *([f"again    {recipe.generations} generations" + " at most" * recipe.refine] if recipe.generations else []),
    ]
    if recipe.mixup:
        lines.append(f"mixup    {recipe.mixup:.0%} of the images, mixed with another, without a label")
    if recipe.pairing != ("stride",):
        lines.append(f"pairing  {'; '.join(recipe.pairing)}")
    if job.pruner:
        lines.append(
            f"prune    {pruning_words(recipe, job.pruner)} by {job.pruner.label}, {recipe.recover_epochs} epochs"
            + (f" in {recipe.prune_steps} steps" if recipe.prune_steps > 1 else "")
        )
    if recipe.target != "generic":
        lines.append(f"target   {recipe.target}: {targets.find(recipe.target).about}")
    if job.quantizer:
        calibrated = f", calibrated on {len(splits.calibrate.labels)} train images"
        lines.append(f"quantize {job.quantizer.label}" + calibrated * calibrates(job.quantizer))
    lines.append(
        f"measure  {', '.join(recipe.runtimes)}; tier {recipe.tier}; threads {', '.join(recipe.threads)}; "
        f"seed {recipe.seed}"
    )
    return lines


def warn_of_few_images(job: Job) -> None:
    """Ranges of few images are no more than theirs."""
    count = len(job.splits.calibrate.labels)
    if calibrates(job.quantizer) and count < dataset.MIN_CALIBRATION_IMAGES:
        progress.say(
            f"warning: only {count} images to calibrate with; {dataset.MIN_CALIBRATION_IMAGES} give steadier ranges"
        )


def pruning_words(recipe: Recipe, pruner: Entry) -> str:
    """What `prune` asks for: `50% of the channels`, `to 50% of the macs`."""
    kind, value = parse_prune(recipe.prune) or ("channels", 0.0)
    what = "weights" if hasattr(pruner.module, "masks") else "channels"
    return f"{value:.0%} of the {what}" if kind == "channels" else f"to {value:.0%} of the {kind}"


def _transfer(job: Job) -> str:
    lacks = f", without {', '.join(job.recipe.transfer_lacks)}" if job.recipe.transfer_lacks else ""
    return f"{len(job.transfer.labels)} images{lacks}, {int((job.transfer.labels < 0).sum())} without a label"


def _source(teacher: TeacherPlan, recipe: Recipe) -> str:
    if not teacher.entry:
        return f"the ONNX file {teacher.file}: logits only"
    made = f"weights from {teacher.file}" if teacher.file else f"{recipe.teacher_epochs} epochs"
    return f"{teacher.label}: {made}"


def _fitted(job: Job) -> str:
    describe_net: Any = getattr(job.student.module, "describe", None)
    return f" ({describe_net(job.student.config, job.splits.train.input_shape)})" if describe_net else ""
