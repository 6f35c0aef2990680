"""Steps that make networks: teacher, student, pruned. Each has a key made of all that its result depends on.

Raise a step's number in VERSIONS when the same inputs would give another result.
"""

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, bias, catalog, distill, environment, export, files, live_teachers, mutual, randomness, train
from compress import network as net
from compress.augment import Augmenter
from compress.environment import versions
from compress.errors import InputRejected
from compress.network import Network
from compress.plan import Job, plugins_digest
from compress.progress import duration, say
from compress.store import Step, Store, file_digest
from compress.teacher_plan import TeacherPlan
from compress.types import Dataset

VERSIONS = {"teacher": 2, "train": 4, "corrected": 1}
RECOVERY_LEARNING_RATE = 0.3  # of the recipe's: a pruned network keeps most of what it knew


def build(job: Job, spec: str, mean: tuple[float, ...], std: tuple[float, ...], seed: int, *, size: int = 0) -> Network:
    train_split = job.splits.train
    return net.build(
        spec,
        class_names=train_split.class_names,
        input_shape=train_split.input_shape,
        mean=mean,
        std=std,
        seed=seed,
        size=size,
        plugins=job.plugins,
    )


def plan_for(job: Job, epochs: float, learning_rate: float) -> train.Plan:
    """How a teacher is trained: every epoch shows new views of the images, and labels teach."""
    recipe = job.recipe
    return train.Plan(
        epochs=epochs,
        batch_size=recipe.batch_size,
        learning_rate=learning_rate,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        weight_decay=recipe.weight_decay,
        ema=recipe.ema,
    )


def student_plan(job: Job, epochs: float, learning_rate: float) -> train.Plan:
    """How those are trained that are taught: in the recipe's views, and mixed where it says so."""
    taught = plan_for(job, epochs, learning_rate)
    return dataclasses.replace(taught, views=job.recipe.views, mixup=job.recipe.mixup)


def teacher_step(job: Job, store: Store, number: int) -> Step:
    """A teacher: the user's checkpoint or ONNX file, or a network trained on the spot."""
    teacher = job.teachers[number]
    if teacher.entry is None:
        return _onnx_step(job, store, teacher)
    if teacher.file is None:
        # two teachers of one architecture differ by their seeds
        seed = job.recipe.seed + number
        network = build(job, teacher.entry.spec, teacher.mean, teacher.std, seed)
        methods = (catalog.load("methods", "cross_entropy"),)
        plan = plan_for(job, job.recipe.teacher_epochs, job.recipe.learning_rate)
        return train_step(job, store, "teacher", network, (), methods, plan, seed=seed, dataset=job.splits.train)
    path, entry = teacher.file, teacher.entry
    packages = versions(*catalog.packages("nets", entry.spec, job.plugins))
    parts = {
        "version": VERSIONS["teacher"],
        "checkpoint": file_digest(path),
        "spec": entry.spec,
        "mean": teacher.mean,
        "std": teacher.std,
        "size": teacher.size,
        "classes": list(job.splits.train.class_names),
        "input_shape": list(job.splits.train.input_shape),
        "train": job.splits.train.digest,
        "plugins": plugins_digest(job),
        **({"versions": packages} if packages else {}),
    }

    def make(folder: Path) -> dict[str, Any]:
        network = build(job, entry.spec, teacher.mean, teacher.std, seed=0, size=teacher.size)
        net.load_state(network, net.read_checkpoint(path), path)
        images, labels = _check_sample(job.splits.train)
        accuracy = _refuse_chance(train.predict(network, images), labels, job.splits.train, path)
        net.save(network, folder)
        return {"train_sample_top1_fraction": accuracy}

    return store.step("teacher", parts, make, say)


