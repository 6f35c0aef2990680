"""Distil: train a student from a teacher by any sum of methods. Teacher training and recovery are the same call.

Each method's own stages come first (FitNet's hint), then the common phase in which the methods' losses add up.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import taps, train
from compress.augment import Augmenter
from compress.catalog import Entry
from compress.errors import UsageError
from compress.execution import Execution
from compress.network import Network
from compress.progress import say
from compress.teacher import Teacher
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


def setting_of(
    student: taps.Probe, teacher: taps.Probe | None, dataset: Dataset, batch_size: int,
    *, pairing: tuple[str, ...] = taps.BY_STRIDE, mixup: float = 0.0, together: str = "",
    only_logits: str = "",
) -> Setting:  # fmt: skip
    """What methods may know before training. Without a teacher's probe there are no pairs."""
    return Setting(
        pairs=taps.pair(student, teacher, pairing) if teacher else (),
        student_pooled=student.pooled_dim,
        teacher_pooled=teacher.pooled_dim if teacher else 0,
        num_classes=len(dataset.class_names),
        labels=dataset.labels,
        batch_size=min(batch_size, len(dataset.labels)),
        mixup=mixup,
        together=together,
        only_logits=only_logits,
    )


def given(teacher: Teacher | None) -> dict[str, str]:
    """What a `Setting` says of the kind of teacher."""
    return {"together": teacher.together, "only_logits": teacher.only_logits} if teacher is not None else {}


def bind(methods: tuple[Entry, ...], setting: Setting, seed: int) -> tuple[Bound, ...]:
    """Make each method's adapters and stages for this setting. Initial weights depend on the seed alone.

    Raises UsageError where a method is undefined in this setting.
    """
    bound = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for entry in methods:
            check(entry, setting)
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


