"""Artifacts that lie in files: what a run made, or ONNX files of the user's own; opened in child processes only."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from compress import __version__, bench, evaluate, facts, recipe
from compress.child import HERE, Host
from compress.environment import allowed_threads, tool_commit
from compress.errors import CompressError, InputRejected, UsageError
from compress.runtimes.ort_cpu import TOLERANCE
from compress.store import digest, file_digest, gzip_bytes, read_json
from compress.types import Artifact, Dataset, Environment, Scenario


def open_onnx(path: Path, scratch: Path) -> Artifact:
    """An ONNX classifier with one float32 image input `[batch,C,H,W]` and one output `[batch,K]`.

    Raises InputRejected naming the file and the rule. Parameters and MACs of a foreign file are unknown (0).
    """
    found = bench.inspect_onnx(path, scratch)
    inputs, outputs = found["inputs"], found["outputs"]
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputRejected(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed", code="E-ONNX-SHAPE"
        )
    shape, kind = inputs[0]["shape"], inputs[0]["type"]
    if kind != "tensor(float)" or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        raise InputRejected(
            f"the input of {path} is {kind} {shape}; needed: float32 [batch, channels, height, width], sizes fixed",
            code="E-ONNX-SHAPE",
            hint="export it with a fixed image size and a float32 NCHW input, images in [0,1]",
        )
    if shape[1] not in (1, 3):
        raise InputRejected(
            f"the input of {path} has shape {shape}: the second axis must be 1 or 3 channels (NCHW)",
            code="E-ONNX-SHAPE",
        )
    if len(outputs[0]["shape"]) != 2:
        raise InputRejected(
            f"the output of {path} has shape {outputs[0]['shape']}; [batch, classes] is needed", code="E-ONNX-SHAPE"
        )
    return Artifact(
        path=path,
        digest=file_digest(path),
        format="onnx",
        precision=_precision(found),
        stage=path.stem,
        size_bytes=path.stat().st_size,
        parameters=0,
        macs=0,
        input_shape=tuple(shape[1:]),
        class_names=_class_names(path, found["metadata"], outputs[0]["shape"][1]),
    )


def _precision(found: dict[str, Any]) -> str:
    """What the file says; int8 where onnxruntime.quantization made it."""
    said = found["metadata"].get("compress.precision", "")
    return said if said in TOLERANCE else "int8" if "onnx.quantize" in found["producer"] else "float32"


def _class_names(path: Path, metadata: dict[str, str], classes: Any) -> tuple[str, ...]:
    text = metadata.get("compress.class_names")
    if text is None:
        return tuple(str(i) for i in range(classes)) if isinstance(classes, int) else ()
    try:
        names = json.loads(text)
        assert isinstance(names, list) and all(isinstance(n, str) for n in names)
    except (ValueError, AssertionError):
        raise InputRejected(
            f"the class names in the metadata of {path} are not a list of texts", code="E-ONNX-MALFORMED"
        ) from None
    return tuple(names)


def open_run(folder: Path) -> tuple[list[Artifact], dict[str, Any]]:
    """The artifacts of a run's `models/` folder, the teacher first, and its manifest. Digests are checked."""
    manifest = check_manifest(folder)
    artifacts = []
    for entry in manifest["artifacts"]:
        fields = {k: entry[k] for k in ("stage", "precision", "digest", "size_bytes", "parameters", "macs")}
        artifacts.append(
            Artifact(
                path=folder / entry["file"],
                format="onnx",
                input_shape=tuple(manifest["input"]["shape"][1:]),
                class_names=tuple(manifest["class_names"]),
                **fields,
            )
        )
    return sorted(artifacts, key=lambda a: a.stage != "teacher"), manifest


def check_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run, every file of which has the size and digest that it states. Raises InputRejected."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputRejected(f"{folder} is not the models folder of a run: it has no manifest.json", code="E-RUN-FOLDER")
    manifest = read_json(path)
    try:
        for entry in manifest["files"]:
            file = folder / entry["file"]
            if not file.is_file():
                raise InputRejected(
                    f"{file} is missing, the manifest names it", code="E-RUN-CHANGED", hint="run the recipe again"
                )
            if file.stat().st_size != entry["size_bytes"] or file_digest(file) != entry["sha256"]:
                raise InputRejected(
                    f"{file} is not the file of the manifest: its sha256 differs",
                    code="E-RUN-CHANGED",
                    hint="run it again",
                )
    except (KeyError, TypeError) as error:
        raise InputRejected(f"{path} is not a manifest of compress: {error}", code="E-RUN-FOLDER") from error
    return manifest


