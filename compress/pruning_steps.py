"""The pruning of a chain: a training for sparsity where the pruner asks for one, then cut and recovery, as often as the
recipe says; and whether the smaller file is worth it on the runtime that was asked for.
"""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress import (
    batchnorm,
    bench,
    environment,
    export,
    measuring,
    prune,
    screen,
    sensitivity,
    sparse,
    stats,
    training_steps,
)
from compress import network as net
from compress.catalog import load as load_entry
from compress.environment import versions
from compress.errors import CompressError, Unmeasurable
from compress.network import Network
from compress.plan import Job, plugins_digest
from compress.progress import say
from compress.prune import Ranking
from compress.recipe import MOST_OF_A_LAYER, parse_prune
from compress.store import Step, Store, file_digest
from compress.types import Artifact

VERSIONS = {"prune": 3, "speed": 1}
# where a latency is searched: what can be told apart by measuring
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, MOST_OF_A_LAYER)


def pruned(job: Job, store: Store, student: Step, teachers: tuple[Step, ...]) -> Step:
    """The pruned and recovered student; `pruning` among its facts says what each cut did."""
    assert job.pruner
    recipe, current = job.recipe, student
    cuts: list[dict[str, Any]] = []
    rate = recipe.learning_rate * training_steps.RECOVERY_LEARNING_RATE
    train = partial(training_steps.train_step, job, store, teachers=teachers, methods=job.methods, with_stages=False)
    if hasattr(job.pruner.module, "penalty"):
        plan = training_steps.student_plan(job, job.pruner.config.epochs or recipe.recover_epochs, rate)
        network = training_steps.trained(job, student)
        current = train(name="sparse", network=network, plan=plan, start=student.key, penalty=job.pruner)
    plan = training_steps.student_plan(job, recipe.recover_epochs / recipe.prune_steps, rate)
    for number in range(1, recipe.prune_steps + 1):
        name = "pruned" if recipe.prune_steps == 1 else f"pruned, step {number} of {recipe.prune_steps}"
        cut = _cut_step(job, store, current, number, cuts[0] if cuts else None)
        network = training_steps.trained(job, cut)
        masked = hasattr(job.pruner.module, "masks")
        current = train(name=name, network=network, plan=plan, start=cut.key, hold_zeros=masked)
        cuts.append(cut.facts)
    return dataclasses.replace(current, facts={**current.facts, "pruning": cuts})


def _cut_step(job: Job, store: Store, student: Step, number: int, first: dict[str, Any] | None) -> Step:
    """The student after the cut with this number (from 1), its BatchNorm statistics estimated anew. `first` are the
    facts of the first cut: what there was in the beginning.
    """
    assert job.pruner
    recipe, module = job.recipe, job.pruner.module
    wanted = getattr(module, "SAMPLES", 0)
    train, select = job.splits.train, job.splits.select
    parts = {
        "version": VERSIONS["prune"],
        "student": student.key,
        "pruner": job.pruner.spec,
        "target": recipe.prune,
        "step": [number, recipe.prune_steps],
        "scope": recipe.prune_scope,
        "round_to": recipe.prune_round_to,
        "data": [train.digest, select.digest, job.splits.calibrate.digest],
        "plugins": plugins_digest(job),
        "versions": versions("torch-pruning", "torch", "torchvision"),
    }
    target = parse_prune(recipe.prune)
    assert target
    if target[0] == "latency":
        parts["measured"] = [asked_runtime(job, store), recipe.threads[0], recipe.tier]
        parts["machine"] = environment.fingerprint(environment.capture())

    def make(folder: Path) -> dict[str, Any]:
        assert job.pruner
        network = training_steps.trained(job, student)
        samples = prune.samples_of(train.images, train.labels, wanted) if wanted else None
        if hasattr(module, "masks"):
            grow = getattr(module, "ratio_at", _evenly)
            smaller = sparse.thin(network, job.pruner, grow(target[1], number, recipe.prune_steps), samples)
            facts: dict[str, Any] = sparse.zeros(smaller)
        else:
            smaller, facts = _without_channels(job, store, network, target, number, first, samples)
        batchnorm.reestimate(smaller, job.splits.calibrate.images)
        net.save(smaller, folder)
        return facts

    return store.step("prune", parts, make, say)