def check(entry: Entry, setting: Setting) -> None:
    """Raises UsageError where the networks do not give what a method reads, or it is undefined in this setting."""
    needs, hint = entry.module.NEEDS, "take --kd kd, or other networks"
    if setting.only_logits and {"maps", "pooled", "inputs"} & set(needs):
        raise UsageError(
            f"`{entry.name}` reads more than logits, and {setting.only_logits} gives nothing else",
            code="E-METHOD-NEEDS",
            hint="take --kd kd, or one network as the teacher",
        )
    if "maps" in needs and not setting.pairs:
        raise UsageError(
            f"`{entry.name}` needs two networks with maps to pair; one of these has none",
            code="E-METHOD-NEEDS",
            hint=hint,
        )
    if "pooled" in needs and not (setting.student_pooled and setting.teacher_pooled):
        raise UsageError(
            f"`{entry.name}` reads the input of the last linear layer; one of these networks has none",
            code="E-METHOD-NEEDS",
            hint=hint,
        )
    # a tree answers with the leaf that it reaches: a step of the image changes nothing, or all
    if "inputs" in needs and not (setting.pairs or setting.teacher_pooled):
        raise UsageError(
            f"`{entry.name}` differentiates the teacher by its images, and one without maps or an embedding has no "
            "gradient there",
            code="E-METHOD-NEEDS",
            hint=hint,
        )
    if hasattr(entry.module, "check"):
        entry.module.check(entry.config, setting)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train: what every phase of a distillation has in common. Checkpoints go to `folder`."""

    plan: train.Plan
    name: str
    seed: int
    student_execution: Execution
    thread_choices: tuple[int, ...]
    folder: Path
    device: str = "cpu"
    pairing: tuple[str, ...] = taps.BY_STRIDE
    hold_zeros: bool = False  # weights that are zero stay so
    penalty: Callable[[Network], Tensor] | None = None  # added to the objective, beside the network's own


@dataclass(frozen=True, kw_only=True)
class _Networks:
    """The two networks as a phase runs them."""

    student: Network
    student_probe: taps.Probe
    teacher: Teacher | None
    module: nn.ModuleDict  # all that is trained: the student and the adapters


Objective = Callable[[Signals | None, Signals | None, Batch], Tensor]


def distill(
    student: Network,
    teacher: Teacher | None,
    methods: tuple[Entry, ...],
    augmenter: Augmenter,
    training: Training,
    *,
    with_stages: bool = True,
) -> dict[str, Any]:
    """Train `student` in place. Returns facts: each phase's, and the pairing of the stages of the two networks.

    `with_stages=False` leaves the methods' own stages out, as recovery after pruning does, but for those that only make
    what the common phase needs (a paraphraser). Who saves the student calls `drop_checkpoints` then.
    """
    if needs_teacher(methods) and teacher is None:
        raise UsageError("these methods need a teacher", code="E-METHOD-NEEDS", hint="name one with --teacher")
    input_shape = student.contract.input_shape
    student_probe = taps.probe(student, input_shape)
    teacher_probe = teacher.probe if teacher is not None else None
    setting = setting_of(
        student_probe, teacher_probe, augmenter.dataset, training.plan.batch_size, pairing=training.pairing,
        mixup=training.plan.mixup, **given(teacher),
    )  # fmt: skip
    bound = bind(methods, setting, training.seed)
    training.student_execution.prepare(student.to(training.device))
    adapters = adapters_of(bound)
    networks = _Networks(
        student=student,
        student_probe=student_probe,
        teacher=teacher,
        module=nn.ModuleDict({"student": student, "adapters": adapters.to(training.device)}),
    )
    phases: dict[str, Any] = {}
    staged = staged_of(bound, with_stages=with_stages)
    for number, (b, stage) in enumerate(staged):
        # two methods may name their stages alike, and each has a checkpoint of its own
        label = stage.name if number == 0 else f"{stage.name}-{number + 1}"
        say(f"  {label}: {taps.describe_pairs(stage.pairs)}")
        objective = partial(_stage_loss, b, stage)
        phases[label] = _phase(networks, training, augmenter, objective, replace(stage, name=label))
    share = 1.0 - sum(stage.share for _, stage in staged)
    if any("maps" in b.entry.module.NEEDS for b in bound):
        say(f"  {taps.describe_pairs(setting.pairs)}")
    common = replace(common_phase(bound, setting.pairs), share=share)
    # AdamW does not feel the size of an objective, nor that of a network's gradients
    factor = 1.0
    if training.plan.optimizer == "sgd":
        factor = getattr(student.body, "learning_rate_factor", 1.0) / objective_scale(methods)
    gentler = replace(training.plan, learning_rate=training.plan.learning_rate * factor)
    phases["main"] = _phase(networks, replace(training, plan=gentler), augmenter, partial(sum_of_losses, bound), common)
    student.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    facts = teacher.facts() if teacher is not None else {}
    return {"phases": phases, **facts, "pairing": taps.describe_pairs(setting.pairs)}


def staged_of(bound: tuple[Bound, ...], *, with_stages: bool = True) -> list[tuple[Bound, Stage]]:
    """The methods' own stages in their order. Raises UsageError where they leave the common phase no epoch."""
    staged = [(b, stage) for b in bound for stage in b.stages if with_stages or not stage.student]
    if sum(stage.share for _, stage in staged) >= 1:
        shares = ", ".join(f"{b.entry.name}'s {stage.name} {stage.share:g}" for b, stage in staged)
        raise UsageError(
            f"the methods' own stages take all epochs: {shares}",
            code="E-METHOD-STAGES",
            hint="lower their shares until they sum to less than 1",
        )
    return staged


