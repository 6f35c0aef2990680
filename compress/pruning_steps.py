"""The pruning of a chain: a training for sparsity where the pruner asks for one, then cut and recovery, as often as the
recipe says.
"""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from compress import (
    artifact_steps,
    batchnorm,
    catalog,
    environment,
    export,
    payoff,
    prune,
    sensitivity,
    sparse,
    stats,
    training_steps,
)
from compress import network as net
from compress.environment import versions
from compress.errors import UsageError
from compress.network import Network
from compress.plan import Job, plugins_digest
from compress.progress import say
from compress.prune import Ranking
from compress.recipe import MOST_OF_A_LAYER, parse_prune
from compress.store import Step, Store, file_digest
from compress.types import Artifact, Samples

VERSIONS = {"prune": 3, "sensitivity": 1, "rehearsal": 1}
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
        cut = cut_step(job, store, current, number, cuts[0] if cuts else None)
        network = training_steps.trained(job, cut)
        masked = hasattr(job.pruner.module, "masks")
        current = train(name=name, network=network, plan=plan, start=cut.key, hold_zeros=masked)
        cuts.append(cut.facts)
    return dataclasses.replace(current, facts={**current.facts, "pruning": cuts})


def cut_step(job: Job, store: Store, student: Step, number: int, first: dict[str, Any] | None) -> Step:
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
        "round_to": job.round_to,
        "data": [train.digest, select.digest, job.splits.calibrate.digest],
        "plugins": plugins_digest(job),
        "versions": _versions(job),
    }
    target = parse_prune(recipe.prune)
    assert target
    if target[0] == "latency":
        parts["measured"] = _where(job)

    def make(folder: Path) -> dict[str, Any]:
        assert job.pruner
        samples = prune.samples_of(train.images, train.labels, wanted) if wanted else None
        if hasattr(module, "masks"):
            network = training_steps.trained(job, student)
            grow = getattr(module, "ratio_at", _evenly)
            smaller = sparse.thin(network, job.pruner, grow(target[1], number, recipe.prune_steps), samples)
            facts: dict[str, Any] = sparse.zeros(smaller)
        else:
            smaller, facts = _without_channels(job, store, student, target, number, first, samples)
        batchnorm.reestimate(smaller, job.splits.calibrate.images)
        net.save(smaller, folder)
        return facts

    return store.step("prune", parts, make, say)


def _evenly(ratio: float, step: int, steps: int) -> float:
    return ratio * step / steps


def _without_channels(
    job: Job, store: Store, student: Step, target: tuple[str, float], number: int, first: dict[str, Any] | None,
    samples: Samples | None,
) -> tuple[Network, dict[str, Any]]:  # fmt: skip
    assert job.pruner
    recipe, network = job.recipe, training_steps.trained(job, student)
    found = prune.prunable(network)
    if found.stays and number == 1:
        named = ", ".join(path.removeprefix("body.") for path in list(found.stays)[:3])
        more = f" and {len(found.stays) - 3} more" if len(found.stays) > 3 else ""
        say(f"  prune: the channels of {named}{more} stay, since widths there cannot follow a removal")
    ranking = prune.rank(found, job.pruner, samples)
    options: dict[str, Any] = {"scope": recipe.prune_scope, "round_to": job.round_to}
    facts: dict[str, Any] = {"sensitivity": None, "search": []}
    if first:
        options["original"] = {family["layers"][0]: family["channels"] for family in first["families"]}
    else:
        facts["sensitivity"] = _sensitivity_step(job, store, student, ranking).facts["found"]
    ratio = _ratio(job, store, ranking, target, number, first, facts, options)
    chosen = prune.choose(ranking, ratio, **options)
    families = prune.widths(ranking, chosen)
    narrow = {family["layers"][0]: f"rounding to multiples of {job.round_to} gives every channel back"
              for family, which in zip(families, chosen, strict=True)
              if not len(which) and family["channels"] < 2 * job.round_to}  # fmt: skip
    if narrow and number == recipe.prune_steps:
        say(f"  prune: {len(narrow)} of {len(families)} groups of layers stay whole, since rounding to multiples of "
            f"{job.round_to} gives every channel back")  # fmt: skip
    facts |= {"ratio": ratio, "families": families, "stays": {**found.stays, **narrow}}
    counts = {"macs": prune.macs, "parameters": net.count_parameters}
    if not any(len(which) for which in chosen) and (number < recipe.prune_steps or network.contract.widths):
        # little by little may be less than the rounding, which a later step makes up for, or an earlier one has done
        return network, facts | {key: [count(network)] * 2 for key, count in counts.items()}
    smaller = prune.cut(ranking, chosen, round_to=job.round_to, plugins=job.plugins)
    facts |= {key: [count(network), count(smaller)] for key, count in counts.items()}
    return smaller, facts


