"""What a network would cost here, before it is trained: its real file, exported and quantized from untrained weights,
and the latency of that file. Neither depends on what training will make of the weights.

Each network's file and each cell's latency is a step of its own, so that a later, longer list measures only what is
new. Raise a step's number in VERSIONS when the same inputs would give another result.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import artifact_steps, batchnorm, bench, catalog, environment, export, facts, fuse, measuring, stats
from compress import network as net
from compress.catalog import Entry
from compress.environment import versions
from compress.errors import CompressError
from compress.network import Network
from compress.progress import Progress
from compress.report.estimates import Estimate, measured, missing
from compress.store import Step, Store, digest, file_digest, read_json, write_json
from compress.types import Artifact, Dataset, Measurement

VERSIONS = {"untrained": 3, "latency": 1}
TIER = "smoke"
TIMED_IMAGES = bench.POOL_SIZE
# images that ranges come from: they move a quantized file's zero points, which are numbers of one byte or two
RANGE_IMAGES = 16
# least bytes of a weight in a file of that precision
WEIGHT_BYTES = {"float32": 4, "float16": 2, "int8": 1, "int8_weights": 1}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What candidates are looked at for: images of this shape, these classes, and where they are timed."""

    images: Dataset
    runtime: str
    threads: int
    plugins: tuple[Path, ...] = ()

    @property
    def ranges(self) -> Dataset:
        few = self.images.images[:RANGE_IMAGES]
        return dataclasses.replace(self.images, images=few, digest=f"{self.images.digest}[:{RANGE_IMAGES}]")


def subject_of(dataset: Dataset, runtime: str, threads: int, plugins: tuple[Path, ...]) -> Subject:
    """Real images: some of the split, in a fixed order."""
    images = artifact_steps.sample(dataset, TIMED_IMAGES).images
    some = dataclasses.replace(dataset, images=images, digest=digest([dataset.digest, "sample", TIMED_IMAGES]))
    return Subject(images=some, runtime=runtime, threads=threads, plugins=plugins)


def synthetic_subject(
    input_shape: tuple[int, int, int], classes: int, runtime: str, plugins: tuple[Path, ...]
) -> Subject:
    """Random images, which latency does not tell from real ones in networks without branches."""
    channels = input_shape[0]
    images = Dataset(
        name="synthetic", split="synthetic", images=measuring.synthetic_images(input_shape, TIMED_IMAGES),
        labels=np.full(TIMED_IMAGES, -1), class_names=tuple(map(str, range(classes))), mean=(0.5,) * channels,
        std=(0.25,) * channels, may_flip=False, digest=digest(["synthetic", input_shape, classes, TIMED_IMAGES]),
    )  # fmt: skip
    return Subject(images=images, runtime=runtime, threads=1, plugins=plugins)


def why(error: Exception) -> str:
    """An error in a line, for a row of a table."""
    if isinstance(error, CompressError):
        return error.message
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def build(subject: Subject, entry: Entry) -> Network:
    """The untrained network. Raises whatever it has against such images."""
    images = subject.images
    return net.build(
        entry.spec, class_names=images.class_names, input_shape=images.input_shape, mean=images.mean, std=images.std,
        seed=0, plugins=subject.plugins,
    )  # fmt: skip


def counts(network: Network, precision: str) -> dict[str, int]:
    """Parameters, MACs, and bytes that its file in that precision cannot do without: those of kernels and matrices.

    Of the network as it ships: branches that train side by side are merged.
    """
    network = fuse.merge_branches(network)
    weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    return {
        "parameters": net.count_parameters(network),
        "macs": net.count_macs(network),
        "least_bytes": weights * WEIGHT_BYTES.get(precision, 0),
    }


def _untrained_parts(subject: Subject, entry: Entry) -> dict[str, Any]:
    images = subject.images
    return {
        "version": VERSIONS["untrained"],
        "spec": entry.spec,
        "source": file_digest(catalog.path_of("nets", entry.name, subject.plugins)),
        "classes": list(images.class_names),
        "input_shape": list(images.input_shape),
        "images": images.digest,
        "versions": versions(
            "torch", "torchvision", "onnx", "onnxscript", *catalog.packages("nets", entry.spec, subject.plugins)
        ),
    }


def exported_before(store: Store, subject: Subject, entry: Entry) -> Step | None:
    return store.find("untrained", digest({"step": "untrained", **_untrained_parts(subject, entry)}))


def export_step(store: Store, subject: Subject, entry: Entry) -> Step:
    """The untrained network as ONNX, by the way that a trained one takes."""
    parts = _untrained_parts(subject, entry)

    def make(folder: Path) -> dict[str, Any]:
        network = build(subject, entry)
        settle(network, subject.ranges.images)
        path = folder / "model.onnx"
        export.export_onnx(network, path, recipe_digest=digest(parts))
        return {"digest": file_digest(path), **counts(network, "")}

    return store.step("untrained", parts, make)


