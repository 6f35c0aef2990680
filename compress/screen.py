"""Screening: the choice of a student among candidates, by what they cost on this machine.

Most of it needs no training: the bytes of a network's file and its latency do not depend on what the weights will be.
Every export, measurement and short training is a step in the store, so a screening that was stopped goes on, and a
finished one is judged alike each time.
"""

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress import artifact_steps, candidates, catalog, choice, measuring, plan, train, training_steps, units
from compress.candidates import Subject
from compress.catalog import Entry
from compress.choice import Candidate, Limits, Place
from compress.errors import InputRejected, TrainingDiverged, UsageError
from compress.plan import Job
from compress.progress import Progress, say
from compress.recipe import AUTO, Recipe
from compress.report import format as fmt
from compress.store import NotThere, Store
from compress.types import Artifact, Splits

MOST_TRIALS = 8  # candidates that are trained for `screen_epochs`: those of the fitting ones with the most MACs
VERSIONS = {"trial": 1}


def resolve(
    recipe: Recipe, splits: Splits, store: Store, plugins: tuple[Path, ...], check: Callable[[Job], None],
    trials: Store | None = None,
) -> tuple[Recipe, dict[str, Any] | None]:  # fmt: skip
    """The recipe with a student of its own where it asks for `auto`, and the facts of the choice, else None.

    `check` raises CompressError where a job's networks cannot do what its recipe asks; `trials` is the store that short
    trainings are looked for in, a Peek where none may be made. Raises InputRejected when nothing fits.
    """
    if recipe.student != AUTO:
        return recipe, None
    specs = [spec for of_net in catalog.candidates(plugins).values() for spec in of_net or ()]
    if not specs:
        raise UsageError(
            "--student auto: no network declares CANDIDATES", code="E-AUTO-CANDIDATES", hint="name the student"
        )
    entries = {e.label: e for e in (catalog.load("nets", spec, plugins) for spec in dict.fromkeys(specs))}
    job = plan.make(_with(recipe, next(iter(entries.values()))), splits, plugins)
    limits = limits_of(recipe)
    subject, place = _subject(job)
    say(f"student: {len(entries)} candidates, {place.words()}; {choice.limit_words(limits) or 'no limits'}")
    found, control = _measured(job, store, subject, entries, limits, place.precision)
    found = _able(job, found, entries, check, MOST_TRIALS if recipe.screen_epochs else 1)
    try:
        found = _tried(job, trials or store, found, entries, recipe.screen_epochs)
    except NotThere:
        say(f"  the trials of {recipe.screen_epochs} epochs are not in the store; the plan is for the most MACs")
    images = len(splits.select.labels)
    chosen = choice.best(found)
    if chosen is None:
        raise _nothing_fits(found, limits, place)
    facts = choice.facts(chosen, found, limits, place, recipe.screen_epochs, images, control)
    pruned = ["pruning comes on top of this"] if recipe.prune else []
    for line in (*choice.choice_table(found, chosen, place, images), *fmt.control_words(control), *pruned):
        say(f"  {line}"[: choice.WIDTH])
    say("\n".join(textwrap.wrap(facts["sentence"], choice.WIDTH)))
    return _with(recipe, entries[chosen.label]), facts


def limits_of(recipe: Recipe) -> Limits:
    return Limits(
        latency_ns=units.latency_ns(recipe.max_latency, "`max_latency`") if recipe.max_latency else 0.0,
        size_bytes=units.size_bytes(recipe.max_size, "`max_size`") if recipe.max_size else 0,
    )


def _with(recipe: Recipe, entry: Entry) -> Recipe:
    return dataclasses.replace(recipe, student=entry.spec, screen_epochs=0)


def _subject(job: Job) -> tuple[Subject, Place]:
    """Real images, the first of the recipe's runtimes that reads ONNX and works here, its first number of threads."""
    usable = measuring.onnx_runtime(job.recipe.runtimes, job.plugins)
    threads = int(job.recipe.threads[0])
    precision = job.quantizer.module.PRECISION if job.quantizer else "float32"
    place = Place(runtime=usable, threads=threads, precision=precision)
    return candidates.subject_of(job.splits.calibrate, usable, threads, job.plugins), place


def _measured(
    job: Job, store: Store, subject: Subject, entries: dict[str, Entry], limits: Limits, precision: str
) -> tuple[list[Candidate], dict[str, Any] | None]:
    """Every candidate as far as it had to be looked at: what is too large is not exported or not timed."""
    found: list[Candidate] = []
    with Progress("building", len(entries), "networks") as bar:
        for number, entry in enumerate(entries.values()):
            bar.to(number, entry.label)
            found.append(choice.sized(_counted(store, subject, entry, precision), limits))
    files: dict[str, Artifact] = {}
    due = sum(not c.out for c in found)
    with Progress("exporting", due, "networks") as bar:
        for number, candidate in enumerate(found):
            if candidate.out:
                continue
            bar.to(len(files), candidate.label)
            found[number], file = _exported(job, store, subject, candidate, entries[candidate.label])
            found[number] = choice.sized(found[number], limits)
            if file and not found[number].out:
                files[candidate.label] = file
    if not files:
        return found, None
    timed = candidates.latencies(store, subject, list(files.values()))
    for number, candidate in enumerate(found):
        if candidate.label in files:
            latency = timed.of[files[candidate.label].stage]
            found[number] = choice.timed(dataclasses.replace(candidate, latency=latency), limits)
    return found, timed.control


