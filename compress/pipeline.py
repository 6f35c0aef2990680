"""From a recipe to files and a report: `run` is all of it, `dry_run` says what it would do."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

# What trains, exports and measures is imported where it is called: it brings torch, whose import takes as long as all
# that a finished run needs.
from compress import plan, publish
from compress.plan import Job
from compress.progress import duration, say
from compress.recipe import Recipe
from compress.store import NotThere, Peek, Store, exclusive


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run made: its two folders, the report document, and whether everything was there already."""

    models: Path
    reports: Path
    document: dict[str, Any]
    reused: bool


def run(recipe: Recipe, *, plugins: tuple[Path, ...] = (), store: Store | None = None, command: str = "") -> Result:
    """Do what the recipe says, reusing every finished step. Raises CompressError and its kinds."""
    started, started_at = time.monotonic(), datetime.now(UTC)
    store = store or Store.default()
    places = publish.places(recipe)
    publish.prepare(places)
    with exclusive(places.lock, publish.refuse_second(places)):
        splits = plan.load_data(recipe, store, plugins)
        inputs = publish.inputs_of(recipe, splits, plugins)
        document = publish.finished(places, inputs)
        if document is not None:
            return Result(models=places.models, reports=places.reports, document=document, reused=True)
        if reason := publish.why_again(places, inputs):
            say(f"{places.models} is made again ({reason}); steps that depend on nothing of that are kept")
        from compress import rehearsal, run_measurements, screen
        from compress.chain import make_chain

        recipe, choice = screen.resolve(recipe, splits, store, plugins, partial(rehearsal.try_networks, store=store))
        job = plan.make(recipe, splits, plugins)
        for line in plan.describe(job):
            say(line)
        links = list(make_chain(job, store))
        measured = run_measurements.measure(job, store, links) | {"choice": choice}
        measured["run"] |= {
            "command": command or f"compress run --recipe {places.models / 'recipe.toml'}",
            "started": started_at.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
        }
        resolved = publish.inputs_of(job.recipe, splits, plugins)
        document = publish.publish(places, job, links, measured, [inputs, resolved])
    return Result(models=places.models, reports=places.reports, document=document, reused=False)


def dry_run(recipe: Recipe, *, plugins: tuple[Path, ...] = (), store: Store | None = None) -> str:
    """The plan, what is in the store already, and an estimate of time; trains nothing."""
    from compress import estimate, rehearsal, screen

    store = store or Store.default()
    places = publish.places(recipe)
    splits = plan.load_data(recipe, store, plugins)
    inputs = publish.inputs_of(recipe, splits, plugins)
    able = partial(rehearsal.try_networks, store=store)
    recipe, _ = screen.resolve(recipe, splits, store, plugins, able, trials=Peek(store.root))
    job = plan.make(recipe, splits, plugins)
    lines = [
        *plan.describe(job),
        "",
        f"models   {places.models}",
        f"reports  {places.reports}",
        f"store    {store.root}",
        "",
    ]
    if publish.finished(places, inputs) is not None:
        return "\n".join([*lines, "everything is there already: nothing would be computed"])
    there = _already_there(job, store)
    total = 0.0
    for stage, seconds in estimate.seconds_of(job, store).items():
        total += 0.0 if stage in there else seconds
        lines.append(f"{stage:10} {'in the store' if stage in there else 'about ' + duration(seconds)}")
    return "\n".join([*lines, f"in all about {duration(total)} on this machine"])


def _already_there(job: Job, store: Store) -> list[str]:
    """The stages that a run would find finished. What follows a missing stage is missing too."""
    from compress.chain import make_chain

    there: list[str] = []
    try:
        for link in make_chain(job, Peek(store.root)):
            there.append(link.artifact.stage)
    except NotThere:
        pass
    return there


def export_teacher(recipe: Recipe, path: Path, *, plugins: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe's teacher as an ONNX file at `path`, with golden samples beside it. Returns the parity facts."""
    from compress import artifact_steps, training_steps

    store = Store.default()
    job = plan.make(recipe, plan.load_data(recipe, store, plugins), plugins)
    step = training_steps.teacher_step(job, store, 0)
    exported = artifact_steps.export_step(job, store, "teacher", step)
    artifact = artifact_steps.onnx_artifact(job, "teacher", exported.folder / "model.onnx", "float32", exported.facts)
    logits = artifact_steps.answers_step(job, store, artifact, "ort_cpu", job.splits.report)
    publish.write_artifact(path, artifact, job.splits.report, logits)
    return exported.facts["parity"]