def _sensitivity_step(job: Job, store: Store, student: Step, ranking: Ranking) -> Step:
    """How much hangs on each layer: a step of its own, since other ratios ask for the same."""
    assert job.pruner
    select = job.splits.select
    parts = {
        "version": VERSIONS["sensitivity"],
        "student": student.key,
        "pruner": job.pruner.spec,
        "data": [job.splits.train.digest, select.digest],
        "plugins": plugins_digest(job),
        "versions": _versions(job),
    }

    def make(folder: Path) -> dict[str, Any]:
        say("  prune: how much hangs on each layer")
        return {"found": sensitivity.of_families(ranking, select.images, select.labels)}

    return store.step("sensitivity", parts, make, say)


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
    facts["search"] = _latencies(job, store, ranking, options, RATIOS)
    fitting = [row["ratio"] for row in facts["search"] if row["share"] <= share]
    if fitting:
        say(f"  prune: {fitting[0]:.0%} of the channels, which leaves {share:.0%} of the latency or less")
        return fitting[0]
    best = min(facts["search"], key=lambda row: row["share"])
    raise _unreachable(share, best)


def _unreachable(share: float, best: dict[str, Any]) -> UsageError:
    within = f"ask for more, for example --prune latency={best['high']:.2g}, or " if best["high"] < 0.995 else ""
    return UsageError(
        f"no ratio leaves {share:.0%} of the latency: the best was {best['share']:.0%} "
        f"({best['low']:.0%} to {best['high']:.0%}), with {best['ratio']:.0%} of the channels gone",
        code="E-PRUNE-UNREACHABLE",
        hint=f"{within}take a smaller student",
    )


def _latencies(
    job: Job, store: Store, ranking: Ranking, options: dict[str, Any], ratios: tuple[float, ...]
) -> list[dict[str, Any]]:
    """The latency at each of the ratios as a share of the whole network's, all files measured in one session."""
    runtime = payoff.asked_runtime(job)
    (store.root / "scratch").mkdir(parents=True, exist_ok=True)
    say(f"  prune: the latency in {runtime} of {len(ratios)} ratio{'s' * (len(ratios) > 1)}")
    with tempfile.TemporaryDirectory(prefix="search-", dir=store.root / "scratch") as folder:
        artifacts = []
        for ratio in (0.0, *ratios):
            network = prune.without(ranking, prune.choose(ranking, ratio, **options)) if ratio else ranking.network
            path = Path(folder) / f"{ratio:g}.onnx"
            export.export_onnx(network, path, recipe_digest="")
            counts = {"parameters": net.count_parameters(network), "macs": net.count_macs(network)}
            about = {"digest": file_digest(path), **counts}
            artifacts.append(artifact_steps.onnx_artifact(job, f"{ratio:g}", path, "float32", about))
        medians = payoff.round_medians(job, store, artifacts, runtime)
    rows = []
    for ratio in ratios:
        found = stats.paired_ratio(medians[f"{ratio:g}"], medians["0"])
        rows.append({"ratio": ratio} | dict(zip(("share", "low", "high"), found, strict=True)))
    return rows


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


