"""Publish: the two folders of a run, written so that what was there stays until the new is complete.

`models/<run>/` holds what ships: ONNX files with golden samples, the recipe, a manifest with every digest, and a card.
`reports/<run>/` holds the report and the raw samples.
"""

import dataclasses
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress import __version__, environment, recipe
from compress.errors import CompressError, Unmeasurable
from compress.images import PREPROCESSING
from compress.recipe import Recipe
from compress.store import digest, file_digest, read_json, write_atomic, write_json
from compress.types import Artifact, Dataset, Measurement, Splits

if TYPE_CHECKING:
    from compress.pipeline import Link
    from compress.plan import Job

GOLDEN_IMAGES = 16
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Places:
    models: Path
    reports: Path
    lock: Path


def places(recipe_: Recipe) -> Places:
    """The folders of this run, made and checked for writing. Raises CompressError naming the folder."""
    name, out = recipe.run_name(recipe_), Path(recipe_.out).expanduser()
    found = Places(models=out / "models" / name, reports=out / "reports" / name, lock=out / "models" / f".{name}.lock")
    for folder in (found.models, found.reports):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompressError(
                f"cannot make the output folder {folder}: {error.strerror}", hint="name a writable folder with --out"
            ) from error
        if not os.access(folder, os.W_OK):
            raise CompressError(f"the output folder {folder} is not writable", hint="name a writable folder with --out")
    return found


def refuse_second(found: Places) -> Callable[[str], None]:
    """For `store.exclusive`: a second run into the same folder is an error, not a wait."""

    def refuse(who: str) -> None:
        raise CompressError(
            f"{who} is already writing into {found.models}",
            hint="wait for it, or give this run a name of its own with --set name=NAME",
        )

    return refuse


