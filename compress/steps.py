"""The chain's steps as the store sees them: each has a key made of all that its result depends on.

Raise a step's number in VERSIONS when the same inputs would give another result.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from compress import bench, catalog, distill, environment, execution, export, randomness, train
from compress import network as net
from compress import prune as pruning
from compress.augment import Augmenter
from compress.errors import InputRejected
from compress.execution import Execution
from compress.network import Network
from compress.plan import Job, teacher_statistics
from compress.progress import say
from compress.store import Step, Store, file_digest
from compress.types import Artifact, Dataset

VERSIONS = {"execution": 1, "teacher": 1, "train": 2, "prune": 2, "export": 1, "quantize": 1, "answers": 1}
RECOVERY_LEARNING_RATE = 0.3  # of the recipe's: a pruned network keeps most of what it knew


def versions(*packages: str) -> dict[str, str]:
    """Those of the packages that are installed: ONNX Runtime has two distributions, of which one is there."""
    have = environment.package_versions()
    return {name: have[name] for name in packages if name in have}


def _plugins_digest(job: Job) -> list[str]:
    return [file_digest(path) for path in job.plugins]


def build(job: Job, spec: str, mean: tuple[float, ...], std: tuple[float, ...], seed: int) -> Network:
    train_split = job.splits.train
    return net.build(
        spec,
        class_names=train_split.class_names,
        input_shape=train_split.input_shape,
        mean=mean,
        std=std,
        seed=seed,
        plugins=job.plugins,
    )


def choose_execution(
    job: Job, store: Store, network: Network, *, frozen: bool, threads: tuple[int, ...]
) -> tuple[Execution, dict[str, Any]]:
    """The measured choice for this network on this machine, remembered so that later runs replay it."""
    precision = job.recipe.precision
    # the gradient of a gradient has too few digits in bfloat16
    exact = any("inputs" in method.module.NEEDS for method in job.methods)
    precisions = (("float32",) if exact else ("float32", "bfloat16")) if precision == "auto" else (precision,)
    batch_size = job.recipe.batch_size
    parts = {
        "version": VERSIONS["execution"],
        "network": [network.contract.spec, list(network.contract.input_shape), network.contract.widths],
        "weights": net.digest(network) if frozen else "",
        "frozen": frozen,
        "batch_size": batch_size,
        "threads": list(threads),
        "precisions": list(precisions),
        "device": job.device,
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        say(f"  probing {network.contract.spec.partition(':')[0]}: layout, precision, threads")
        order = randomness.permutation(randomness.derive("probe"), len(job.splits.train.labels))
        batch = Augmenter(job.splits.train).plain(order[:batch_size])
        chosen, facts = execution.choose(
            network.to(job.device), batch.inputs.to(job.device), frozen=frozen, threads=threads, precisions=precisions
        )
        network.to("cpu")
        return {"execution": dataclasses.asdict(chosen), **facts}

    step = store.step("execution", parts, make, say)
    return Execution(**step.facts["execution"]), step.facts


def plan_for(job: Job, epochs: float, learning_rate: float) -> train.Plan:
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


def teacher_step(job: Job, store: Store) -> Step:
    """The teacher's network: the user's checkpoint, or trained on the spot."""
    recipe = job.recipe
    mean, std = teacher_statistics(job)
    if not recipe.teacher_checkpoint:
        network = build(job, job.teacher.spec, mean, std, recipe.seed)
        methods = (catalog.load("methods", "cross_entropy"),)
        plan = plan_for(job, recipe.teacher_epochs, recipe.learning_rate)
        return train_step(job, store, "teacher", network, None, "", methods, plan)
    path = Path(recipe.teacher_checkpoint)
    parts = {
        "version": VERSIONS["teacher"],
        "checkpoint": file_digest(path),
        "spec": job.teacher.spec,
        "mean": mean,
        "std": std,
        "classes": list(job.splits.train.class_names),
        "input_shape": list(job.splits.train.input_shape),
        "train": job.splits.train.digest,
        "plugins": _plugins_digest(job),
    }

    def make(folder: Path) -> dict[str, Any]:
        network = build(job, job.teacher.spec, mean, std, seed=0)
        net.load_state(network, net.read_checkpoint(path), path)
        accuracy = _check_teacher(network, job.splits.train, path)
        net.save(network, folder)
        return {"train_sample_top1_fraction": accuracy}

    return store.step("teacher", parts, make, say)


def _check_teacher(network: Network, dataset: Dataset, path: Path, images: int = 512) -> float:
    """Top-1 on a sample of train: a teacher near chance has another label order or another normalisation."""
    index = randomness.permutation(randomness.derive("teacher-check"), len(dataset.labels))[:images]
    pictures, labels = dataset.images[np.sort(index)], dataset.labels[np.sort(index)]
    accuracy = float((train.predict(network, pictures).argmax(1) == labels).mean())
    chance = 1 / len(dataset.class_names)
    if accuracy < min(2 * chance, (1 + chance) / 2):
        raise InputRejected(
            f"the teacher {path} gets {accuracy:.1%} of {len(labels)} train images right, chance is {chance:.1%}: "
            f"are its classes in this order: {', '.join(dataset.class_names[:12])}?",
            hint="check --teacher-mean and --teacher-std, and that the class folders are named in the teacher's order",
        )
    return accuracy


def train_step(
    job: Job, store: Store, name: str, network: Network, teacher: Network | None, teacher_key: str,
    methods: tuple[catalog.Entry, ...], plan: train.Plan, *, with_stages: bool = True, start: str = "",
) -> Step:  # fmt: skip
    """`network` trained by `methods`; `start` is the digest of its initial weights where they are not a function of
    the seed.
    """
    thread_choices = tuple(sorted({1, environment.allowed_threads()}))
    student_execution, facts = choose_execution(job, store, network, frozen=False, threads=thread_choices)
    say(f"  {name}: {facts['sentence']}")
    teacher_execution = None
    if teacher is not None and distill.needs_teacher(methods):
        teacher_execution, teacher_facts = choose_execution(
            job, store, teacher, frozen=True, threads=(student_execution.threads,)
        )
        say(f"  teacher: {teacher_facts['sentence']}")
    parts = {
        "version": VERSIONS["train"],
        "network": [network.contract.spec, network.contract.mean, network.contract.std, network.contract.widths],
        "start": start,
        "classes": list(network.contract.class_names),
        "train": job.splits.train.digest,
        "may_flip": job.splits.train.may_flip,
        "methods": [entry.spec for entry in methods],
        "with_stages": with_stages,
        "plan": dataclasses.asdict(plan),
        "teacher": teacher_key if teacher_execution else "",
        "execution": [dataclasses.asdict(e) for e in (student_execution, teacher_execution) if e],
        "device": job.device,
        "seed": job.recipe.seed,
        "plugins": _plugins_digest(job),
        "versions": versions("torch", "torchvision", "numpy"),
    }

    def make(folder: Path) -> dict[str, Any]:
        result = distill.distill(
            network,
            teacher if teacher_execution else None,
            methods,
            Augmenter(job.splits.train),
            distill.Training(
                plan=plan,
                name=name,
                seed=job.recipe.seed,
                student_execution=student_execution,
                teacher_execution=teacher_execution,
                thread_choices=thread_choices,
                folder=folder,
                device=job.device,
            ),
            with_stages=with_stages,
        )
        net.save(network, folder)
        distill.drop_checkpoints(folder)
        return {**result, "execution": [facts["sentence"]]}

    return store.step(name, parts, make, say)


def trained(job: Job, step: Step) -> Network:
    return net.load(step.folder, job.plugins)


def prune_step(job: Job, store: Store, student: Step) -> Step:
    """The student without the least important channels, before recovery."""
    assert job.pruner
    parts = {
        "version": VERSIONS["prune"],
        "student": student.key,
        "pruner": job.pruner.spec,
        "ratio": job.recipe.prune,
        "versions": versions("torch-pruning", "torch"),
    }

    def make(folder: Path) -> dict[str, Any]:
        assert job.pruner
        net.save(pruning.prune(trained(job, student), job.pruner, job.recipe.prune, plugins=job.plugins), folder)
        return {}

    return store.step("prune", parts, make, say)


def estimate_seconds(job: Job, store: Store) -> dict[str, float]:
    """Seconds of each training, from the probed rates on this machine (probing what is not yet known)."""
    recipe, images = job.recipe, len(job.splits.train.labels)
    threads = tuple(sorted({1, environment.allowed_threads()}))
    mean, std = teacher_statistics(job)
    teacher = build(job, job.teacher.spec, mean, std, recipe.seed)
    student = build(job, job.student.spec, job.splits.train.mean, job.splits.train.std, recipe.seed)
    per_image: dict[str, float] = {}
    for name, network, frozen in (("student", student, False), ("teacher", teacher, True)):
        if frozen and not distill.needs_teacher(job.methods):
            per_image[name] = 0.0
            continue
        per_image[name] = (
            1 / choose_execution(job, store, network, frozen=frozen, threads=threads)[1]["images_per_second"]
        )
    seconds = {"distilled": recipe.epochs * images * sum(per_image.values())}
    if not recipe.teacher_checkpoint:
        _, facts = choose_execution(job, store, teacher, frozen=False, threads=threads)
        seconds = {"teacher": recipe.teacher_epochs * images / facts["images_per_second"], **seconds}
    if job.pruner:
        seconds["pruned"] = recipe.recover_epochs * images * sum(per_image.values())
    tier = bench.TIERS[recipe.tier]
    stages = 2 + bool(job.pruner) + bool(job.quantizer)
    cells = (stages * len(recipe.runtimes) + 1) * len(recipe.threads)
    seconds["benchmark"] = cells * tier.rounds * (tier.warmup_s + tier.block_s + 1.0)
    return seconds


def export_step(job: Job, store: Store, stage: str, network_step: Step) -> Step:
    """The network as ONNX, and its parity with torch on real images (at least 1,000, or all that there are).

    The digest in the file's metadata is the key of the step that made the network: a digest of all of the recipe that
    this network depends on, and of the train split.
    """
    parts = {
        "version": VERSIONS["export"],
        "network": network_step.key,
        "versions": versions("torch", "onnx", "onnxscript"),
    }

    def make(folder: Path) -> dict[str, Any]:
        say(f"  {stage}: exporting, then comparing with torch")
        network = trained(job, network_step)
        path = folder / "model.onnx"
        export.export_onnx(network, path, recipe_digest=network_step.key)
        facts = {
            "digest": file_digest(path),
            "parameters": net.count_parameters(network),
            "macs": net.count_macs(network),
            "spec": network.contract.spec,
        }
        artifact = onnx_artifact(job, stage, path, "float32", facts)
        images = parity_images(job)
        expected = train.predict(network, images)
        parity = export.compare(expected, _answers(store, artifact, images))
        export.check_parity(parity, stage)
        return {**facts, "parity": parity}

    return store.step("export", parts, make, say)


def parity_images(job: Job, count: int = 1000) -> np.ndarray:
    """At least `count` real images, or all there are, of every class: select, filled up from train."""
    select, train_split = job.splits.select, job.splits.train
    missing = max(0, count - len(select.labels))
    return np.concatenate([sample(select, count), sample(train_split, missing)])


def sample(dataset: Dataset, count: int) -> np.ndarray:
    """`count` images of the split (all, if fewer) in a fixed order that mixes the classes."""
    order = randomness.permutation(randomness.derive("sample"), len(dataset.labels))[:count]
    return dataset.images[np.sort(order)]


def _answers(
    store: Store, artifact: Artifact, images: np.ndarray, runtime: str = "ort_cpu", plugins: tuple[Path, ...] = ()
) -> np.ndarray:
    threads, scratch = environment.allowed_threads(), store.root / "scratch"
    return bench.answers(artifact, runtime, images, threads=threads, scratch=scratch, plugins=plugins)


def onnx_artifact(job: Job, stage: str, path: Path, precision: str, facts: dict[str, Any]) -> Artifact:
    train_split = job.splits.train
    return Artifact(
        path=path,
        digest=facts["digest"],
        format="onnx",
        precision=precision,
        stage=stage,
        size_bytes=path.stat().st_size,
        parameters=facts["parameters"],
        macs=facts["macs"],
        input_shape=train_split.input_shape,
        class_names=train_split.class_names,
    )


def torch_artifact(job: Job, stage: str, network_step: Step, facts: dict[str, Any]) -> Artifact:
    """The same network for the torch runtimes: a folder instead of a file, known by the key of its step, since its
    mean and std are not among its weights.
    """
    weights = network_step.folder / "weights.safetensors"
    return dataclasses.replace(
        onnx_artifact(job, stage, weights, "float32", {**facts, "digest": network_step.key}),
        path=network_step.folder,
        format="torch",
    )


def quantize_step(job: Job, store: Store, parent: Artifact) -> Step:
    """The ONNX file quantized, calibrated on the calibrate split."""
    assert job.quantizer
    calibrate = job.splits.calibrate
    parts = {
        "version": VERSIONS["quantize"],
        "parent": parent.digest,
        "quantizer": job.quantizer.spec,
        "calibrate": calibrate.digest,
        "plugins": _plugins_digest(job),
        "versions": versions("onnxruntime", "onnxruntime-gpu", "onnx"),
    }

    def make(folder: Path) -> dict[str, Any]:
        assert job.quantizer
        path = folder / "model.onnx"
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        facts = job.quantizer.module.apply(job.quantizer.config, parent.path, path, calibrate.images, scratch)
        for leftover in scratch.iterdir():
            leftover.unlink()
        scratch.rmdir()
        return {**facts, "digest": file_digest(path), "parameters": parent.parameters, "macs": parent.macs}

    return store.step("quantize", parts, make, say)


def answers_step(job: Job, store: Store, artifact: Artifact, runtime: str, dataset: Dataset) -> np.ndarray:
    """Logits `[N,K]` of an artifact's bytes in a runtime on a whole split. Raises what `bench.answers` raises."""
    parts = {
        "version": VERSIONS["answers"],
        "artifact": artifact.digest,
        "runtime": runtime,
        "data": dataset.digest,
        "plugins": _plugins_digest(job),
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        say(f"  asking {artifact.stage} in {runtime} about {len(dataset.labels)} images of {dataset.split}")
        logits = _answers(store, artifact, dataset.images, runtime, job.plugins)
        np.save(folder / "logits.npy", logits)
        return {}

    step = store.step("answers", parts, make, say)
    return np.load(step.folder / "logits.npy")