def open_any(paths: tuple[Path, ...], scratch: Path) -> list[Artifact]:
    """Run folders and ONNX files as artifacts, with stage names of their own."""
    artifacts: list[Artifact] = []
    for path in paths:
        if path.is_dir():
            artifacts += open_run(path)[0]
        else:
            artifacts.append(open_onnx(path, scratch))
    return [replace(a, stage=_own_name(i, artifacts)) for i, a in enumerate(artifacts)]


def _own_name(index: int, artifacts: list[Artifact]) -> str:
    """The stage, with the path where stages repeat, and a number where the very file does (an A/A of one's own)."""
    artifact = artifacts[index]
    if sum(a.stage == artifact.stage for a in artifacts) == 1:
        return artifact.stage
    earlier = sum(a.path == artifact.path for a in artifacts[:index])
    return str(artifact.path) + (f"#{earlier + 1}" if earlier else "")


def run_folder(path: Path) -> Path | None:
    """The folder that `path` is, or the one of a run that it is a file in; None for a file elsewhere."""
    if path.is_dir():
        return path
    of_run = all((path.parent / name).is_file() for name in ("recipe.toml", "manifest.json"))
    return path.parent if of_run else None


def knows_data(paths: Sequence[Path]) -> bool:
    """Whether one of the paths is a run, or a file of one, which knows its own data."""
    return any(map(run_folder, paths))


def require_data(paths: tuple[Path, ...], data: str) -> None:
    """Raises UsageError when no data is named and none of the paths knows its own."""
    if not data and not knows_data(paths):
        raise UsageError(
            "name the images: --data NAME or FOLDER",
            code="E-DATA-UNNAMED",
            hint="only a run's folder, and a file in it, know their own data",
        )


def data_for(paths: tuple[Path, ...], artifacts: list[Artifact], data: str, on_bad: str = "fail") -> recipe.Recipe:
    """The recipe by which the data of these artifacts is loaded, as their run loaded it, and the drop that it allowed.

    A run folder knows its data, and so does a file in it where no data is named; `data` names other data, whose images
    take the artifact's own size.
    """
    folders = paths if data else tuple(run_folder(path) or path for path in paths)
    run = next((p / "recipe.toml" for p in folders if (p / "recipe.toml").is_file()), None)
    known = {} if run is None else recipe.read(run)
    taken = ("data", "image_size", "select_fraction", "calibration_images", "seed", "max_drop")
    values: dict[str, Any] = {k: known[k] for k in taken if k in known}
    if data:
        _, height, width = artifacts[0].input_shape
        fits = height == width and Path(data).expanduser().is_dir()
        values |= {"data": data, "image_size": height if fits else 0}
    return recipe.from_values({**values, "on_bad": on_bad})


def verify(folder: Path, scratch: Path) -> list[tuple[str, str]]:
    """(file, what was found) for every ONNX file of a run: its golden samples asked again here.

    Raises InputRejected when a file is not the manifest's, CompressError when an answer differs: by another top-1, or
    by more than the runtime's tolerance of the logits' spread.
    """

    rows = []
    for artifact in open_run(folder)[0]:
        images, expected = read_golden(artifact.path.with_suffix(".golden.npz"))
        got = bench.answers(artifact, "ort_cpu", images, threads=allowed_threads(), scratch=scratch)
        spread = float(expected.max() - expected.min()) or 1.0
        difference = float(np.abs(got - expected).max()) / spread
        agree = int((got.argmax(1) == expected.argmax(1)).sum())
        if agree < len(images) or not difference <= TOLERANCE[artifact.precision]:
            raise CompressError(
                f"{artifact.path} answers differently here: top-1 agrees on {agree} of {len(images)} golden samples, "
                f"largest difference {difference:.2g} of the logits' spread "
                f"(allowed {TOLERANCE[artifact.precision]:g})",
                code="E-ANSWERS-DIFFER",
                hint="int8 products may saturate on this processor (`compress doctor`); measure with `compress eval`",
            )
        rows.append(
            (artifact.path.name, f"{agree}/{len(images)} golden samples, difference {difference:.1e} of spread")
        )
    return rows