def _counted(store: Store, subject: Subject, entry: Entry, precision: str) -> Candidate:
    """Parameters, MACs and a bound of the bytes; of what was exported before without building it."""
    candidate = Candidate(label=entry.label, spec=entry.spec)
    before = candidates.exported_before(store, subject, entry)
    if before:
        return dataclasses.replace(candidate, parameters=before.facts["parameters"], macs=before.facts["macs"])
    try:
        counts = candidates.counts(candidates.build(subject, entry), precision)
    except Exception as error:  # a network of anybody may fail in any way
        return dataclasses.replace(candidate, out=choice.CANNOT, reason=candidates.why(error))
    return dataclasses.replace(
        candidate, parameters=counts["parameters"], macs=counts["macs"], size_bytes=counts["least_bytes"]
    )


def _exported(
    job: Job, store: Store, subject: Subject, candidate: Candidate, entry: Entry
) -> tuple[Candidate, Artifact | None]:
    try:
        file = candidates.float_artifact(store, subject, entry)
        if job.quantizer:
            file = candidates.quantized_artifact(store, subject, entry, file, artifact_steps.plain(job.quantizer))
    except Exception as error:  # as above
        return dataclasses.replace(candidate, out=choice.CANNOT, reason=candidates.why(error)), None
    return dataclasses.replace(candidate, size_bytes=file.size_bytes, exported=True), file


def _job_of(job: Job, entry: Entry) -> Job:
    return dataclasses.replace(job, student=entry, recipe=dataclasses.replace(job.recipe, student=entry.spec))


def _able(
    job: Job, found: list[Candidate], entries: dict[str, Entry], check: Callable[[Job], None], wanted: int
) -> list[Candidate]:
    """With what cannot do what the recipe asks (be pruned, be taught by its methods) ruled out, until `wanted` of those
    with the most MACs can.
    """
    for candidate in choice.by_macs(found):
        if wanted == 0:
            break
        try:
            check(_job_of(job, entries[candidate.label]))
            wanted -= 1
        except Exception as error:  # as above
            refused = dataclasses.replace(candidate, out=choice.CANNOT, reason=candidates.why(error))
            found = [refused if c.label == candidate.label else c for c in found]
    return found


def _tried(job: Job, store: Store, found: list[Candidate], entries: dict[str, Entry], epochs: int) -> list[Candidate]:
    """With the right answers on select, after some epochs of labels, of those that fit with the most MACs."""
    due = choice.by_macs(found)[:MOST_TRIALS] if epochs else []
    if len(due) < 2:
        return found
    fitting = len(choice.by_macs(found))
    most = f"at most {MOST_TRIALS}, the most MACs first"
    say(f"  {len(due)} of the {fitting} that fit ({most}) learn labels for {fmt.plural(epochs, 'epoch')}")
    after = {}
    for candidate in due:
        try:
            correct = _trial(job, store, entries[candidate.label], epochs)
            say(f"  {candidate.label}: {correct} of {len(job.splits.select.labels)} right on select")
            after[candidate.label] = dataclasses.replace(candidate, correct=correct)
        except TrainingDiverged as error:
            reason = candidates.why(error)
            after[candidate.label] = dataclasses.replace(candidate, out=choice.CANNOT, reason=reason)
    return [after.get(c.label, c) for c in found]


def _trial(job: Job, store: Store, entry: Entry, epochs: int) -> int:
    """Right answers on select after `epochs` of labels, by the training that everything takes."""
    train_split, select = job.splits.train, job.splits.select
    network = training_steps.build(job, entry.spec, train_split.mean, train_split.std, job.recipe.seed)
    methods = (catalog.load("methods", "cross_entropy"),)
    taught = training_steps.plan_for(job, epochs, job.recipe.learning_rate)
    step = training_steps.train_step(job, store, "trial", network, (), methods, taught, dataset=train_split)
    parts = {"version": VERSIONS["trial"], "network": step.key, "select": select.digest}

    def make(folder: Path) -> dict[str, Any]:
        logits = train.predict(training_steps.trained(job, step), select.images)
        return {"correct": int(np.count_nonzero(logits.argmax(1) == select.labels))}

    return store.step("trial-judged", parts, make).facts["correct"]


def _nothing_fits(found: list[Candidate], limits: Limits, place: Place) -> InputRejected:
    reasons = [line for c in found if c.out == choice.CANNOT for line in textwrap.wrap(f"{c.label}: {c.reason}", 78)]
    if not any(c.macs for c in found):
        return InputRejected(
            "--student auto: no candidate can be built for these images:\n" + "\n".join(reasons), code="E-AUTO-NONE"
        )
    table = "\n".join(f"  {line}" for line in [*choice.frontier_table(found, place), *reasons])
    asked = choice.limit_words(limits) or "what the recipe asks"
    untimed = sum(c.out == choice.TOO_LARGE for c in found)
    rest = f"; the {untimed} that are too large were not timed" if limits.latency_ns and untimed else ""
    return InputRejected(
        f"--student auto: none of {len(found)} candidates keeps to {asked}, {place.words()}{rest}. The best trades of "
        f"latency, bytes and MACs that were seen:\n{table}",
        code="E-AUTO-NONE",
        hint="allow what one of these needs" + ("" if place.precision == "int8" else ", or take --quantize int8"),
    )
