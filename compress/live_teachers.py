"""How networks run on this machine (measured, remembered), and finished teachers as training asks them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress import catalog, environment, execution, randomness
from compress import network as net
from compress.answers import AnswerFile
from compress.augment import Augmenter
from compress.execution import Execution
from compress.network import Network
from compress.plan import Job
from compress.progress import say
from compress.recipe import Recipe
from compress.sampling import VIEW_COUNT
from compress.store import Step, Store
from compress.teacher import BlackBox, Ensemble, Kept, Live, Teacher
from compress.types import Dataset

VERSIONS = {"execution": 2, "kept answers": 1}


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A finished teacher's step, and how it answers here. `execution` is None for an ONNX file."""

    key: str
    execution: Execution | None
    seconds_per_image: float
    make: Callable[[], Teacher]


def source(job: Job, store: Store, step: Step, threads: int) -> Source:
    """The teacher that `step` made, timed on this machine."""
    if not (step.folder / "network.json").exists():
        return _black_box(job, step, threads)
    network = net.load(step.folder, job.plugins)
    chosen, facts = choose_execution(job, store, network, frozen=True, threads=(threads,))
    say(f"  teacher: {facts['sentence']}")
    return Source(
        key=step.key,
        execution=chosen,
        seconds_per_image=1 / facts["images_per_second"],
        make=lambda: Live(network, chosen, job.device, fold="=" not in job.recipe.pairing[0]),
    )


def _black_box(job: Job, step: Step, threads: int) -> Source:
    """An ONNX file that a child process has opened before: it may be opened here."""
    runtime = catalog.load("runtimes", "ort_cpu").module
    session = runtime.open_session(str(step.folder / "model.onnx"), threads)
    fixed = runtime.effective(session)["fixed_batch"]

    def ask(images: np.ndarray) -> np.ndarray:
        size = fixed or len(images)
        chunks = [images[i : i + size] for i in range(0, len(images), size)]
        # a file of fixed batch size gets the last image again where images are wanting
        full = [np.concatenate([c, np.repeat(c[-1:], size - len(c), axis=0)]) for c in chunks]
        return np.concatenate([runtime.run(session, c) for c in full])[: len(images)]

    batch = Augmenter(job.splits.train).plain(np.arange(min(job.recipe.batch_size, len(job.splits.train.labels))))
    seconds = execution.least_seconds(lambda: ask(batch.inputs.numpy()))
    say(f"  teacher: ONNX file in ort_cpu, {threads} threads: {len(batch.index) / seconds:.0f} images/s")
    what = f"the teacher {job.teachers[0].label}" if len(job.teachers) == 1 else "an ONNX file as a teacher"
    return Source(
        key=step.key, execution=None, seconds_per_image=seconds / len(batch.index), make=lambda: BlackBox(what, ask)
    )


def together(job: Job, store: Store, sources: list[Source], views: int, dataset: Dataset) -> Teacher | None:
    """All sources as one teacher, each with its kept answers where the recipe wants them; None without any."""
    teachers = tuple(_keeping(job, store, source, views, dataset) for source in sources)
    if not teachers:
        return None
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers, job.recipe.ensemble)


def keeps(recipe: Recipe, views: int) -> bool:
    """Whether answers are kept of so many views of each image: no mixture comes twice, and of endless views few do."""
    return recipe.keep_answers and not recipe.mixup and views != VIEW_COUNT


def _keeping(job: Job, store: Store, source: Source, views: int, dataset: Dataset) -> Teacher:
    if not keeps(job.recipe, views):
        return source.make()
    parts = {
        "version": VERSIONS["kept answers"],
        "teacher": source.key,
        "precision": source.execution.precision if source.execution else "onnx",
        "device": job.device,
        "augmentation": Augmenter(dataset).describe(),
        "images": dataset.digest,
    }
    count, classes = len(dataset.labels), len(dataset.class_names)
    file = AnswerFile(store.answers(parts), parts, count=count, classes=classes, views=views)
    return Kept(source.make(), file, seconds_per_image=source.seconds_per_image)