def sizes(job: Job, parent: Artifact, child: Artifact) -> payoff.Sizes:
    """What of the two files counts: all their bytes, or those after deflate where single weights are zero."""
    assert job.pruner
    if not hasattr(job.pruner.module, "masks"):
        return payoff.Sizes(parent=parent.size_bytes, child=child.size_bytes)
    before, after = (sparse.compressed_bytes(artifact.path) for artifact in (parent, child))
    return payoff.Sizes(parent=before, child=after, words="bytes compressed")


def compressed(parent: Artifact, found: payoff.Sizes) -> str:
    """What zeros give, for the report. Nothing where channels went."""
    if found.words == "bytes":
        return ""
    return f"; compressed (deflate) the file has {found.child:,} bytes, {parent.stage} {found.parent:,}"


def worth(job: Job, store: Store, parent: Artifact, child: Artifact, found: payoff.Sizes) -> tuple[bool, str]:
    """Whether the pruned file is kept, and the figures."""
    hint = "" if found.words == "bytes" else "; --set least_speedup=0 keeps it for its compressed size"
    return payoff.worth(job, store, parent, child, sizes=found, least=job.recipe.least_speedup, hint=hint)


def refuse(job: Job, store: Store, student: Network) -> None:
    """Raises UsageError for a pruning that cannot work, tried on an untrained student: what only needs its shapes,
    its latency included, must not be found out after an hour. What passed is not tried again.
    """
    assert job.pruner
    target = parse_prune(job.recipe.prune)
    assert target
    if job.recipe.least_speedup or target[0] == "latency":
        payoff.asked_runtime(job)
    contract = student.contract
    parts = {
        "version": VERSIONS["rehearsal"],
        "network": [contract.spec, list(contract.input_shape), len(contract.class_names), job.recipe.seed],
        "pruner": job.pruner.spec,
        "target": job.recipe.prune,
        "options": [job.recipe.prune_scope, job.round_to, job.recipe.prune_steps],
        "train": job.splits.train.digest,
        "measured": _where(job) if target[0] == "latency" else [],
        "plugins": plugins_digest(job),
        "versions": _versions(job),
    }

    def make(folder: Path) -> dict[str, Any]:
        _try(job, store, student, target)
        return {}

    store.step("rehearsal", parts, make, say)


def _try(job: Job, store: Store, student: Network, target: tuple[str, float]) -> None:
    assert job.pruner
    wanted = getattr(job.pruner.module, "SAMPLES", 0)
    samples = prune.samples_of(job.splits.train.images, job.splits.train.labels, min(wanted, 8)) if wanted else None
    if hasattr(job.pruner.module, "masks"):
        sparse.thin(student, job.pruner, target[1], samples)
        return
    ranking = prune.rank(prune.prunable(student), job.pruner, samples)
    options: dict[str, Any] = {"scope": job.recipe.prune_scope, "round_to": job.round_to}
    ratio = target[1] if target[0] == "channels" else MOST_OF_A_LAYER
    if target[0] == "macs":
        ratio = prune.ratio_for(prune.macs, ranking, target[1], **options)
    chosen = prune.choose(ranking, ratio, **options)
    prune.cut(ranking, chosen, round_to=job.round_to, plugins=job.plugins)
    if target[0] == "latency":
        (best,) = _latencies(job, store, ranking, options, (MOST_OF_A_LAYER,))
        if best["share"] > target[1]:
            raise _unreachable(target[1], best)


def _versions(job: Job) -> dict[str, str]:
    return versions("torch-pruning", "torch", "torchvision", *catalog.packages("nets", job.student.spec, job.plugins))


def _where(job: Job) -> list[Any]:
    """What a measured latency depends on beside the files."""
    machine = environment.fingerprint(environment.capture())
    return [payoff.asked_runtime(job), job.recipe.threads[0], job.recipe.tier, machine]
