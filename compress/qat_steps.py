"""The step that trains an int8 file through its rounding, by labels, the float file and the teachers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress import artifact_steps, distill, environment, live_teachers, qat, train, training_steps
from compress.augment import Augmenter
from compress.environment import versions
from compress.losses import hard_label_loss, soft_label_loss, soft_logits
from compress.plan import Job, plugins_digest
from compress.progress import say
from compress.store import Step, Store, file_digest
from compress.teacher import Reader
from compress.types import Artifact, Batch, Stage

VERSIONS = {"trained": 2}


def trained(
    job: Job, store: Store, begun: Step, source: Artifact, parent: Artifact, teachers: tuple[Step, ...],
    prepare: Callable[[Path], None],
) -> Step:  # fmt: skip
    """The int8 file of the step `begun`, trained.

    It was written from the float file that `prepare` makes of `source`; `parent` is the float file that teaches it. The
    knobs are those of the job's quantizer.
    """
    assert job.quantizer
    knobs, threads, plan = job.quantizer.config, environment.allowed_threads(), _plan(job)
    sources = []
    if knobs.teacher_weight:
        sources = [live_teachers.source(job, store, step, threads) for step in teachers]
    weights = {name: getattr(knobs, name) for name in ("ce_weight", "parent_weight", "teacher_weight", "temperature")}
    parts = {
        "version": VERSIONS["trained"],
        "file": begun.facts["digest"],
        "parents": [source.digest, parent.digest],
        "plan": dataclasses.asdict(plan),
        "objective": weights,
        "teachers": [source.key for source in sources],
        "ensemble": job.recipe.ensemble if len(sources) > 1 else "",
        "train": job.transfer.digest,
        "may_flip": job.transfer.may_flip,
        "device": job.device,
        "threads": threads,
        "seed": job.recipe.seed,
        "plugins": plugins_digest(job),
        "versions": versions("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy"),
    }

    def make(folder: Path) -> dict[str, Any]:
        path, prepared = folder / "model.onnx", folder / "prepared.onnx"
        prepare(prepared)
        student = qat.Trained(prepared, begun.folder / "model.onnx").to(job.device)
        prepared.unlink()
        asked = live_teachers.together(job, store, sources, plan.views, job.transfer)
        reader = asked.open(Stage(name="", share=1.0, loss=soft_label_loss, pairs=(), logits=True)) if asked else None
        loss_of = _objective(knobs, student, qat.float_answers(parent.path).to(job.device), reader)
        try:
            phase = train.fit(
                "int8", student, loss_of, Augmenter(job.transfer), plan, seed=job.recipe.seed, threads=threads,
                thread_choices=(threads,), checkpoint=folder / "checkpoint-int8.safetensors", device=job.device,
            )  # fmt: skip
        finally:
            if reader:
                reader.close()
        student.to("cpu").write(path)
        about = {"digest": file_digest(path), "notes": artifact_steps.kernel_notes(path)}
        distill.drop_checkpoints(folder)
        return {**begun.facts, **about, "trained_epochs": plan.epochs, "phases": {"int8": phase}}

    return store.step("trained", parts, make, say)


def epochs(job: Job) -> float:
    """Of training through the rounding."""
    assert job.quantizer
    return max(1.0, job.recipe.epochs * job.quantizer.config.qat_share)


def _plan(job: Job) -> train.Plan:
    """A short training: AdamW, since weights are in units of their channels, and no decay towards zero."""
    assert job.quantizer
    knobs = job.quantizer.config
    plan = training_steps.student_plan(job, epochs(job), knobs.qat_learning_rate)
    return dataclasses.replace(plan, optimizer="adamw", schedule="cosine", weight_decay=0.0, ema=0.0, mixup=0.0)


def _objective(
    knobs: Any, student: torch.nn.Module, parent: torch.nn.Module, reader: Reader | None
) -> Callable[[Batch], torch.Tensor]:
    """ce · CE + parent · KD from the float file + teacher · KD from the teachers."""

    def loss_of(batch: Batch) -> torch.Tensor:
        ours = student(batch.inputs)
        total = knobs.ce_weight * hard_label_loss(ours, batch.labels)
        if knobs.parent_weight:
            with torch.no_grad():
                wanted = parent(batch.inputs)
            total = total + knobs.parent_weight * soft_label_loss(ours, wanted, knobs.temperature)
        if reader:
            wanted = soft_logits(reader(batch), knobs.temperature)
            total = total + knobs.teacher_weight * soft_label_loss(ours, wanted, knobs.temperature)
        return total

    return loss_of