def inputs_digest(recipe_: Recipe, splits: Splits, plugins: tuple[Path, ...]) -> str:
    """Digest of all that a run depends on, computed without torch: equal digests mean nothing to do."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    checkpoint = Path(recipe_.teacher_checkpoint)
    return digest(
        {
            "recipe": {k: v for k, v in recipe.as_dict(recipe_).items() if k not in recipe.PLACES},
            "splits": [getattr(splits, s).digest for s in ("train", "select", "calibrate", "report")],
            "plugins": [file_digest(p) for p in plugins],
            "checkpoint": file_digest(checkpoint) if checkpoint.is_file() else "",
            "program": [file_digest(p) for p in sources],
            "machine": environment.fingerprint(environment.capture()),
        }
    )


def recipe_digest(job: "Job") -> str:
    """Digest of what the artifacts depend on: the recipe without places and measuring, and the train split."""
    aside = (*recipe.PLACES, "data", "tier", "runtimes", "threads", "teacher_checkpoint")
    values = {k: v for k, v in recipe.as_dict(job.recipe).items() if k not in aside}
    return digest([values, job.splits.train.digest])


def finished(found: Places, inputs: str) -> dict[str, Any] | None:
    """The report of an earlier run of the same inputs whose files are all still as its manifest says, or None."""
    manifest_path, report_path = found.models / "manifest.json", found.reports / "report.json"
    if not (manifest_path.exists() and report_path.exists()):
        return None
    manifest = read_json(manifest_path)
    if manifest.get("inputs_digest") != inputs:
        return None
    for entry in manifest["files"]:
        path = found.models / entry["file"]
        if not path.is_file() or file_digest(path) != entry["sha256"]:
            return None
    return read_json(report_path)


def measurement_facts(measurement: Measurement, twin_of: str) -> dict[str, Any]:
    """A measurement as the report holds it: each visit by its quantiles; the raw samples go to a file beside it."""
    visits = []
    for visit in measurement.visits:
        samples = np.asarray(visit["samples_ns"])
        kept = {k: v for k, v in visit.items() if k != "samples_ns"}
        quantiles = [int(q) for q in np.quantile(samples, np.linspace(0, 1, 101))]
        visits.append(kept | {"n": len(samples), "median_ns": float(np.median(samples)), "quantiles_ns": quantiles})
    return {
        "cell": measurement.cell,
        "stage": measurement.artifact,
        "artifact_digest": measurement.artifact_digest,
        "runtime": measurement.runtime,
        "runtime_version": measurement.runtime_version,
        "threads": measurement.threads,
        "batch": 1,
        "control": bool(twin_of),
        "twin_of": twin_of,
        "failure": measurement.failure,
        "visits": visits,
    }


def publish(found: Places, job: "Job", links: list["Link"], measured: dict[str, Any], inputs: str) -> dict[str, Any]:
    """Write both folders; the manifest comes last. Returns the report document."""
    from compress import report

    shipped = [link for link in links if link.kept]
    files = _names(shipped)
    facts = _facts(job, links, files, measured)
    for link in shipped:
        if link.artifact.stage in files:
            golden = measured["golden"].get(link.artifact.stage)
            if golden is None:
                raise Unmeasurable(f"no runtime gave answers of {link.artifact.stage}: nothing to check a copy against")
            write_artifact(found.models / files[link.artifact.stage], link.artifact, job.splits.report, golden)
    _remove_stale(found.models, set(files.values()))
    write_atomic(found.models / "recipe.toml", recipe.to_toml(job.recipe).encode())
    written = report.write(facts, found.reports)
    document = read_json(written["json"])
    _write_raw(found.reports / "samples.npz", measured["raw"])
    write_atomic(found.models / "card.md", card(document, found).encode())
    _write_manifest(found.models, job, facts, document, inputs)
    return document


def _names(shipped: list["Link"]) -> dict[str, str]:
    """stage → file name: the teacher, the last float student, and the last artifact if it is quantized."""
    files = {"teacher": "teacher.onnx"}
    students = [link for link in shipped if link.artifact.stage != "teacher"]
    for link in students:
        if link.artifact.precision == "float32":
            files = {k: v for k, v in files.items() if v != "student.onnx"} | {link.artifact.stage: "student.onnx"}
        else:
            files[link.artifact.stage] = f"student.{link.artifact.precision}.onnx"
    return files


def write_artifact(path: Path, artifact: Artifact, dataset: Dataset, logits: np.ndarray) -> None:
    """Copy an artifact to `path` with golden samples beside it: images of `dataset` and its own `logits` for them."""
    from compress.export import golden_path, write_golden

    write_atomic(path, artifact.path.read_bytes())
    chosen = np.unique(np.linspace(0, len(dataset.labels) - 1, GOLDEN_IMAGES).astype(int))
    write_golden(golden_path(path), dataset.images[chosen], logits[chosen])


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Artifacts of an earlier run under this name that this run does not ship must not look like its own."""
    for path in folder.glob("*.onnx"):
        if path.name not in names:
            path.unlink()
            path.with_suffix(".golden.npz").unlink(missing_ok=True)


def _write_raw(path: Path, raw: dict[str, Measurement]) -> None:
    buffer = io.BytesIO()
    arrays = {
        f"{cell}#{visit['round']}": np.asarray(visit["samples_ns"], dtype=np.int64)
        for cell, measurement in raw.items()
        for visit in measurement.visits
    }
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _facts(job: "Job", links: list["Link"], files: dict[str, str], measured: dict[str, Any]) -> dict[str, Any]:
    splits, env = job.splits, environment.capture()
    train = splits.train
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"version": __version__, "commit": env.commit},
        "run": {
            **measured["run"],
            "name": job.recipe.name,
            "recipe_digest": recipe_digest(job),
            "data_note": "choices were made on `select` (carved from train); `report` was read once, at the end",
        },
        "recipe": recipe.as_dict(job.recipe),
        "environment": dataclasses.asdict(env),
        "dataset": {
            "name": train.name,
            "class_names": list(train.class_names),
            **{s: len(getattr(splits, s).labels) for s in ("train", "select", "calibrate", "report")},
            "input_shape": list(train.input_shape),
            "digest": train.digest,
            "skipped": list(splits.skipped),
        },
        "artifacts": [_artifact_facts(link, files) for link in links],
        "shipped": [link for link in links if link.kept][-1].artifact.stage,
        "stages": [_stage_facts(link) for link in links],
        "accuracy": measured["accuracy"],
        "measurements": measured["measurements"],
        "warnings": [*splits.warnings],
    }


