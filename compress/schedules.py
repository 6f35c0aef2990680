"""Ways to a student that take several trainings: assistants, peers, generations. Plain loops over training steps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compress import catalog, taps, training_steps
from compress.catalog import Entry
from compress.plan import Job
from compress.progress import say
from compress.store import Step, Store

# Furlanello et al. 2018, "Born-Again Neural Networks", eq. 2; Bagherinezhad et al. 2018, "Label Refinery": the
# cross-entropy with the previous generation's probabilities on the same crop, without labels
BORN_AGAIN = "kd:temperature=1,ce_weight=0,kd_weight=1"


@dataclass(frozen=True, kw_only=True)
class Made:
    """One training's result. `parent` is the stage that taught it; a `candidate` may be the student that ships."""

    stage: str
    what: str
    step: Step
    parent: str
    candidate: bool = False


def students(job: Job, store: Store, teachers: tuple[Step, ...]) -> Iterator[Made]:
    """Assistants (Mirzadeh et al. 2020), the student with its peers, then its generations; each is taught by the last
    one before it. Lazy: who stops asking stops the training.
    """
    parent = "teacher"
    for number, assistant in enumerate(job.assistants, 1):
        stage = f"assistant-{number}"
        step = _trained(job, store, stage, assistant, teachers, job.methods)
        yield Made(stage=stage, what=_what(job, assistant, job.methods), step=step, parent=parent)
        teachers, parent = (step,), stage
    if job.peers:
        *peers, step = training_steps.mutual_step(job, store, (*job.peers, job.student), teachers)
        for number, (entry, peer) in enumerate(zip(job.peers, peers, strict=True), 1):
            yield Made(stage=f"peer-{number}", what=_what(job, entry, job.methods), step=peer, parent=parent)
    else:
        step = _trained(job, store, "distilled", job.student, teachers, job.methods)
    what = _what(job, job.student, job.methods) + (f", with {len(job.peers)} peers" if job.peers else "")
    yield Made(stage="distilled", what=what, step=step, parent=parent, candidate=True)
    born_again = (catalog.load("methods", BORN_AGAIN),)
    parent = "distilled"
    # a pairing by names is of the first teacher's modules, and these methods read none
    job = replace(job, recipe=replace(job.recipe, pairing=taps.BY_STRIDE))
    for number in range(1, job.recipe.generations + 1):
        stage = f"generation-{number}"
        step = _trained(job, store, stage, job.student, (step,), born_again, seed=job.recipe.seed + number)
        yield Made(stage=stage, what=_what(job, job.student, born_again), step=step, parent=parent, candidate=True)
        parent = stage


def _what(job: Job, entry: Entry, methods: tuple[Entry, ...]) -> str:
    return f"{entry.label} by {' + '.join(m.label for m in methods)}, {job.recipe.epochs} epochs"


def _trained(
    job: Job, store: Store, stage: str, entry: Entry, teachers: tuple[Step, ...], methods: tuple[Entry, ...],
    seed: int | None = None,
) -> Step:  # fmt: skip
    say(stage if stage != "distilled" else "student")
    recipe, statistics = job.recipe, (job.splits.train.mean, job.splits.train.std)
    seed = recipe.seed if seed is None else seed
    network = training_steps.build(job, entry.spec, *statistics, seed)
    plan = training_steps.student_plan(job, recipe.epochs, recipe.learning_rate)
    return training_steps.train_step(job, store, stage, network, teachers, methods, plan, seed=seed)