def _evenly(ratio: float, step: int, steps: int) -> float:
    return ratio * step / steps


def _without_channels(
    job: Job, store: Store, network: Network, target: tuple[str, float], number: int, first: dict[str, Any] | None,
    samples: Any,
) -> tuple[Network, dict[str, Any]]:  # fmt: skip
    assert job.pruner
    recipe, select = job.recipe, job.splits.select
    found = prune.prunable(network)
    if found.stays and number == 1:
        named = ", ".join(path.removeprefix("body.") for path in list(found.stays)[:3])
        more = f" and {len(found.stays) - 3} more" if len(found.stays) > 3 else ""
        say(f"  prune: the channels of {named}{more} stay, since widths there cannot follow a removal")
    ranking = prune.rank(found, job.pruner, samples)
    options: dict[str, Any] = {"scope": recipe.prune_scope, "round_to": recipe.prune_round_to}
    facts: dict[str, Any] = {"sensitivity": None, "search": []}
    if first:
        options["original"] = {family["layers"][0]: family["channels"] for family in first["families"]}
    else:
        say("  prune: how much hangs on each layer")
        facts["sensitivity"] = sensitivity.of_families(ranking, select.images, select.labels)
    ratio = _ratio(job, store, ranking, target, number, first, facts, options)
    chosen = prune.choose(ranking, ratio, **options)
    facts |= {"ratio": ratio, "families": prune.widths(ranking, chosen), "stays": found.stays}
    counts = {"macs": prune.macs, "parameters": net.count_parameters}
    if number < recipe.prune_steps and not any(len(which) for which in chosen):
        # little by little may be less than the rounding; a later step makes up for it
        return network, facts | {key: [count(network)] * 2 for key, count in counts.items()}
    smaller = prune.cut(ranking, chosen, round_to=recipe.prune_round_to, plugins=job.plugins)
    facts |= {key: [count(network), count(smaller)] for key, count in counts.items()}
    return smaller, facts


def _ratio(
    job: Job, store: Store, ranking: Ranking, target: tuple[str, float], number: int, first: dict[str, Any] | None,
    facts: dict[str, Any], options: dict[str, Any],
) -> float:  # fmt: skip
    """The part of the present channels that this step removes, so that all steps together do what is asked."""
    kind, value = target
    done = number / job.recipe.prune_steps
    if kind == "channels":
        present = sum(len(family.units) * family.channels_per_unit for family in ranking.families)
        original = sum(family["channels"] for family in first["families"]) if first else present
        return max(0.0, 1 - original * (1 - value * done) / present)
    if kind == "macs":
        present = prune.macs(ranking.network)
        original = first["macs"][0] if first else present
        share = original * value**done / present
        return prune.ratio_for(prune.macs, ranking, share, **options) if share < 1 else 0.0
    return _ratio_of_latency(job, store, ranking, value, facts, options)


def _ratio_of_latency(
    job: Job, store: Store, ranking: Ranking, share: float, facts: dict[str, Any], options: dict[str, Any]
) -> float:
    facts["search"] = _latencies(job, store, ranking, options)
    fitting = [row["ratio"] for row in facts["search"] if row["share"] <= share]
    if fitting:
        say(f"  prune: {fitting[0]:.0%} of the channels, which leaves {share:.0%} of the latency or less")
        return fitting[0]
    best = min(facts["search"], key=lambda row: row["share"])
    raise _unreachable(share, best)


def _unreachable(share: float, best: dict[str, Any]) -> CompressError:
    within = f"ask for more, for example --prune latency={best['high']:.2g}, or " if best["high"] < 0.995 else ""
    return CompressError(
        f"no ratio leaves {share:.0%} of the latency: the best was {best['share']:.0%} "
        f"({best['low']:.0%} to {best['high']:.0%}), with {best['ratio']:.0%} of the channels gone",
        hint=f"{within}take a smaller student",
    )


