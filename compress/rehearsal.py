"""Before anything trains: untrained twins of all networks are built, paired and pruned, so that what cannot work says
so now and not after an hour.
"""

from compress import bias, distill, mutual, pruning_steps, taps, training_steps
from compress.plan import Job
from compress.store import Store


def try_networks(job: Job, store: Store) -> None:
    """Raises CompressError for networks that cannot do what the recipe asks."""
    train_split, seed, probes, together = job.splits.train, job.recipe.seed, [], []
    for plan_ in job.teachers:
        if plan_.entry:
            twin = training_steps.build(job, plan_.entry.spec, plan_.mean, plan_.std, seed, size=plan_.size)
            probes.append(taps.probe(twin, train_split.input_shape))
    above = probes[0] if len(probes) == len(job.teachers) == 1 else None
    for entry in (*job.assistants, *job.peers, job.student):
        student = training_steps.build(job, entry.spec, train_split.mean, train_split.std, seed)
        probed = taps.probe(student, train_split.input_shape)
        setting = distill.setting_of(
            probed, above, job.transfer, job.recipe.batch_size, pairing=job.recipe.pairing, mixup=job.recipe.mixup,
            together=job.recipe.ensemble if len(job.teachers) > 1 else "",
        )  # fmt: skip
        bound = distill.bind(job.methods, setting, seed)
        distill.refuse_untaught(bound, setting)
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
