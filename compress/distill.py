"""Distil: train a student from a teacher by any sum of methods. Teacher training and recovery are the same call.

Each method's own stages come first (FitNet's hint), then the common phase in which the methods' losses add up.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import taps, train
from compress.augment import Augmenter
from compress.catalog import Entry
from compress.errors import UsageError
from compress.execution import Execution
from compress.fuse import fold_batchnorm
from compress.network import Network
from compress.progress import say
from compress.types import Batch, Dataset, Setting, Signals, Stage


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A method bound to two networks: its adapters (or None) and its stages."""

    entry: Entry
    adapters: nn.Module | None
    stages: tuple[Stage, ...]


def needs_teacher(methods: tuple[Entry, ...]) -> bool:
    return any("teacher" in entry.module.NEEDS for entry in methods)


def objective_scale(methods: tuple[Entry, ...]) -> float:
    """How large the summed objective is against plain cross-entropy: what its learning rate is divided by."""
    return sum(entry.module.scale(entry.config) if hasattr(entry.module, "scale") else 1.0 for entry in methods)


def setting_of(student: taps.Probe, teacher: taps.Probe | None, dataset: Dataset, batch_size: int) -> Setting:
    """What methods may know before training. Without a teacher's probe there are no pairs."""
    return Setting(
        pairs=taps.pair(student, teacher) if teacher else (),
        student_pooled=student.pooled_dim,
        teacher_pooled=teacher.pooled_dim if teacher else 0,
        num_classes=len(dataset.class_names),
        labels=dataset.labels,
        batch_size=min(batch_size, len(dataset.labels)),
    )


