"""How long a run will take on this machine, from rates that are measured now."""

from compress import bench, distill, environment, live_teachers, qat_steps, training_steps
from compress.live_teachers import choose_execution
from compress.plan import Job
from compress.store import Store
from compress.teacher_plan import TeacherPlan


def seconds_of(job: Job, store: Store) -> dict[str, float]:
    """Seconds of each stage, from the probed rates on this machine (probing what is not yet known)."""
    recipe, images = job.recipe, len(job.transfer.labels)
    threads = tuple(sorted({1, environment.allowed_threads()}))
    seconds: dict[str, float] = {}
    asked_in_all = 0.0
    for number, teacher in enumerate(job.teachers):
        asked, trained = _teacher_seconds(job, store, teacher, threads)
        asked_in_all += asked
        if trained:
            seconds[stage_name(number)] = recipe.teacher_epochs * len(job.splits.train.labels) * trained
    learners = {f"assistant-{i}": entry for i, entry in enumerate(job.assistants, 1)}
    learners |= {f"peer-{i}": entry for i, entry in enumerate(job.peers, 1)} | {"distilled": job.student}
    taught, per_image = _Asked(job, asked_in_all * images), 0.0
    for stage, entry in learners.items():
        network = training_steps.build(job, entry.spec, job.transfer.mean, job.transfer.std, recipe.seed)
        per_image = _seconds_per_image(choose_execution(job, store, network, frozen=False, threads=threads))
        seconds[stage] = recipe.epochs * images * per_image + taught.seconds(recipe.epochs)
    for number in range(1, recipe.generations + 1):
        # its teacher is the student before, whose way forward is about a third of a step
        seconds[f"generation-{number}"] = recipe.epochs * images * per_image * 4 / 3
    if job.pruner:
        sparse = hasattr(job.pruner.module, "penalty") and (job.pruner.config.epochs or recipe.recover_epochs)
        recovery = recipe.recover_epochs + sparse
        seconds["pruned"] = recovery * images * per_image + taught.seconds(recovery)
    if job.quantizer and hasattr(job.quantizer.module, "RUNGS"):  # it trains for sure; a ladder, only at its end
        # through the rounding a step takes about as long again, and the float file answers beside it
        epochs = qat_steps.epochs(job)
        seconds[job.quantizer.module.PRECISION] = epochs * images * 2 * per_image + taught.seconds(epochs)
    tier = bench.TIERS[recipe.tier]
    made = [stage for stage in seconds if not stage.startswith("teacher")]
    extra = (recipe.generations > 1) + bool(recipe.transfer_lacks)  # the mean of generations; the corrected student
    quantized = job.quantizer is not None and job.quantizer.module.PRECISION not in made
    stages = len(job.teachers) + len(made) + quantized + extra
    cells = (stages * len(recipe.runtimes) + 1) * len(recipe.threads)
    seconds["benchmark"] = cells * tier.rounds * (tier.warmup_s + tier.block_s + 1.0)
    return seconds


class _Asked:
    """How long the teachers take to answer what each training in turn asks them. Where answers are kept, every training
    goes through the same views, and asks for those only that none before it came to.
    """

    def __init__(self, job: Job, seconds_per_epoch: float):
        self.seconds_per_epoch, self.come_to = seconds_per_epoch, 0.0
        only_logits = not {"maps", "pooled", "inputs"} & {need for entry in job.methods for need in entry.module.NEEDS}
        self.kept_views = job.recipe.views if live_teachers.keeps(job.recipe, job.recipe.views) and only_logits else 0

    def seconds(self, epochs: float) -> float:
        if not self.kept_views:
            return epochs * self.seconds_per_epoch
        new = max(0.0, min(epochs, self.kept_views) - self.come_to)
        self.come_to += new
        return new * self.seconds_per_epoch


def stage_name(number: int) -> str:
    """The name of a teacher's stage: `teacher`, `teacher-2`, …"""
    return "teacher" if number == 0 else f"teacher-{number + 1}"


def _teacher_seconds(job: Job, store: Store, teacher: TeacherPlan, threads: tuple[int, ...]) -> tuple[float, float]:
    """(seconds of an answer, seconds of a training step) for an image; 0 for what is not done or not known."""
    if teacher.entry is None:
        return 0.0, 0.0
    network = training_steps.build(
        job, teacher.entry.spec, teacher.mean, teacher.std, job.recipe.seed, size=teacher.size
    )
    asked = trained = 0.0
    if distill.needs_teacher(job.methods):
        asked = _seconds_per_image(choose_execution(job, store, network, frozen=True, threads=threads))
    if teacher.file is None:
        trained = _seconds_per_image(choose_execution(job, store, network, frozen=False, threads=threads))
    return asked, trained


def _seconds_per_image(chosen: tuple) -> float:
    return 1 / chosen[1]["images_per_second"]
