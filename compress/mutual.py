"""Deep mutual learning: several networks learn at once, each from the labels, the teacher and the others' answers.

    L_k = Σ methods' losses of network k + 1/(K−1) Σ_{l≠k} KL(p_l ‖ p_k),   p = softmax(z), the p_l constant

Source: Zhang et al. 2018, "Deep Mutual Learning", eq. 3 and its form for K networks; alone with `cross_entropy` it is
theirs. All networks see the same batch once a step and are updated together, where the paper takes turns: half of the
forward passes. The networks need initial weights of their own: equal ones would stay equal for ever.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress import distill, taps
from compress.augment import Augmenter
from compress.catalog import Entry
from compress.errors import UsageError
from compress.execution import Execution
from compress.losses import soft_label_loss
from compress.network import Network
from compress.teacher import Teacher
from compress.types import Batch, Signals, Stage


def mutual_loss(own: Tensor, others: list[Tensor]) -> Tensor:
    """1/(K−1) Σ KL(p_l ‖ p_k) of logits `[B,K]`; nothing flows into the others."""
    return torch.stack([soft_label_loss(own, other.detach(), 1.0) for other in others]).mean()


def refuse_stages(bound: tuple[distill.Bound, ...]) -> None:
    """Raises UsageError for a method with stages of its own: peers share one phase."""
    for one in bound:
        if one.stages:
            raise UsageError(
                f"`{one.entry.name}` trains in stages of its own, which networks that learn together do not have",
                code="E-PEER",
                hint="take another --kd, or no --peer",
            )


def common_rate_factor(networks: tuple[Network, ...]) -> float:
    """What the learning rate of all is multiplied by. Raises UsageError where they want different ones."""
    factors = {getattr(network.body, "learning_rate_factor", 1.0) for network in networks}
    if len(factors) > 1:
        raise UsageError(
            "networks that learn together share one learning rate, and these want different ones",
            code="E-PEER",
            hint="take a --peer of the student's kind, or --set optimizer=adamw",
        )
    return factors.pop()


def learn(
    networks: tuple[Network, ...],
    executions: tuple[Execution, ...],
    teacher: Teacher | None,
    methods: tuple[Entry, ...],
    augmenter: Augmenter,
    training: distill.Training,
) -> dict[str, Any]:
    """Train all `networks` in place, each run by its own of `executions`. Returns the phase's facts."""
    probes = [taps.probe(network, network.contract.input_shape) for network in networks]
    above = teacher.probe if teacher is not None else None
    bounds, pairings = [], []
    for number, probed in enumerate(probes):
        setting = distill.setting_of(
            probed, above, augmenter.dataset, training.plan.batch_size, pairing=training.pairing,
            mixup=training.plan.mixup, **distill.given(teacher),
        )  # fmt: skip
        pairings.append(setting.pairs)
        bounds.append(distill.bind(methods, setting, training.seed + number))
        refuse_stages(bounds[-1])
    stages = [distill.common_phase(bound, pairs) for bound, pairs in zip(bounds, pairings, strict=True)]
    readers = [
        _tapped(network.to(training.device), probed, stage, execution)
        for network, probed, stage, execution in zip(networks, probes, stages, executions, strict=True)
    ]
    asked = teacher.open(_deepest(stages)) if teacher is not None else None
    adapters = [distill.adapters_of(bound).to(training.device) for bound in bounds]
    penalties = [penalty for network in networks for penalty in distill.penalties(network, training)]
    module = nn.ModuleDict({"networks": nn.ModuleList(networks), "adapters": nn.ModuleList(adapters)})

    def loss_of(batch: Batch) -> Tensor:
        signals = [reader(batch.inputs) for reader in readers]
        answer = asked(batch) if asked is not None else None
        logits = [one.logits for one in signals]
        terms = [mutual_loss(own, logits[:k] + logits[k + 1 :]) for k, own in enumerate(logits)]
        for bound, own, stage in zip(bounds, signals, stages, strict=True):
            terms.append(distill.sum_of_losses(bound, own, answer and _of(answer, stage), batch))
        return torch.stack([*terms, *(penalty() for penalty in penalties)]).sum()

    factor = 1.0
    if training.plan.optimizer == "sgd":
        factor = common_rate_factor(networks) / (distill.objective_scale(methods) + 1.0)
    gentler = replace(training.plan, learning_rate=training.plan.learning_rate * factor)
    try:
        facts = distill.fit(training, "", module, loss_of, augmenter, gentler)
    finally:
        for reader in (*readers, *([asked] if asked is not None else [])):
            reader.close()
    for network in networks:
        network.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return {"phases": {"main": facts}, **(teacher.facts() if teacher is not None else {}), "pairing": ""}


def _of(answer: Signals, stage: Stage) -> Signals:
    """The teacher's signals with the maps of one network's pairs."""
    return replace(answer, maps={theirs.stride: answer.maps[theirs.stride] for _, theirs in stage.pairs})


def _tapped(network: Network, probed: taps.Probe, stage: Stage, execution: Execution) -> taps.Tapped:
    execution.prepare(network)
    places = [ours for ours, _ in stage.pairs]
    return taps.Tapped(
        network, probed, places, execution, logits=True, pooled=stage.pooled, inputs=stage.inputs
    )  # fmt: skip


def _deepest(stages: list[Stage]) -> Stage:
    """One stage in which the teacher delivers what any of the networks is compared with."""
    pairs = {theirs.stride: (ours, theirs) for stage in stages for ours, theirs in stage.pairs}
    return replace(stages[0], pairs=tuple(pairs[stride] for stride in sorted(pairs)))