def _onnx_step(job: Job, store: Store, teacher: TeacherPlan) -> Step:
    """The user's ONNX file, opened in a child process first, with its normalisation inside."""
    path = teacher.file
    assert path
    parts = {
        "version": VERSIONS["teacher"],
        "onnx": file_digest(path),
        "mean": teacher.mean,
        "std": teacher.std,
        "classes": list(job.splits.train.class_names),
        "train": job.splits.train.digest,
        "versions": versions("onnxruntime", "onnxruntime-gpu"),
    }

    def make(folder: Path) -> dict[str, Any]:
        train_split, copy = job.splits.train, folder / "model.onnx"
        found = files.open_onnx(path, store.root / "scratch")
        files.refuse_other_classes(found, path, train_split)
        if found.input_shape[0] != train_split.input_shape[0]:
            raise InputRejected(
                f"the teacher {path} takes images of {found.input_shape[0]} channels, the data has "
                f"{train_split.input_shape[0]}",
                code="E-INPUT-SHAPE",
                hint="take another teacher, or other images",
            )
        shutil.copyfile(path, copy)
        if teacher.mean:
            export.prepend_normalisation(copy, teacher.mean, teacher.std)
        if found.input_shape != train_split.input_shape:
            export.prepend_resize(copy, train_split.input_shape[1:])
            say(f"  teacher: images are resized to {'×'.join(map(str, found.input_shape[1:]))} inside it")
        digest = file_digest(copy)
        artifact = dataclasses.replace(
            found,
            path=copy,
            digest=digest,
            stage="teacher",
            class_names=train_split.class_names,
            input_shape=train_split.input_shape,
        )
        images, labels = _check_sample(train_split)
        threads, scratch = environment.allowed_threads(), store.root / "scratch"
        logits = bench.answers(artifact, "ort_cpu", images, threads=threads, scratch=scratch)
        accuracy = _refuse_chance(logits, labels, train_split, path)
        return {
            "train_sample_top1_fraction": accuracy, "digest": digest, "parameters": 0, "macs": 0,
        }  # fmt: skip

    return store.step("teacher", parts, make, say)


def _check_sample(dataset: Dataset, count: int = 512) -> tuple[np.ndarray, np.ndarray]:
    index = np.sort(randomness.permutation(randomness.derive("teacher-check"), len(dataset.labels))[:count])
    return dataset.images[index], dataset.labels[index]


def _refuse_chance(logits: np.ndarray, labels: np.ndarray, dataset: Dataset, path: Path) -> float:
    """Top-1 on a sample of train: a teacher near chance has another label order or another normalisation."""
    accuracy = float((logits.argmax(1) == labels).mean())
    chance = 1 / len(dataset.class_names)
    if accuracy < min(2 * chance, (1 + chance) / 2):
        raise InputRejected(
            f"the teacher {path} gets {accuracy:.1%} of {len(labels)} train images right, chance is {chance:.1%}: "
            f"are its classes in this order: {', '.join(dataset.class_names[:12])}?",
            code="E-TEACHER-CHANCE",
            hint="check --teacher-mean and --teacher-std, and that the class folders are named in the teacher's order",
        )
    return accuracy


def train_step(
    job: Job, store: Store, name: str, network: Network, teachers: tuple[Step, ...],
    methods: tuple[catalog.Entry, ...], plan: train.Plan, *, with_stages: bool = True, start: str = "",
    seed: int | None = None, dataset: Dataset | None = None, hold_zeros: bool = False,
    penalty: catalog.Entry | None = None,
) -> Step:  # fmt: skip
    """`network` trained by `methods`; `start` is the digest of its initial weights where they are not a function of
    the seed; `seed` is the recipe's and `dataset` the transfer set unless given. `hold_zeros`: weights that are zero
    stay so. `penalty`: a pruner whose penalty is added to the objective.
    """
    seed, dataset = job.recipe.seed if seed is None else seed, dataset or job.transfer
    thread_choices = tuple(sorted({1, environment.allowed_threads()}))
    student_execution, facts = live_teachers.choose_execution(job, store, network, frozen=False, threads=thread_choices)
    say(f"  {name}: {facts['sentence']}")
    sources = []
    if distill.needs_teacher(methods):
        sources = [live_teachers.source(job, store, step, student_execution.threads) for step in teachers]
    parts = {
        **_training_parts(job, methods, plan, sources, seed, dataset, (network,)),
        "network": [network.contract.spec, network.contract.mean, network.contract.std, network.contract.widths],
        "start": start,
        "with_stages": with_stages,
        "execution": [dataclasses.asdict(e) for e in (student_execution, *(s.execution for s in sources)) if e],
        **({"hold_zeros": True} if hold_zeros else {}),
        **({"penalty": penalty.spec} if penalty else {}),
    }

    def make(folder: Path) -> dict[str, Any]:
        training = distill.Training(
            plan=plan, name=name, seed=seed, student_execution=student_execution, thread_choices=thread_choices,
            folder=folder, device=job.device, pairing=job.recipe.pairing, hold_zeros=hold_zeros,
            penalty=partial(penalty.module.penalty, penalty.config) if penalty else None,
        )  # fmt: skip
        asked = live_teachers.together(job, store, sources, plan.views, dataset)
        result = distill.distill(network, asked, methods, Augmenter(dataset), training, with_stages=with_stages)
        kept = _what_was_kept(result)
        net.save(network, folder)
        distill.drop_checkpoints(folder)
        return {**result, "execution": [facts["sentence"], *kept]}

    return store.step(name, parts, make, say)