def read_golden(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["logits"]
    except (OSError, ValueError, KeyError) as error:
        raise InputRejected(f"cannot read the golden samples {path}: {error}", code="E-FILE-READ") from error


def refuse_other_classes(artifact: Artifact, path: Path, dataset: Dataset) -> None:
    """Raises InputRejected, naming `path`, unless the artifact knows the classes of the data: by name where both have
    names, else by number.
    """
    named = not all(name.isdigit() for name in artifact.class_names)
    if artifact.class_names and named and artifact.class_names != dataset.class_names:
        raise InputRejected(
            f"{path} was made for the classes {', '.join(artifact.class_names[:8])}; the data has "
            f"{', '.join(dataset.class_names[:8])}",
            code="E-CLASSES-DIFFER",
            hint="name the data set that it was made for",
        )
    if artifact.class_names and len(artifact.class_names) != len(dataset.class_names):
        raise InputRejected(
            f"{path} knows {len(artifact.class_names)} classes, the data has {len(dataset.class_names)}",
            code="E-CLASSES-DIFFER",
            hint="name the data set that it was made for",
        )


def accuracy_row(
    artifact: Artifact, runtime: str, dataset: Dataset, scratch: Path, base: np.ndarray | None, host: Host = HERE
) -> tuple:  # fmt: skip
    """(facts row, logits) of an artifact's bytes on a split; classes must agree by name where both have names."""
    refuse_other_classes(artifact, artifact.path, dataset)
    threads = host.environment().cores_allowed
    logits = bench.answers(artifact, runtime, dataset.images, threads=threads, scratch=scratch, host=host)
    evaluate.refuse_nan(logits, f"{artifact.path} in {runtime}")
    counts = evaluate.counts(logits, dataset.labels, logits if base is None else base)
    counts["teacher_only"] = counts.pop("baseline_only")
    return {"stage": artifact.stage, "runtime": runtime, "failure": "", **counts}, logits


def document(
    artifacts: list[Artifact], measurements: list[dict[str, Any]], *, command: str, tier: str, seed: int,
    image_count: int, data_note: str, scenario: Scenario, environment: Environment,
    converted: Sequence[dict[str, Any]] = (), warnings: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """A report document of files outside a run, measured in `environment`: the first artifact is the baseline."""
    from compress import report

    shape = artifacts[0].input_shape
    rows = [
        {
            "stage": a.stage, "role": "student" if i else "teacher", "file": a.path.name, "format": a.format,
            "precision": a.precision, "digest": a.digest, "size_bytes": a.size_bytes,
            "gzip_bytes": gzip_bytes(a.path), "parameters": a.parameters or None, "macs": a.macs or None,
            "parity": None,
        }
        for i, a in enumerate(artifacts)
    ]  # fmt: skip
    return report.document_of(
        {
            "schema_version": facts.SCHEMA_VERSION,
            "tool": {"version": __version__, "commit": tool_commit()},
            "run": {
                "name": " ".join(a.path.name for a in artifacts)[:80], "command": command, "seconds": 0.0,
                "started": datetime.now(UTC).isoformat(timespec="seconds"), "seed": seed, "tier": tier,
                "recipe_digest": digest([a.digest for a in artifacts]), "max_drop_points": 1.0, "data_note": data_note,
                "fps": scenario.fps, "deadline_ns": scenario.deadline_ns,
            },
            "recipe": {},
            "environment": asdict(environment),
            "dataset": {
                "name": data_note, "class_names": list(artifacts[0].class_names), "input_shape": list(shape),
                "train": 0, "select": 0, "calibrate": 0, "report": image_count, "digest": "", "skipped": [],
            },
            "artifacts": rows,
            "shipped": artifacts[-1].stage,
            "stages": [],
            "accuracy": [],
            "measurements": measurements,
            "converted": list(converted),
            "warnings": list(warnings),
        }
    )  # fmt: skip