def refuse_untaught(bound: tuple[Bound, ...], setting: Setting) -> None:
    """Raises UsageError where no image has a label and nothing else teaches the student's answers.

    Tried on random signals, so that it holds for any method: the gradient must reach the logits.
    """
    without_labels = setting.mixup == 1 or not (setting.labels >= 0).any()
    if not without_labels or any("inputs" in b.entry.module.NEEDS for b in bound):
        return
    count = 4
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        logits = torch.randn(count, setting.num_classes, requires_grad=True)
        ours, theirs = (
            Signals(
                logits=answers,
                pooled=torch.randn(count, width) if width else None,
                maps={pair[side].stride: torch.randn(count, *pair[side].shape) for pair in setting.pairs},
            )
            for side, answers, width in (
                (0, logits, setting.student_pooled), (1, torch.randn_like(logits), setting.teacher_pooled),
            )
        )  # fmt: skip
        index = np.arange(count, dtype=np.uint64) % len(setting.labels)
        batch = Batch(inputs=None, labels=torch.full((count,), -1), index=index, view=index, progress=0.5)
        # a memory bank moves with each loss
        tried = tuple(replace(b, adapters=copy.deepcopy(b.adapters)) for b in bound)
        total = sum_of_losses(tried, ours, theirs, batch)
        gradient = torch.autograd.grad(total, logits, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None or not gradient.any():
        named = " + ".join(b.entry.name for b in bound)
        why = "every image is mixed, and a mixture has none" if setting.mixup == 1 else "the transfer set has none"
        raise UsageError(
            f"`{named}` teaches the student's answers by labels alone, and {why}",
            code="E-METHOD-UNTAUGHT",
            hint="add --kd kd" + (", or mix fewer images: --set mixup=0.5" if setting.mixup == 1 else ""),
        )


def adapters_of(bound: tuple[Bound, ...]) -> nn.ModuleDict:
    """The adapters of all methods that have some."""
    return nn.ModuleDict({str(i): b.adapters for i, b in enumerate(bound) if b.adapters is not None})


def common_phase(bound: tuple[Bound, ...], pairs: taps.Pairs) -> Stage:
    """The phase in which the methods' losses add up: it reads what any of them needs."""
    needs = {need for b in bound for need in b.entry.module.NEEDS}
    return Stage(
        name="",
        share=1.0,
        loss=sum_of_losses,
        pairs=pairs if "maps" in needs else (),
        logits=True,
        pooled="pooled" in needs,
        inputs="inputs" in needs,
    )


def fit(
    training: Training, phase: str, module: nn.Module, loss_of: Callable[[Batch], Tensor], augmenter: Augmenter,
    plan: train.Plan,
) -> dict[str, Any]:  # fmt: skip
    """One call of the training loop, with the checkpoint of this phase."""
    return train.fit(
        f"{training.name} ({phase})" if phase else training.name,
        module,
        loss_of,
        augmenter,
        plan,
        seed=training.seed,
        threads=training.student_execution.threads,
        thread_choices=training.thread_choices,
        checkpoint=training.folder / f"checkpoint-{phase or 'main'}.safetensors",
        device=training.device,
        hold_zeros=module["student"] if training.hold_zeros else None,  # type: ignore[index]
    )


def _stage_loss(b: Bound, stage: Stage, student: Signals | None, teacher: Signals | None, batch: Batch) -> Tensor:
    return stage.loss(b.entry.config, student, teacher, batch, b.adapters)


def sum_of_losses(bound: tuple[Bound, ...], student: Signals | None, teacher: Signals | None, batch: Batch) -> Tensor:
    """The objective of the common phase."""
    terms = []
    for b in bound:
        # a teacher that is differentiated carries a graph, through which only those methods may pass that ask for it
        theirs = teacher if teacher is None or "inputs" in b.entry.module.NEEDS else _without_graph(teacher)
        terms.append(b.entry.module.loss(b.entry.config, student, theirs, batch, b.adapters))
    return torch.stack(terms).sum()


def _without_graph(signals: Signals) -> Signals:
    if signals.inputs is None:
        return signals
    return replace(
        signals,
        logits=signals.logits.detach(),
        pooled=None if signals.pooled is None else signals.pooled.detach(),
        maps={stride: value.detach() for stride, value in signals.maps.items()},
    )


def _phase(
    networks: _Networks, training: Training, augmenter: Augmenter, objective: Objective, stage: Stage
) -> dict[str, Any]:
    """One call of the training loop, with both networks tapped where the stage wants it."""
    student = teacher = None
    if stage.student:
        student = taps.Tapped(
            networks.student, networks.student_probe, [ours for ours, _ in stage.pairs], training.student_execution,
            logits=stage.logits, pooled=stage.pooled, inputs=stage.inputs,
        )  # fmt: skip
    if networks.teacher is not None:
        teacher = networks.teacher.open(stage)

    own_penalties = penalties(networks.student, training) if stage.student and stage.logits else []

    def loss_of(batch: Batch) -> Tensor:
        total = objective(student and student(batch.inputs), teacher and teacher(batch), batch)
        return total + sum(penalty() for penalty in own_penalties)

    try:
        plan = replace(training.plan, epochs=training.plan.epochs * stage.share)
        return fit(training, stage.name, networks.module, loss_of, augmenter, plan)
    finally:
        for reader in (student, teacher):
            if reader is not None:
                reader.close()


def penalties(student: Network, training: Training) -> list[Callable[[], Tensor]]:
    """What the network and the training add to every objective."""
    own = getattr(student.body, "penalty", None)
    asked = partial(training.penalty, student) if training.penalty else None
    return [penalty for penalty in (own, asked) if penalty]


def drop_checkpoints(folder: Path) -> None:
    """Remove the phases' checkpoints, once the student that they led to is saved."""
    for leftover in folder.glob("checkpoint-*.safetensors"):
        leftover.unlink()