def bind(methods: tuple[Entry, ...], setting: Setting, seed: int) -> tuple[Bound, ...]:
    """Make each method's adapters and stages for this setting. Initial weights depend on the seed alone.

    Raises UsageError where a method is undefined in this setting.
    """
    bound = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for entry in methods:
            if hasattr(entry.module, "check"):
                entry.module.check(entry.config, setting)
            make_adapters = getattr(entry.module, "adapters", None)
            make_stages = getattr(entry.module, "stages", None)
            bound.append(
                Bound(
                    entry=entry,
                    adapters=make_adapters(entry.config, setting) if make_adapters else None,
                    stages=make_stages(entry.config, setting) if make_stages else (),
                )
            )
    return tuple(bound)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train: what every phase of a distillation has in common. Checkpoints go to `folder`."""

    plan: train.Plan
    name: str
    seed: int
    student_execution: Execution
    teacher_execution: Execution | None
    thread_choices: tuple[int, ...]
    folder: Path
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class _Networks:
    """The two networks as a phase runs them, with what their probes showed."""

    student: Network
    student_probe: taps.Probe
    teacher: nn.Module | None
    teacher_probe: taps.Probe | None
    module: nn.ModuleDict  # all that is trained: the student and the adapters


Objective = Callable[[Signals | None, Signals | None, Batch], Tensor]


def distill(
    student: Network,
    teacher: Network | None,
    methods: tuple[Entry, ...],
    augmenter: Augmenter,
    training: Training,
    *,
    with_stages: bool = True,
) -> dict[str, Any]:
    """Train `student` in place. Returns facts: each phase's, and the pairing of the stages of the two networks.

    `with_stages=False` leaves the methods' own stages out, as recovery after pruning does. Who saves the student
    calls `drop_checkpoints` then.
    """
    if needs_teacher(methods) and teacher is None:
        raise UsageError("these methods need a teacher", hint="name one with --teacher")
    input_shape = student.contract.input_shape
    student_probe = taps.probe(student, input_shape)
    teacher_probe = taps.probe(teacher, input_shape) if teacher is not None else None
    setting = setting_of(student_probe, teacher_probe, augmenter.dataset, training.plan.batch_size)
    bound = bind(methods, setting, training.seed)
    training.student_execution.prepare(student.to(training.device))
    adapters = nn.ModuleDict({str(i): b.adapters for i, b in enumerate(bound) if b.adapters is not None})
    networks = _Networks(
        student=student,
        student_probe=student_probe,
        teacher=_frozen(teacher, training) if teacher is not None else None,
        teacher_probe=teacher_probe,
        module=nn.ModuleDict({"student": student, "adapters": adapters.to(training.device)}),
    )
    phases: dict[str, Any] = {}
    staged = [(b, stage) for b in bound for stage in b.stages] if with_stages else []
    if sum(stage.share for _, stage in staged) >= 1:
        raise UsageError("the methods' own stages take all epochs: lower their shares (`hint_share`)")
    for number, (b, stage) in enumerate(staged):
        # two methods may name their stages alike, and each has a checkpoint of its own
        label = stage.name if number == 0 else f"{stage.name}-{number + 1}"
        say(f"  {label}: {taps.describe_pairs(stage.pairs)}")
        objective = partial(_stage_loss, b, stage)
        phases[label] = _phase(networks, training, augmenter, objective, replace(stage, name=label))
    needs = {need for b in bound for need in b.entry.module.NEEDS}
    share = 1.0 - sum(stage.share for _, stage in staged)
    common = Stage(
        name="",
        share=share,
        loss=_sum_of_losses,
        pairs=setting.pairs if "maps" in needs else (),
        logits=True,
        pooled="pooled" in needs,
        inputs="inputs" in needs,
    )
    # AdamW does not feel the size of an objective
    size = objective_scale(methods) if training.plan.optimizer == "sgd" else 1.0
    gentler = replace(training.plan, learning_rate=training.plan.learning_rate / size)
    phases["main"] = _phase(
        networks, replace(training, plan=gentler), augmenter, partial(_sum_of_losses, bound), common
    )
    student.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return {"phases": phases, "pairing": taps.describe_pairs(setting.pairs)}


def _stage_loss(b: Bound, stage: Stage, student: Signals | None, teacher: Signals | None, batch: Batch) -> Tensor:
    return stage.loss(b.entry.config, student, teacher, batch, b.adapters)


def _sum_of_losses(bound: tuple[Bound, ...], student: Signals | None, teacher: Signals | None, batch: Batch) -> Tensor:
    return torch.stack([b.entry.module.loss(b.entry.config, student, teacher, batch, b.adapters) for b in bound]).sum()


def _phase(
    networks: _Networks, training: Training, augmenter: Augmenter, objective: Objective, stage: Stage
) -> dict[str, Any]:
    """One call of the training loop, with both networks tapped where the stage wants it."""
    wants = {"logits": stage.logits, "pooled": stage.pooled, "inputs": stage.inputs}
    student = teacher = None
    if stage.student:
        places = [s for s, _ in stage.pairs]
        student = taps.Tapped(networks.student, networks.student_probe, places, training.student_execution, **wants)
    if networks.teacher is not None and networks.teacher_probe and training.teacher_execution:
        places = [t for _, t in stage.pairs]
        teacher = taps.Tapped(networks.teacher, networks.teacher_probe, places, training.teacher_execution, **wants)

    def loss_of(batch: Batch) -> Tensor:
        return objective(student and student(batch.inputs), teacher and teacher(batch.inputs), batch)

    try:
        return train.fit(
            f"{training.name} ({stage.name})" if stage.name else training.name,
            networks.module,
            loss_of,
            augmenter,
            replace(training.plan, epochs=training.plan.epochs * stage.share),
            seed=training.seed,
            threads=training.student_execution.threads,
            thread_choices=training.thread_choices,
            checkpoint=training.folder / f"checkpoint-{stage.name or 'main'}.safetensors",
            device=training.device,
        )
    finally:
        for tapped in (student, teacher):
            if tapped is not None:
                tapped.close()


def drop_checkpoints(folder: Path) -> None:
    """Remove the phases' checkpoints, once the student that they led to is saved."""
    for leftover in folder.glob("checkpoint-*.safetensors"):
        leftover.unlink()


def _frozen(teacher: Network, training: Training) -> nn.Module:
    """The teacher as it answers during training: folded, in its own precision and layout, beyond any optimizer."""
    execution = training.teacher_execution or training.student_execution
    network = execution.prepare(fold_batchnorm(copy.deepcopy(teacher)).to(training.device))
    return network.eval().requires_grad_(False)
