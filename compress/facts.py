"""The facts of a run as its report holds them. Nothing is derived here."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress import __version__, environment, recipe
from compress.store import digest, gzip_bytes, write_atomic
from compress.types import SINGLE_STREAM, Measurement, Scenario

if TYPE_CHECKING:
    from compress.chain import Link
    from compress.plan import Job

SCHEMA_VERSION = 1


def _quantiles(samples: np.ndarray) -> list[int]:
    return [int(q) for q in np.quantile(samples, np.linspace(0, 1, 101))]


def _tail(samples: np.ndarray) -> list[int]:
    """Quantiles of the slowest 1 %, in steps of 0.05 %."""
    return [int(q) for q in np.quantile(samples, np.linspace(0.99, 1, 21))]


def _outliers(samples: np.ndarray) -> dict[str, int]:
    """Queries beyond Tukey's fences, 1.5 and 3 times the quartiles' distance outside of them: `mild` ones lie between
    the two. They are counted, never left out.
    """
    low, high = np.quantile(samples, [0.25, 0.75])
    beyond = np.maximum(low - samples, samples - high)
    severe = int((beyond > 3 * (high - low)).sum())
    return {"mild": int((beyond > 1.5 * (high - low)).sum()) - severe, "severe": severe}


def _paced(samples: np.ndarray, scenario: Scenario) -> dict[str, Any]:
    """Queries that came at a rate: latencies from their scheduled moments, and those that were late."""
    late = samples > scenario.deadline_ns
    runs = np.diff(np.flatnonzero(np.concatenate([[True], ~late, [True]]))) - 1
    return {
        "n": len(samples), "median_ns": float(np.median(samples)), "quantiles_ns": _quantiles(samples),
        "late": int(late.sum()), "longest_late_run": int(runs.max()),
    }  # fmt: skip


def measurement_facts(measurement: Measurement, twin_of: str, scenario: Scenario = SINGLE_STREAM) -> dict[str, Any]:
    """A measurement as the report holds it: each visit by its quantiles; the raw samples go to a file beside it."""
    visits = []
    for visit in measurement.visits:
        kept = {k: v for k, v in visit.items() if k not in ("samples_ns", "paced_samples_ns")}
        # a phone's program may tell no more than `n` and `mean_ns`
        kept = {"median_ns": None, "quantiles_ns": None} | kept
        if "samples_ns" in visit:
            samples = np.asarray(visit["samples_ns"])
            kept |= {
                "n": len(samples), "median_ns": float(np.median(samples)), "quantiles_ns": _quantiles(samples),
                "tail_ns": _tail(samples), "outliers": _outliers(samples),
            }  # fmt: skip
        if "paced_samples_ns" in visit:
            kept["paced"] = _paced(np.asarray(visit["paced_samples_ns"]), scenario)
        visits.append(kept)
    return {
        "cell": measurement.cell,
        "stage": measurement.artifact,
        "artifact_digest": measurement.artifact_digest,
        "runtime": measurement.runtime,
        "runtime_version": measurement.runtime_version,
        "threads": measurement.threads,
        "batch": measurement.batch,
        "control": bool(twin_of),
        "twin_of": twin_of,
        "failure": measurement.failure,
        "failure_kind": measurement.failure_kind,
        "visits": visits,
        "memory": measurement.memory,
        "sustained": measurement.sustained,
    }


def write_samples(path: Path, measurements: Sequence[Measurement]) -> None:
    """Every query's time, int64 ns, as `CELL#ROUND`; those that came at a rate as `CELL#ROUND paced`."""
    arrays: dict[str, np.ndarray] = {}
    for measurement in measurements:
        for visit in measurement.visits:
            for key, of in (("samples_ns", ""), ("paced_samples_ns", " paced")):
                if key in visit:  # a phone's program may tell no single queries
                    arrays[f"{measurement.cell}#{visit['round']}{of}"] = np.asarray(visit[key], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def recipe_digest(job: "Job") -> str:
    """Digest of what the artifacts depend on: the recipe without places and measuring, and the train split."""
    aside = (
        *recipe.PLACES, "data", "tier", "runtimes", "threads", "teacher_checkpoint", "max_latency", "max_size",
        "screen_epochs",
    )  # fmt: skip
    values = {k: v for k, v in recipe.as_dict(job.recipe).items() if k not in aside}
    return digest([values, job.splits.train.digest])


def of_run(
    name: str, job: "Job", links: list["Link"], files: dict[str, str], measured: dict[str, Any]
) -> dict[str, Any]:
    """The document that `report.write` takes, but for what it derives."""
    from compress import catalog, plan  # other commands that know facts do without torch

    splits, env = job.splits, environment.capture()
    data = catalog.load("data", plan.data_spec(job.recipe, job.plugins), job.plugins)
    train = splits.train
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"version": __version__, "commit": env.commit},
        "run": {
            **measured["run"],
            "name": name,
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
            "licence": getattr(data.module, "LICENSE", ""),
        },
        "artifacts": [_artifact_facts(link, files) for link in links],
        "shipped": [link for link in links if link.kept][-1].artifact.stage,
        "stages": [_stage_facts(link) for link in links],
        "accuracy": measured["accuracy"],
        "against_parents": measured["against_parents"],
        "measurements": measured["measurements"],
        "warnings": [*splits.warnings],
        "tree": measured["tree"],
        "choice": measured["choice"],
        "elsewhere": measured["elsewhere"],
        "corruptions": measured["corruptions"],
        "converted": measured["converted"],
    }


def _artifact_facts(link: "Link", files: dict[str, str]) -> dict[str, Any]:
    artifact = link.artifact
    return {
        "stage": artifact.stage,
        "role": "teacher" if artifact.stage.startswith("teacher") else "student",
        "file": files.get(artifact.stage, "") if link.kept else "",
        "format": artifact.format,
        "precision": artifact.precision,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
        "gzip_bytes": gzip_bytes(artifact.path),
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
        "events": [
            *(text for key in ("execution", "notes") for text in link.facts.get(key, [])),
            *(e for phase in phases.values() for e in phase["events"]),
        ],
        "curve": curve if curve["step"] else None,
        "pairing": link.facts.get("pairing", ""),
        "pruning": link.facts.get("pruning"),
        "ladder": link.facts.get("ladder"),
    }