def _latencies(
    job: Job, store: Store, ranking: Ranking, options: dict[str, Any], ratios: tuple[float, ...] | None = None
) -> list[dict[str, Any]]:
    """The latency at each of `RATIOS` as a share of the whole network's, all files measured in one session."""
    ratios, runtime = ratios or RATIOS, asked_runtime(job, store)
    (store.root / "scratch").mkdir(parents=True, exist_ok=True)
    say(f"  prune: the latency in {runtime} of {len(ratios)} ratio{'s' * (len(ratios) > 1)}")
    with tempfile.TemporaryDirectory(prefix="search-", dir=store.root / "scratch") as folder:
        artifacts = []
        for ratio in (0.0, *ratios):
            network = prune.without(ranking, prune.choose(ranking, ratio, **options)) if ratio else ranking.network
            path = Path(folder) / f"{ratio:g}.onnx"
            export.export_onnx(network, path, recipe_digest="")
            artifacts.append(_candidate(job, path, f"{ratio:g}", network))
        medians = _round_medians(job, store, artifacts, runtime)
    rows = []
    for ratio in ratios:
        found = stats.paired_ratio(medians[f"{ratio:g}"], medians["0"])
        rows.append({"ratio": ratio} | dict(zip(("share", "low", "high"), found, strict=True)))
    return rows


def _candidate(job: Job, path: Path, stage: str, network: Network) -> Artifact:
    train = job.splits.train
    return Artifact(
        path=path, digest=file_digest(path), format="onnx", precision="float32", stage=stage,
        size_bytes=path.stat().st_size, parameters=net.count_parameters(network), macs=net.count_macs(network),
        input_shape=train.input_shape, class_names=train.class_names,
    )  # fmt: skip


def asked_runtime(job: Job, store: Store) -> str:
    """The first of the recipe's runtimes that reads ONNX files and works here. Raises Unmeasurable without one."""
    reasons = []
    for name in job.recipe.runtimes:
        if load_entry("runtimes", name, job.plugins).module.FORMAT != "onnx":
            continue
        reason = bench.runtime_state(name, store.root / "scratch", job.plugins)["unavailable"]
        if not reason:
            return name
        reasons.append(f"{name}: {reason}")
    raise Unmeasurable(
        f"there is no runtime to measure a pruned file in ({'; '.join(reasons) or 'none of them reads ONNX files'})",
        hint="add --runtimes ort_cpu",
    )


def _round_medians(job: Job, store: Store, artifacts: list[Artifact], runtime: str) -> dict[str, list[float]]:
    """Median latency in ns of each artifact (by stage), round by round, and of the first once more (the control)."""
    recipe = job.recipe
    measurements = measuring.latency(
        [(artifact, runtime) for artifact in artifacts], recipe.threads[:1], job.splits.select.images, recipe.tier,
        recipe.seed, store, job.plugins,
    )  # fmt: skip
    failed = next((m for m in measurements if m.failure), None)
    if failed:
        raise Unmeasurable(f"{failed.artifact} could not be measured in {runtime}: {failed.failure}")
    return {
        m.artifact + (measuring.TWIN if measuring.twin_of(m) else ""): [
            float(np.median(visit["samples_ns"])) for visit in sorted(m.visits, key=lambda visit: visit["round"])
        ]
        for m in measurements
    }


def speedup(job: Job, store: Store, parent: Artifact, child: Artifact) -> dict[str, Any]:
    """How many times faster `child` is than `parent` where it is asked for: `ratio`, `low`, `high`, `runtime`, and the
    verdict on the machine by the A/A control, `control`.
    """
    runtime = asked_runtime(job, store)
    parts = {
        "version": VERSIONS["speed"],
        "files": [parent.digest, child.digest],
        "how": [runtime, job.recipe.threads[0], job.recipe.tier, job.splits.select.digest],
        "plugins": plugins_digest(job),
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        medians = _round_medians(job, store, [parent, child], runtime)
        ratio, low, high = stats.paired_ratio(medians[parent.stage], medians[child.stage])
        _, *control = stats.paired_ratio(medians[parent.stage], medians[parent.stage + measuring.TWIN])
        return {
            "ratio": ratio, "low": low, "high": high, "runtime": runtime, "control": stats.aa_verdict(*control),
        }  # fmt: skip

    return store.step("speed", parts, make, say).facts


def worth(job: Job, store: Store, parent: Artifact, child: Artifact) -> tuple[bool, str]:
    """Whether the smaller file is kept, and the figures: for its speed, or since it meets the size that was asked for
    and its parent does not (compressed, where single weights are zero).
    """
    assert job.pruner
    masks = hasattr(job.pruner.module, "masks")
    least, limit = job.recipe.least_speedup, screen.limits_of(job.recipe).size_bytes
    before, after = (sparse.compressed_bytes(a.path) if masks else a.size_bytes for a in (parent, child))
    if limit and after <= limit < before:
        words = "bytes compressed" if masks else "bytes"
        return True, f"has {after:,} {words}, of {limit:,} allowed; {parent.stage} has {before:,}"
    if not least:
        return True, ""
    try:
        found = speedup(job, store, parent, child)
    except Unmeasurable as error:
        return False, f"could not be measured: {error.message}"
    figures = f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f}) in {found['runtime']}"
    if found["control"] == "invalid":
        return False, f"is {figures} of {parent.stage} on a machine that finds a difference between equal files"
    if found["ratio"] >= least and found["low"] > 1:
        return True, f"is {figures} faster than {parent.stage}"
    still = "; --set least_speedup=0 keeps it for its compressed size" if masks else ""
    return False, f"is not {least:g} times as fast as {parent.stage}: {figures}{still}"