def _training_parts(
    job: Job, methods: tuple[catalog.Entry, ...], plan: train.Plan, sources: list[live_teachers.Source], seed: int,
    dataset: Dataset, networks: tuple[Network, ...],
) -> dict[str, Any]:  # fmt: skip
    """What the result of any training depends on, beside its networks; of these the packages that built them."""
    packages = [p for one in networks for p in catalog.packages("nets", one.contract.spec, job.plugins)]
    return {
        "version": VERSIONS["train"],
        "classes": list(dataset.class_names),
        "train": dataset.digest,
        "may_flip": dataset.may_flip,
        "methods": [entry.spec for entry in methods],
        "plan": dataclasses.asdict(plan),
        "teacher": [source.key for source in sources],
        "ensemble": job.recipe.ensemble if len(sources) > 1 else "",
        "keep_answers": bool(sources and job.recipe.keep_answers),
        "pairing": list(job.recipe.pairing) if sources else [],
        "device": job.device,
        "seed": seed,
        "plugins": plugins_digest(job),
        "versions": versions("torch", "torchvision", "numpy", *packages),
    }


def _what_was_kept(result: dict[str, Any]) -> list[str]:
    """A sentence for the log and the report where the teacher's answers are kept."""
    if not result.get("answers_asked"):
        return []
    share, saved = result["answers_kept"] / result["answers_asked"], duration(result["seconds_saved"])
    sentence = f"{share:.1%} of the teacher's answers were kept from before, which saved about {saved}"
    say(f"  {sentence}")
    return [sentence]


def mutual_step(job: Job, store: Store, entries: tuple[catalog.Entry, ...], teachers: tuple[Step, ...]) -> list[Step]:
    """Networks that learn together, the recipe's student last: one step each, of one training."""
    recipe, train_split = job.recipe, job.splits.train
    networks = tuple(
        build(job, entry.spec, train_split.mean, train_split.std, recipe.seed + number)
        for number, entry in enumerate(reversed(entries))
    )[::-1]
    thread_choices = tuple(sorted({1, environment.allowed_threads()}))
    executions = []
    for network in networks:
        chosen, facts = live_teachers.choose_execution(job, store, network, frozen=False, threads=thread_choices)
        say(f"  {network.contract.spec.partition(':')[0]}: {facts['sentence']}")
        executions.append(chosen)
    sources = []
    if distill.needs_teacher(job.methods):
        sources = [live_teachers.source(job, store, step, executions[-1].threads) for step in teachers]
    plan = student_plan(job, recipe.epochs, recipe.learning_rate)
    parts = {
        **_training_parts(job, job.methods, plan, sources, recipe.seed, job.transfer, networks),
        "networks": [network.contract.spec for network in networks],
        "execution": [dataclasses.asdict(e) for e in (*executions, *(s.execution for s in sources)) if e],
    }

    def make(folder: Path) -> dict[str, Any]:
        training = distill.Training(
            plan=plan, name="peers", seed=recipe.seed, student_execution=executions[-1],
            thread_choices=thread_choices, folder=folder, device=job.device, pairing=recipe.pairing,
        )  # fmt: skip
        asked = live_teachers.together(job, store, sources, plan.views, job.transfer)
        result = mutual.learn(networks, tuple(executions), asked, job.methods, Augmenter(job.transfer), training)
        kept = _what_was_kept(result)
        for number, network in enumerate(networks):
            net.save(network, folder / str(number))
        distill.drop_checkpoints(folder)
        return {**result, "execution": kept}

    say(f"student with {len(entries) - 1} peers")
    step = store.step("peers", parts, make, say)
    return [
        dataclasses.replace(step, folder=step.folder / str(number), key=f"{step.key}/{number}")
        for number in range(len(entries))
    ]


def trained(job: Job, step: Step) -> Network:
    return net.load(step.folder, job.plugins)


def corrected_step(job: Job, store: Store, student: Step) -> Step:
    """The student with the bias of the classes that its transfer set lacks raised, by what `select` shows."""
    select, lacks = job.splits.select, job.recipe.transfer_lacks
    classes = np.array([select.class_names.index(name) for name in lacks])
    parts = {"version": VERSIONS["corrected"], "student": student.key, "classes": list(lacks), "select": select.digest}

    def make(folder: Path) -> dict[str, Any]:
        network = trained(job, student)
        shift, before, after = bias.best_shift(train.predict(network, select.images), select.labels, classes)
        net.save(bias.shifted(network, classes, shift), folder)
        say(f"  corrected: {shift:+.2f} for {', '.join(lacks)}; right on select: {before}, then {after}")
        return {"shift": shift, "select_correct_before": before, "select_correct_after": after}

    return store.step("corrected", parts, make, say)
