"""Measuring files, in a run or outside of one: the same cells, rounds and control."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from compress import bench, catalog, conversion, facts, files, numerics, plan, randomness, runtime_files
from compress.child import HERE, Host
from compress.errors import InputRejected, Unmeasurable, UsageError
from compress.progress import Progress, duration
from compress.recipe import Recipe
from compress.runtime_files import Offer
from compress.store import Store
from compress.types import SINGLE_STREAM, Artifact, Failure, Measurement, Scenario

TWIN = " again"
SYNTHETIC_IMAGES = 128


def cells_of(
    pairs: list[tuple[Artifact, str]], threads: tuple[str, ...], plugins: tuple[Path, ...],
    refused: Mapping[tuple[str, str], Failure] = MappingProxyType({}), scenario: Scenario = SINGLE_STREAM,
    host: Host = HERE,
) -> list[bench.Cell]:  # fmt: skip
    """A cell for each (artifact, runtime), number of threads and batch size; the first whose runtime works here once
    more, as the A/A control. `refused` holds why some (stage, runtime) are not to be measured. Queries at a rate are
    single images.
    """
    cells = [
        bench.Cell(
            name=f"{artifact.stage}/{runtime}/{number}" + (f"/batch {batch}" if batch > 1 else ""), artifact=artifact,
            runtime=runtime, threads=int(number), batch=batch, fps=scenario.fps if batch == 1 else 0.0,
            refused=refused.get((artifact.stage, runtime), Failure()),
        )
        for batch in scenario.batches
        for number in threads
        for artifact, runtime in pairs
    ]  # fmt: skip
    runtimes = dict.fromkeys(cell.runtime for cell in cells if not cell.refused)
    usable = next((r for r in runtimes if not bench.runtime_state(r, plugins, host)["unavailable"]), cells[0].runtime)
    first = next((cell for cell in cells if cell.runtime == usable and not cell.refused), cells[0])
    twin = dataclasses.replace(first, name=first.name + TWIN, fps=0.0)
    return [*cells, twin]


def onnx_runtime(runtimes: tuple[str, ...], plugins: tuple[Path, ...] = ()) -> str:
    """The first of the runtimes that reads ONNX files and works here. Raises UsageError where none reads them, and
    Unmeasurable where none of those that do works.
    """
    readers = [name for name in runtimes if catalog.load("runtimes", name, plugins).module.FORMAT == "onnx"]
    if not readers:
        raise UsageError(
            f"ONNX files are to be measured, which none of the runtimes reads: {', '.join(runtimes)}",
            code="E-RUNTIME-CHOICE",
            hint="add ort_cpu to --runtimes",
        )
    reasons = []
    for name in readers:
        reason = bench.runtime_state(name, plugins)["unavailable"]
        if not reason:
            return name
        reasons.append(f"{name}: {reason}")
    raise Unmeasurable(
        f"ONNX files are to be measured, and no runtime that reads them works here: {'; '.join(reasons)}",
        code="E-RUNTIME-UNAVAILABLE",
        hint="see `compress doctor`, or add ort_cpu to --runtimes",
    )


def twin_of(measurement: Measurement) -> str:
    """The name of the cell that this one is the A/A control of, or ""."""
    return measurement.cell.removesuffix(TWIN) if measurement.cell.endswith(TWIN) else ""


def latency(
    pairs: list[tuple[Artifact, str]], threads: tuple[str, ...], images: np.ndarray, tier: str, seed: int,
    store: Store, plugins: tuple[Path, ...] = (), refused: Mapping[tuple[str, str], Failure] = MappingProxyType({}),
    scenario: Scenario = SINGLE_STREAM, host: Host = HERE, memory: bool = False,
) -> list[Measurement]:  # fmt: skip
    """All cells in one interleaved session, and what each holds of the `memory` after it where that is wanted. The
    teacher's first cell is the control's original.
    """
    cells = cells_of(pairs, threads, plugins, refused, scenario, host)
    length = bench.TIERS[tier]
    with Progress("benchmark", len(cells) * (length.rounds + memory), "visits") as bar:
        measured = bench.measure(
            cells, images, length, seed=seed, scratch=store.root / "scratch",
            on_visit=lambda done, total: bar.to(done), plugins=plugins, host=host, memory=memory,
        )  # fmt: skip
    if not scenario.sustained_s:
        return measured
    # single images, as those at a rate; what failed for a second would fail for minutes
    failed = {m.cell for m in measured if m.failure}
    chosen = [cell for cell in cells if cell.batch == 1 and not cell.name.endswith(TWIN) and cell.name not in failed]
    with Progress(f"without a pause, {duration(scenario.sustained_s)} each", len(chosen), "cells") as bar:
        found = bench.sustained(
            chosen, images, scenario.sustained_s, seed=seed, scratch=store.root / "scratch",
            on_cell=lambda done, total: bar.to(done), plugins=plugins, host=host,
        )  # fmt: skip
    return [dataclasses.replace(m, sustained=found.get(m.cell)) for m in measured]


def synthetic_images(input_shape: tuple[int, int, int], count: int = SYNTHETIC_IMAGES) -> np.ndarray:
    """Random images, uint8 `[N,H,W,C]`: a function of their shape alone."""
    channels, height, width = input_shape
    counters = np.arange(count * height * width * channels)
    noise = randomness.integers(randomness.derive("synthetic"), 256, counters).astype(np.uint8)
    return noise.reshape(count, height, width, channels)


def bench_files(
    artifacts: list[Artifact], recipe: Recipe, *, tier: str, synthetic: bool, store: Store, command: str,
    scenario: Scenario = SINGLE_STREAM, host: Host = HERE, own_inputs: bool = False,
) -> tuple[dict[str, Any], list[Measurement]]:  # fmt: skip
    """A report document of these artifacts' latency in the recipe's runtimes, on `host`, and what it was made from;
    files are converted here. With `own_inputs` no image is asked about: the programs that measure make inputs of their
    own.
    """
    for runtime in recipe.runtimes:
        if catalog.load("runtimes", runtime).module.FORMAT == "torch":
            raise InputRejected(
                f"`{runtime}` reads networks, not ONNX files",
                code="E-RUNTIME-NETWORKS",
                hint="take ort_cpu or ort_cuda",
            )
    shapes = {a.input_shape for a in artifacts}
    if len(shapes) > 1:
        raise InputRejected(
            f"the files take images of different shapes: {', '.join(map(str, sorted(shapes)))}", code="E-INPUT-SHAPE"
        )
    environment = host.environment()
    plan.refuse_threads(recipe.threads, environment.cores_allowed)
    if own_inputs:
        images, note = synthetic_images(artifacts[0].input_shape, 1), "inputs of the benchmark programs' own"
    elif synthetic:
        images, note = synthetic_images(artifacts[0].input_shape), "synthetic random images"
    else:
        dataset = plan.load_data(recipe, store).report
        images, note = dataset.images, f"{dataset.name}, report split"
    offers = _for_runtimes(artifacts, recipe.runtimes, store)
    warnings = [said for artifact in artifacts for said in _of_numbers(artifact, images, store)]
    warnings += [] if own_inputs else _not_compared(recipe.runtimes)
    measurements = latency(
        [(offer.artifact, offer.runtime) for offer in offers], recipe.threads, images, tier, recipe.seed, store,
        refused=runtime_files.refused(offers), scenario=scenario, host=host, memory=True,
    )  # fmt: skip
    if all(m.failure for m in measurements):
        raise Unmeasurable(f"nothing could be measured: {measurements[0].failure}", code="E-RUNTIME-FAILED")
    document = files.document(
        artifacts,
        [facts.measurement_facts(m, twin_of(m), scenario) for m in measurements],
        converted=[runtime_files.facts(offer) for offer in offers if conversion.converts(offer.runtime)],
        environment=environment,
        scenario=scenario,
        command=command,
        tier=tier,
        seed=recipe.seed,
        image_count=0 if own_inputs else len(images),
        data_note=note,
        warnings=warnings,
    )
    return document, measurements


def _not_compared(runtimes: tuple[str, ...]) -> list[str]:
    """A sentence for each runtime that reads the file as it is; of converted files the report says the same."""
    known = (runtime_files.REFERENCE, "null")
    return [
        f"what the files answer in {name} was not looked at here: compress eval --runtime {name} does"
        for name in runtimes
        if name not in known and not conversion.converts(name)
    ]


def _of_numbers(artifact: Artifact, images: np.ndarray, store: Store) -> list[str]:
    try:
        return numerics.sentences(artifact.path.name, conversion.numbers_of(store, artifact, images))
    except Unmeasurable as error:  # what is timed need not be read by others
        return [f"{artifact.path.name}: its numbers were not looked at: {error.message}"]


def _for_runtimes(artifacts: list[Artifact], runtimes: tuple[str, ...], store: Store) -> list[Offer]:
    """Each file for each runtime, converted where it has a format of its own, or why there is none. Answers are not
    compared here, which the report says: that is `compress convert`'s.
    """
    offers = []
    for runtime in runtimes:
        for artifact in artifacts:
            made, failed = artifact, Failure()
            known: dict[str, Any] = {}
            if conversion.converts(runtime):
                try:
                    made, known = conversion.converted(store, artifact, runtime)
                except Unmeasurable as error:
                    failed = conversion.failure_of(error)
            offers.append(Offer(runtime=runtime, artifact=made, conversion=known, gate={}, failed=failed))
    return offers