def describe(job: Job, step: Step) -> str:
    """What the pruning did, in a sentence of the report."""
    assert job.pruner
    recipe, last = job.recipe, step.facts["pruning"][-1]
    steps = f" in {recipe.prune_steps} steps" if recipe.prune_steps > 1 else ""
    recovery = f"{recipe.recover_epochs} epochs of recovery"
    if "zero" in last:
        return f"{last['zero'] / last['weights']:.1%} of the weights zero by {job.pruner.label}{steps}, {recovery}"
    first = step.facts["pruning"][0]
    macs, parameters = (1 - last[key][1] / first[key][0] for key in ("macs", "parameters"))
    return f"{macs:.0%} of the MACs and {parameters:.0%} of the weights gone by {job.pruner.label}{steps}, {recovery}"


def compressed(job: Job, parent: Artifact, child: Artifact) -> str:
    """What zeros give, for the report: the bytes of both files after deflate. Nothing where channels went."""
    assert job.pruner
    if not hasattr(job.pruner.module, "masks"):
        return ""
    before, after = (sparse.compressed_bytes(artifact.path) for artifact in (parent, child))
    return f"; compressed (deflate) the file has {after:,} bytes, {parent.stage} {before:,}"


def refuse(job: Job, store: Store, student: Network) -> None:
    """Raises CompressError for a pruning that cannot work, tried on an untrained student: what only needs its shapes,
    its latency included, must not be found out after an hour.
    """
    assert job.pruner
    target = parse_prune(job.recipe.prune)
    assert target
    if job.recipe.least_speedup or target[0] == "latency":
        asked_runtime(job, store)
    wanted = getattr(job.pruner.module, "SAMPLES", 0)
    samples = prune.samples_of(job.splits.train.images, job.splits.train.labels, min(wanted, 8)) if wanted else None
    if hasattr(job.pruner.module, "masks"):
        sparse.thin(student, job.pruner, target[1], samples)
        return
    ranking = prune.rank(prune.prunable(student), job.pruner, samples)
    options: dict[str, Any] = {"scope": job.recipe.prune_scope, "round_to": job.recipe.prune_round_to}
    ratio = target[1] if target[0] == "channels" else MOST_OF_A_LAYER
    if target[0] == "macs":
        ratio = prune.ratio_for(prune.macs, ranking, target[1], **options)
    chosen = prune.choose(ranking, ratio, **options)
    prune.cut(ranking, chosen, round_to=job.recipe.prune_round_to, plugins=job.plugins)
    if target[0] == "latency":
        (best,) = _reach(job, store, ranking, options)
        if best["share"] > target[1]:
            raise _unreachable(target[1], best)


def _reach(job: Job, store: Store, ranking: Ranking, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The latency with as much gone as may go, measured once."""
    parts = {
        "version": VERSIONS["speed"],
        "network": [ranking.network.contract.spec, list(ranking.network.contract.input_shape)],
        "how": [job.pruner and job.pruner.spec, options, asked_runtime(job, store), job.recipe.threads[0]],
        "tier": job.recipe.tier,
        "machine": environment.fingerprint(environment.capture()),
    }

    def make(folder: Path) -> dict[str, Any]:
        return {"rows": _latencies(job, store, ranking, options, (MOST_OF_A_LAYER,))}

    return store.step("reach", parts, make, say).facts["rows"]
