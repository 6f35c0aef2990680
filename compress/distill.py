"""Distil: train a student from a teacher by any sum of methods. Teacher training and recovery are the same call.

Each method's own stages come first (FitNet's hint), then the common phase in which the methods' losses add up.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from compress.types import Batch, Signals, Stage


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A method bound to two networks: its adapters (or None) and its stages."""

    entry: Entry
    adapters: nn.Module | None
    stages: tuple[Stage, ...]


def needs_teacher(methods: tuple[Entry, ...]) -> bool:
    return any("teacher" in entry.module.NEEDS for entry in methods)


def bind(methods: tuple[Entry, ...], pairs: list[tuple[taps.Tap, taps.Tap]], seed: int) -> tuple[Bound, ...]:
    """Make each method's adapters and stages for these pairs of stages. Initial weights depend on the seed alone."""
    bound = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for entry in methods:
            make_adapters = getattr(entry.module, "adapters", None)
            make_stages = getattr(entry.module, "stages", None)
            bound.append(
                Bound(
                    entry=entry,
                    adapters=make_adapters(entry.config, pairs) if make_adapters else None,
                    stages=make_stages(entry.config, pairs) if make_stages else (),
                )
            )
    return tuple(bound)


def distill(
    student: Network,
    teacher: Network | None,
    methods: tuple[Entry, ...],
    augmenter: Augmenter,
    plan: train.Plan,
    *,
    name: str,
    seed: int,
    student_execution: Execution,
    teacher_execution: Execution | None,
    thread_choices: tuple[int, ...],
    folder: Path,
    device: str = "cpu",
    with_stages: bool = True,
) -> dict[str, Any]:
    """Train `student` in place. Returns facts: the phases' facts and the pairing. Checkpoints live in `folder`.

    `with_stages=False` leaves the methods' own stages out, as recovery after pruning does.
    """
    if needs_teacher(methods) and teacher is None:
        raise UsageError("these methods need a teacher", hint="name one with --teacher")
    input_shape = student.contract.input_shape
    student_probe = taps.probe(student, input_shape)
    pairs: list[tuple[taps.Tap, taps.Tap]] = []
    if teacher is not None:
        teacher_probe = taps.probe(teacher, input_shape)
        pairs = taps.pair(student_probe, teacher_probe)
    bound = bind(methods, pairs, seed)
    frozen = _frozen(teacher, teacher_execution, device) if teacher is not None and teacher_execution else None
    student_execution.prepare(student.to(device))
    adapters = nn.ModuleDict({str(i): b.adapters for i, b in enumerate(bound) if b.adapters is not None}).to(device)
    module = nn.ModuleDict({"student": student, "adapters": adapters})

    def phase(
        label: str, share: float, objective: Callable[..., Tensor], used: tuple[Any, ...], logits: bool,
        trained: nn.Module,
    ) -> dict[str, Any]:  # fmt: skip
        student_tap = taps.Tapped(
            student, student_probe, [s for s, _ in used], student_execution, logits=logits
        )  # fmt: skip
        teacher_tap = None
        if frozen is not None:
            teacher_tap = taps.Tapped(
                frozen, teacher_probe, [t for _, t in used], teacher_execution or student_execution, logits=logits
            )
        try:
            return train.fit(
                f"{name} ({label})" if label else name,
                trained,
                lambda batch: objective(
                    student_tap(batch.inputs), teacher_tap(batch.inputs) if teacher_tap else None, batch
                ),
                augmenter,
                replace(plan, epochs=plan.epochs * share),
                seed=seed,
                threads=student_execution.threads,
                thread_choices=thread_choices,
                checkpoint=folder / f"checkpoint-{label or 'main'}.safetensors",
                device=device,
            )
        finally:
            student_tap.close()
            if teacher_tap:
                teacher_tap.close()

    phases: dict[str, Any] = {}
    staged = [(b, stage) for b in bound for stage in b.stages] if with_stages else []
    for b, stage in staged:
        if stage.pairs:
            say(f"  {stage.name}: {taps.describe_pairs(list(stage.pairs))}")

        def stage_loss(
            s: Signals, t: Signals | None, batch: Batch, b: Bound = b, stage: Stage = stage
        ) -> Tensor:  # fmt: skip
            return stage.loss(b.entry.config, s, t, batch, b.adapters)

        phases[stage.name] = phase(stage.name, stage.share, stage_loss, stage.pairs, stage.logits, module)

    def common_loss(s: Signals, t: Signals | None, batch: Batch) -> Tensor:
        losses = [b.entry.module.loss(b.entry.config, s, t, batch, b.adapters) for b in bound]
        return torch.stack(losses).sum()

    wants_maps = any("maps" in b.entry.module.NEEDS for b in bound)
    share = 1.0 - sum(stage.share for _, stage in staged)
    phases["main"] = phase("", share, common_loss, tuple(pairs) if wants_maps else (), True, module)
    student.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return {"phases": phases, "pairing": taps.describe_pairs(pairs)}


def drop_checkpoints(folder: Path) -> None:
    """Remove the phases' checkpoints, once the student that they led to is saved."""
    for leftover in folder.glob("checkpoint-*.safetensors"):
        leftover.unlink()


def _frozen(teacher: Network, execution: Execution, device: str) -> nn.Module:
    """The teacher as it answers during training: folded, in its own precision and layout, beyond any optimizer."""
    network = execution.prepare(fold_batchnorm(copy.deepcopy(teacher)).to(device))
    return network.eval().requires_grad_(False)