def _artifact_facts(link: "Link", files: dict[str, str]) -> dict[str, Any]:
    artifact = link.artifact
    return {
        "stage": artifact.stage,
        "role": "teacher" if artifact.stage == "teacher" else "student",
        "file": files.get(artifact.stage, "") if link.kept else "",
        "format": artifact.format,
        "precision": artifact.precision,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "parameters": artifact.parameters,
        "macs": artifact.macs,
        "parity": link.parity,
    }


def _stage_facts(link: "Link") -> dict[str, Any]:
    counts = link.select
    phases = link.facts.get("phases", {})
    curve: dict[str, list[float]] = {"step": [], "loss": []}
    for phase in phases.values():
        offset = curve["step"][-1] if curve["step"] else 0
        curve["step"] += [offset + step for step in phase["curve"]["step"]]
        curve["loss"] += phase["curve"]["loss"]
    return {
        "name": link.artifact.stage,
        "parent": link.parent,
        "what": link.what,
        "seconds": link.step.facts["seconds"],
        "reused": link.step.reused,
        "select": counts
        and {
            "n": counts["n"],
            "correct": counts["correct"],
            "parent_correct": counts.get("baseline_correct"),
            "parent_only": counts.get("baseline_only"),
            "this_only": counts.get("this_only"),
        },
        "decision": "kept" if link.kept else "dropped",
        "reason": link.reason,
        "events": [*link.facts.get("execution", []), *(e for phase in phases.values() for e in phase["events"])],
        "curve": curve if curve["step"] else None,
        "pairing": link.facts.get("pairing", ""),
    }


def card(document: dict[str, Any], found: Places) -> str:
    """The card beside the artifacts: what it is, what it takes, how good it is, how it was made."""
    from compress import report

    run, data = document["run"], document["dataset"]
    channels, height, width = data["input_shape"]
    files = [a for a in document["artifacts"] if a["file"]]
    rows = [f"| {a['file']} | {a['precision']} | {a['size_bytes']:,} | `{a['digest'][:16]}…` |" for a in files]
    return "\n".join(
        [
            f"# {run['name']}",
            "",
            document["derived"]["verdict"]["sentence"],
            "",
            "| file | precision | bytes | sha256 |",
            "| --- | --- | ---: | --- |",
            *rows,
            "",
            f"Input `input`: float32 `[batch, {channels}, {height}, {width}]`, values in [0,1]; the files normalise by "
            "themselves. Output `logits`.",
            f"Preprocessing of a photo: {json.dumps(PREPROCESSING)}",
            f"Classes, in order: {', '.join(data['class_names'])}.",
            f"Data: {data['name']}; {data['train']} train, {data['select']} select, {data['report']} report images.",
            "",
            "Made by:",
            "",
            f"    {run['command']}",
            "",
            "Check a copy of these files on your machine: `compress verify FOLDER`. The whole report:"
            f" `{os.path.relpath(found.reports / 'report.html', found.models)}`.",
            "",
            report.summary(document),
            "",
        ]
    )


def _write_manifest(folder: Path, job: "Job", facts: dict[str, Any], document: dict[str, Any], inputs: str) -> None:
    train = job.splits.train
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "manifest.json" and p.name[0] != ".")
    write_json(
        folder / "manifest.json",
        {
            "schema_version": SCHEMA_VERSION,
            "name": job.recipe.name,
            "inputs_digest": inputs,
            "recipe_digest": facts["run"]["recipe_digest"],
            "shipped": next((a["file"] for a in facts["artifacts"] if a["stage"] == facts["shipped"]), ""),
            "input": {"name": "input", "dtype": "float32", "shape": ["batch", *train.input_shape], "range": [0, 1]},
            "output": {"name": "logits", "dtype": "float32", "shape": ["batch", len(train.class_names)]},
            "class_names": list(train.class_names),
            "class_names_digest": digest(list(train.class_names)),
            "preprocessing": {**PREPROCESSING, "size": list(train.input_shape[1:]), "channels": train.input_shape[0]},
            "artifacts": [a for a in facts["artifacts"] if a["file"]],
            "verdict": document["derived"]["verdict"],
            "versions": facts["environment"]["packages"],
            "files": [
                {"file": name, "sha256": file_digest(folder / name), "size_bytes": (folder / name).stat().st_size}
                for name in names
            ],
        },
    )
