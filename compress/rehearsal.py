"""Before anything trains: untrained twins of all networks are built, paired and pruned, so that what cannot work says
so now and not after an hour.
"""

import torch

from compress import bias, distill, mutual, pruning_steps, taps, training_steps
from compress.errors import UsageError
from compress.network import Network
from compress.plan import Job
from compress.progress import say
from compress.store import Store
from compress.teacher import Ensemble


def try_networks(job: Job, store: Store) -> None:
    """Raises CompressError for networks that cannot do what the recipe asks."""
    train_split, seed, probes, together = job.splits.train, job.recipe.seed, [], []
    for plan_ in job.teachers:
        if plan_.entry:
            twin = training_steps.build(job, plan_.entry.spec, plan_.mean, plan_.std, seed, size=plan_.size)
            probes.append(taps.probe(twin, train_split.input_shape))
            if not plan_.file:
                _refuse_single_images(job, twin, plan_.label)
    above = probes[0] if len(probes) == len(job.teachers) == 1 else None
    for entry in (*job.assistants, *job.peers, job.student):
        student = training_steps.build(job, entry.spec, train_split.mean, train_split.std, seed)
        probed = taps.probe(student, train_split.input_shape)
        setting = distill.setting_of(
            probed, above, job.transfer, job.recipe.batch_size, pairing=job.recipe.pairing, mixup=job.recipe.mixup,
            together=job.recipe.ensemble if len(job.teachers) > 1 else "", only_logits=_only_logits(job, above),
        )  # fmt: skip
        bound = distill.bind(job.methods, setting, seed)
        if _uncommon(setting.pairs) and job.recipe.pairing == taps.BY_STRIDE and _reads_maps(job):
            say(
                f"! no stage of {entry.label} has a stride that its teacher has too: the deepest of both are paired; "
                "`--set pairing=STUDENT_MODULE=TEACHER_MODULE` chooses others"
            )
        distill.refuse_untaught(bound, setting)
        distill.staged_of(bound)
        _refuse_single_images(job, student, entry.label)
        if job.peers and entry not in job.assistants:
            mutual.refuse_stages(bound)
            together.append(student)
        above = probed if entry in job.assistants else above
    if together and job.recipe.optimizer == "sgd":
        mutual.common_rate_factor(tuple(together))
    if job.recipe.transfer_lacks:
        bias.layer_of(student)
    if job.pruner:
        pruning_steps.refuse(job, store, student)


def _uncommon(pairs: taps.Pairs) -> bool:
    """Whether maps of different sizes had to be paired."""
    return any(ours.stride != theirs.stride for ours, theirs in pairs)


def _reads_maps(job: Job) -> bool:
    return any("maps" in entry.module.NEEDS for entry in job.methods)


def _only_logits(job: Job, above: taps.Probe | None) -> str:
    """What gives the answers, where it gives nothing else."""
    if above or not job.teachers:
        return ""
    return Ensemble.only_logits if len(job.teachers) > 1 else "an ONNX file"


def _refuse_single_images(job: Job, network: Network, label: str) -> None:
    """Raises UsageError for steps of one image through a BatchNorm that sees one value of each channel then."""
    if min(job.recipe.batch_size, len(job.transfer.labels)) > 1:
        return
    try:
        with torch.no_grad():
            network.train()(torch.zeros(1, *network.contract.input_shape))
    except ValueError as error:
        raise UsageError(
            f"`{label}` cannot be trained with one image a step: its BatchNorm would see one value of each channel",
            code="E-BATCH-SIZE",
            hint="--set batch_size=2, or more",
        ) from error