def settle(network: Network, images: np.ndarray) -> None:
    """Make an untrained network what the exporter and the processor will meet after training.

    Parameters that begin all alike are spread a little: a bias of zeros is left out of the file, equal ones are stored
    once. BatchNorms get the statistics of a few images: without, activations may die away or grow without bounds in
    dozens of layers, and subnormal numbers are slow.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    batchnorm.reestimate(network, images, batch_size=len(images))


def float_artifact(store: Store, subject: Subject, entry: Entry) -> Artifact:
    step = export_step(store, subject, entry)
    path = step.folder / "model.onnx"
    return Artifact(
        path=path, digest=step.facts["digest"], format="onnx", precision="float32", stage=f"{entry.label} float32",
        size_bytes=path.stat().st_size, parameters=step.facts["parameters"], macs=step.facts["macs"],
        input_shape=subject.images.input_shape, class_names=subject.images.class_names,
    )  # fmt: skip


def quantized_artifact(store: Store, subject: Subject, entry: Entry, parent: Artifact, quantizer: Entry) -> Artifact:
    plugins = [file_digest(path) for path in subject.plugins]
    step = artifact_steps.quantized(store, quantizer, parent, subject.ranges, plugins)
    path, precision = step.folder / "model.onnx", quantizer.module.PRECISION
    return dataclasses.replace(
        parent, path=path, digest=step.facts["digest"], precision=precision, stage=f"{entry.label} {precision}",
        size_bytes=path.stat().st_size,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Of each artifact, by stage name, the latency in ns; and the worst of the sessions' A/A controls, with the stage
    that was measured twice.
    """

    of: dict[str, Estimate]
    control: dict[str, Any] | None


def latencies(store: Store, subject: Subject, artifacts: list[Artifact]) -> Latencies:
    """Latency of each artifact. What the store lacks is measured in one session of interleaved rounds; each round is
    kept as soon as it is done. The same artifact under several stages is measured once.
    """
    machine = environment.fingerprint(environment.capture())
    parts = {a.digest: _latency_parts(subject, a, machine) for a in artifacts}
    lacking = list({a.digest: a for a in artifacts if not _found(store, parts[a.digest])}.values())
    failures = _session(store, subject, lacking, parts) if lacking else {}
    found = {key: _found(store, one) for key, one in parts.items()}
    of = {a.stage: _estimate(found[a.digest], failures.get(a.digest, "")) for a in artifacts}
    return Latencies(of=of, control=_worst_control(store, artifacts, parts, found))


def _latency_parts(subject: Subject, artifact: Artifact, machine: str) -> dict[str, Any]:
    return {
        "version": VERSIONS["latency"],
        "artifact": artifact.digest,
        "runtime": subject.runtime,
        "threads": subject.threads,
        "tier": dataclasses.asdict(bench.TIERS[TIER]),
        "images": subject.images.digest,
        "plugins": [file_digest(path) for path in subject.plugins],
        "machine": machine,
        "again": False,
    }


def _found(store: Store, parts: dict[str, Any]) -> Step | None:
    return store.find("latency", digest({"step": "latency", **parts}))


def _session(store: Store, subject: Subject, lacking: list[Artifact], parts: dict[str, Any]) -> dict[str, str]:
    """Measure the artifacts, the first of them twice; returns the failures by digest."""
    keys = {a.stage: parts[a.digest] for a in lacking}
    cells = [bench.Cell(name=a.stage, artifact=a, runtime=subject.runtime, threads=subject.threads) for a in lacking]
    cells.append(dataclasses.replace(cells[0], name=cells[0].name + measuring.TWIN))
    keys[cells[-1].name] = {**keys[cells[0].name], "again": True}
    folders = {name: store.folder("latency", digest({"step": "latency", **one})) for name, one in keys.items()}
    failures: dict[str, str] = {}
    tier = bench.TIERS[TIER]
    one_round = dataclasses.replace(tier, rounds=1)
    with Progress("measuring untrained files", tier.rounds * len(cells), "visits") as bar:
        for number in range(tier.rounds):
            due = [
                c for c in cells if c.name not in failures and not (folders[c.name] / f"round-{number}.json").exists()
            ]
            shift = (number + 1) * len(cells) - len(due)
            # the seed orders the round; the pool holds every image, so it is the same each time
            for one in bench.measure(
                due, subject.images.images, one_round, seed=number, scratch=store.root / "scratch",
                on_visit=functools.partial(_show, bar, shift), plugins=subject.plugins,
            ) if due else ():  # fmt: skip
                if one.failure:
                    failures[one.cell] = one.failure
                else:
                    _keep_round(folders[one.cell], number, one)
    for cell in cells:
        if cell.name not in failures:
            store.step("latency", keys[cell.name], _collect)
    by_name = {c.name: c.artifact.digest for c in cells}
    return {by_name[name]: reason for name, reason in failures.items()}


def _show(bar: Progress, shift: int, done: int, total: int) -> None:
    bar.to(shift + done)


def _keep_round(folder: Path, number: int, measurement: Measurement) -> None:
    (visit,) = facts.measurement_facts(measurement, "")["visits"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"round-{number}.json", {**visit, "round": number})


def _collect(folder: Path) -> dict[str, Any]:
    files = [folder / f"round-{number}.json" for number in range(bench.TIERS[TIER].rounds)]
    visits = [read_json(file) for file in files]
    for file in files:
        file.unlink()
    return {"visits": visits}


def _medians(step: Step) -> list[float]:
    return [visit["median_ns"] for visit in step.facts["visits"]]


def _estimate(step: Step | None, failure: str) -> Estimate:
    if step is None:
        return missing(failure)
    return measured(stats.median(_medians(step)), *stats.bootstrap_median(_medians(step), seed=0))


def _worst_control(
    store: Store, artifacts: list[Artifact], parts: dict[str, Any], found: dict[str, Step | None]
) -> dict[str, Any] | None:
    controls = []
    for artifact in artifacts:
        original, twin = found[artifact.digest], _found(store, {**parts[artifact.digest], "again": True})
        if original and twin:
            ratio, low, high = stats.paired_ratio(_medians(original), _medians(twin))
            verdict = stats.aa_verdict(low, high)
            controls.append({**measured(ratio, low, high), "verdict": verdict, "of": artifact.stage})
    order = ("invalid", "inconclusive", "ok")
    return min(controls, key=lambda c: order.index(c["verdict"]), default=None)
