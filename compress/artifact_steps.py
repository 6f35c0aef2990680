"""Steps that make and question files: export, quantize, answers on a split. Each has a key made of all that its result
depends on.

Raise a step's number in VERSIONS when the same inputs would give another result.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import bench, catalog, corruptions, environment, export, qdq, randomness, robustness, targets, train
from compress import network as net
from compress.catalog import Entry
from compress.environment import versions
from compress.fuse import merge_branches
from compress.losses import mean_of_probabilities
from compress.plan import Job, plugins_digest
from compress.progress import say
from compress.store import Step, Store, digest, file_digest
from compress.types import Artifact, Dataset, Samples

VERSIONS = {"export": 3, "ensemble": 1, "quantize": 4, "answers": 1, "corrupted": 1}


def export_step(job: Job, store: Store, stage: str, network_step: Step) -> Step:
    """The network as ONNX, and its parity with torch on real images (at least 1,000, or all that there are).

    The digest in the file's metadata is the key of the step that made the network: a digest of all of the recipe that
    this network depends on, and of the train split.
    """
    parts = {
        "version": VERSIONS["export"],
        "network": network_step.key,
        "opset": targets.find(job.recipe.target).opset,
        "versions": versions("torch", "onnx", "onnxscript"),
    }

    def make(folder: Path) -> dict[str, Any]:
        say(f"  {stage}: exporting, then comparing with torch")
        network = net.load(network_step.folder, job.plugins)
        shipped = merge_branches(network)
        path = folder / "model.onnx"
        export.export_onnx(network, path, recipe_digest=network_step.key, opset=parts["opset"])
        facts = {
            "digest": file_digest(path),
            "parameters": net.count_parameters(shipped),
            "macs": net.count_macs(shipped),
            "spec": network.contract.spec,
        }
        artifact = onnx_artifact(job, stage, path, "float32", facts)
        images = parity_set(job).images
        expected = train.predict(network, images)
        parity = export.compare(expected, answers_of(store, artifact, images))
        export.check_parity(parity, stage)
        return {**facts, "parity": parity}

    return store.step("export", parts, make, say)


def ensemble_step(job: Job, store: Store, members: list[Artifact]) -> Step:
    """The mean of the members' probabilities as one ONNX file, compared with the mean of their own answers."""
    parts = {
        "version": VERSIONS["ensemble"],
        "members": [member.digest for member in members],
        "versions": versions("onnx"),
    }

    def make(folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        export.merge_members([member.path for member in members], path, recipe_digest=digest(parts))
        facts = {
            "digest": file_digest(path),
            "parameters": sum(member.parameters for member in members),
            "macs": sum(member.macs for member in members),
        }
        images = parity_set(job).images
        each = torch.from_numpy(np.stack([answers_of(store, member, images) for member in members]))
        expected = mean_of_probabilities(each.double(), 1.0).numpy()
        parity = export.compare(
            expected, answers_of(store, onnx_artifact(job, "ensemble", path, "float32", facts), images)
        )
        export.check_parity(parity, "ensemble")
        return {**facts, "parity": parity}

    return store.step("ensemble", parts, make, say)


def parity_set(job: Job, count: int = 1000) -> Dataset:
    """At least `count` real images, or all there are, of every class: select, filled up from train."""
    select, train_split = job.splits.select, job.splits.train
    parts = [sample(select, count), sample(train_split, max(0, count - len(select.labels)))]
    return dataclasses.replace(
        select,
        split="parity",
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        digest=digest([select.digest, train_split.digest, count]),
    )


def sample(dataset: Dataset, count: int) -> Samples:
    """`count` images of the split (all, if fewer) in a fixed order that mixes the classes."""
    order = np.sort(randomness.permutation(randomness.derive("sample"), len(dataset.labels))[:count])
    return Samples(images=dataset.images[order], labels=dataset.labels[order])


def answers_of(
    store: Store, artifact: Artifact, images: np.ndarray, runtime: str = "ort_cpu", plugins: tuple[Path, ...] = ()
) -> np.ndarray:
    """Logits `[N,K]` of images uint8 `[N,H,W,C]`, with all threads where images go in batches. Runtimes with formats of
    their own answer one image at a time, where a second thread mostly waits; ncnn's spins, which on a busy machine
    takes a hundred times as long.
    """
    threads = environment.allowed_threads() if artifact.format in ("onnx", "torch") else 1
    return bench.answers(artifact, runtime, images, threads=threads, scratch=store.root / "scratch", plugins=plugins)


def onnx_artifact(job: Job, stage: str, path: Path, precision: str, facts: dict[str, Any]) -> Artifact:
    train_split = job.splits.train
    return Artifact(
        path=path,
        digest=facts["digest"],
        format="onnx",
        precision=precision,
        stage=stage,
        size_bytes=path.stat().st_size,
        parameters=facts["parameters"],
        macs=facts["macs"],
        input_shape=train_split.input_shape,
        class_names=train_split.class_names,
    )


def torch_artifact(job: Job, stage: str, network_step: Step, facts: dict[str, Any]) -> Artifact:
    """The same network for the torch runtimes: a folder instead of a file, known by the key of its step, since its
    mean and std are not among its weights.
    """
    weights = network_step.folder / "weights.safetensors"
    return dataclasses.replace(
        onnx_artifact(job, stage, weights, "float32", {**facts, "digest": network_step.key}),
        path=network_step.folder,
        format="torch",
    )


def quantize_step(job: Job, store: Store, parent: Artifact) -> Step:
    """The ONNX file quantized, calibrated on the calibrate split."""
    assert job.quantizer
    return quantized(store, job.quantizer, parent, job.splits.calibrate, plugins_digest(job))


def plain(quantizer: Entry) -> Entry:
    """The quantizer, or the one that a ladder begins with: what turns a file into another at once."""
    first = getattr(quantizer.module, "FIRST", "")
    return catalog.load("quantizers", first) if first else quantizer


def quantized(store: Store, quantizer: Entry, parent: Artifact, calibrate: Dataset, plugins: list[str]) -> Step:
    parts = {
        "version": VERSIONS["quantize"],
        "parent": parent.digest,
        "quantizer": quantizer.spec,
        "calibrate": calibrate.digest,
        "plugins": plugins,
        "versions": versions("torch", "onnxruntime", "onnxruntime-gpu", "onnx"),
    }

    def make(folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        facts = quantizer.module.apply(quantizer.config, parent.path, path, calibrate.images, scratch)
        shutil.rmtree(scratch)
        notes = kernel_notes(path) if quantizer.module.PRECISION == "int8" else []
        about = {"digest": file_digest(path), "parameters": parent.parameters, "macs": parent.macs}
        return {**facts, **about, "notes": notes}

    return store.step("quantize", parts, make, say)


def kernel_notes(path: Path) -> list[str]:
    """`qdq.notes` of a file, by way of a folder that is made for it and removed."""
    with tempfile.TemporaryDirectory() as folder:
        return qdq.notes(path, Path(folder))


def answers_step(job: Job, store: Store, artifact: Artifact, runtime: str, dataset: Dataset) -> np.ndarray:
    """Logits `[N,K]` of an artifact's bytes in a runtime on a whole split. Raises what `bench.answers` raises."""
    parts = {"version": VERSIONS["answers"], **_asked(job, artifact, runtime, dataset)}

    def make(folder: Path) -> dict[str, Any]:
        say(f"  asking {artifact.stage} in {runtime} about {len(dataset.labels)} images of {dataset.split}")
        logits = answers_of(store, artifact, dataset.images, runtime, job.plugins)
        np.save(folder / "logits.npy", logits)
        return {}

    step = store.step("answers", parts, make, say)
    return np.load(step.folder / "logits.npy")


def corrupted_step(job: Job, store: Store, artifact: Artifact, runtime: str, dataset: Dataset) -> dict[str, np.ndarray]:
    """`robustness.right_answers` of an artifact's bytes on a whole split. Raises what `bench.answers` raises."""
    parts = {
        "version": VERSIONS["corrupted"],
        **_asked(job, artifact, runtime, dataset),
        "versions": versions("numpy", "Pillow"),
    }

    def make(folder: Path) -> dict[str, Any]:
        say(f"  asking {artifact.stage} in {runtime} about corrupted images of {dataset.split}")
        np.savez_compressed(
            folder / "right.npz", **robustness.right_answers(artifact, runtime, dataset, store.root / "scratch")
        )
        return {}

    step = store.step("corrupted", parts, make, say)
    with np.load(step.folder / "right.npz") as right:
        return {kind: right[kind] for kind in corruptions.KINDS}


def _asked(job: Job, artifact: Artifact, runtime: str, dataset: Dataset) -> dict[str, Any]:
    """What answers depend on, but for the code that asks."""
    return {
        "artifact": artifact.digest,
        "runtime": runtime,
        "adapter": file_digest(bench.runtime_file(runtime, job.plugins)),
        "data": dataset.digest,
        "plugins": plugins_digest(job),
        "machine": environment.fingerprint(environment.capture()),
    }
