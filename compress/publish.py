"""Publish: the two folders of a run, each made complete beside the old one and then put in its place.

`models/<run>/` holds what ships: ONNX files with golden samples, the recipe, a manifest with every digest, and a card.
`reports/<run>/` holds the report and the raw samples.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress import environment, facts, out_place, recipe
from compress.errors import CompressError, InputRejected
from compress.images import PREPROCESSING
from compress.recipe import Recipe
from compress.report.rows_classes import CLASSES_FILE
from compress.store import digest, file_digest, read_json, write_atomic, write_json
from compress.types import Artifact, Dataset, Splits

if TYPE_CHECKING:
    from compress.chain import Link
    from compress.plan import Job
    from compress.runtime_files import Offer

GOLDEN_IMAGES = 16
RECIPE = "the recipe"
REPORT_FILES = ("report.json", "report.md", "report.html", "samples.npz", CLASSES_FILE)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run goes. `asked` is the digest of its recipe, by which a folder is known to be this recipe's own."""

    models: Path
    reports: Path
    asked: str

    @property
    def lock(self) -> Path:
        return self.models.with_name(f".{self.models.name}.lock")


def asked_digest(recipe_: Recipe) -> str:
    return digest({k: v for k, v in recipe.as_dict(recipe_).items() if k not in recipe.PLACES})


def places(recipe_: Recipe) -> Places:
    """The folders of this run. Without a name of its own, a run never takes a folder that another recipe made."""
    base, out, asked = recipe.run_name(recipe_), Path(recipe_.out).expanduser(), asked_digest(recipe_)
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}-{number}"
        found = Places(models=out / "models" / name, reports=out / "reports" / name, asked=asked)
        manifest = _manifest(found)
        if recipe_.name or manifest is None or asked in manifest.get("recipes", ()):
            return found
    raise AssertionError("unreachable")


def prepare(found: Places) -> None:
    """Make the folders above, and bring back what a crash left aside. Raises CompressError naming the folder."""
    for folder in (found.models, found.reports):
        out_place.make_folder(folder.parent)
        if not folder.exists() and _aside(folder).exists():
            with out_place.making(folder):
                _aside(folder).rename(folder)


def refuse_second(found: Places) -> Callable[[str], None]:
    """For `store.exclusive`: a second run into the same folder is an error, not a wait."""

    def refuse(who: str) -> None:
        raise CompressError(
            f"{who} is already writing into {found.models}",
            code="E-RUN-BUSY",
            hint="wait for it, or give this run a name of its own with --set name=NAME",
        )

    return refuse


def inputs_of(recipe_: Recipe, splits: Splits, plugins: tuple[Path, ...]) -> dict[str, str]:
    """Digests of all that a run depends on, by what it is, computed without torch: equal ones mean nothing to do."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    named = [Path(text) for text in (*recipe_.teacher, *recipe_.teacher_checkpoint)]
    transfer = splits.transfer.digest if splits.transfer else ""
    parts = {
        "the data": [getattr(splits, s).digest for s in ("train", "select", "calibrate", "report")] + [transfer],
        "a plugin": [file_digest(p) for p in plugins],
        "a teacher's file": [file_digest(path) for path in named if path.is_file()],
        "this program": [file_digest(p) for p in sources],
        "this machine, or a runtime on it": environment.fingerprint(environment.capture()),
    }
    return {RECIPE: asked_digest(recipe_)} | {name: digest(part) for name, part in parts.items()}


def _manifest(found: Places) -> dict[str, Any] | None:
    path = found.models / "manifest.json"
    try:
        manifest = read_json(path) if path.exists() else None
    except InputRejected:  # damaged: as good as none, it is made anew
        return None
    return manifest if isinstance(manifest, dict) else None


def finished(found: Places, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The report of an earlier run of the same inputs whose files are all still as its manifest says, or None."""
    manifest = _manifest(found)
    if manifest is None or inputs not in manifest.get("made_of", ()) or not _whole(found, manifest):
        return None
    return read_json(found.reports / "report.json")


def why_again(found: Places, inputs: dict[str, str]) -> str:
    """Why a run that has finished once is not finished for `inputs`; "" where there was none of this recipe."""
    manifest = _manifest(found) or {}
    earlier = [each for each in manifest.get("made_of", ()) if each.get(RECIPE) == inputs[RECIPE]]
    if not earlier:
        return ""
    changed = [name for name, value in inputs.items() if earlier[-1].get(name) != value]
    return f"changed since: {', '.join(changed)}" if changed else "a file of it is missing or was changed"


def _whole(found: Places, manifest: dict[str, Any]) -> bool:
    listed = [(found.models / e["file"], e["sha256"]) for e in manifest["files"]]
    listed += [(found.reports / e["file"], e["sha256"]) for e in manifest["report"]]
    return all(path.is_file() and file_digest(path) == expected for path, expected in listed)


def publish(
    found: Places, job: "Job", links: list["Link"], measured: dict[str, Any], inputs: list[dict[str, str]]
) -> dict[str, Any]:  # fmt: skip
    """Make both folders and put them in place. Returns the report document. `inputs`: `inputs_of` what was asked for,
    and of what it resolved into: the run's own recipe file asks for the same.
    """
    from compress import report
    from compress.report import card

    models, reports = (_fresh(folder) for folder in (found.models, found.reports))
    files = _names([link for link in links if link.kept])
    run = facts.of_run(found.models.name, job, links, files, measured)
    document = read_json(report.write(run, reports)["json"])
    facts.write_samples(reports / "samples.npz", measured["raw"])
    for link in links:
        if link.kept and link.artifact.stage in files:
            golden = measured["golden"][link.artifact.stage]
            write_artifact(models / files[link.artifact.stage], link.artifact, job.splits.report, golden)
    converted = _write_converted(models, measured["offers"], files)
    write_atomic(models / "recipe.toml", recipe.to_toml(job.recipe).encode())
    write_atomic(models / "card.md", card.render(document, converted, found.models, found.reports).encode())
    manifest = _new_manifest(found, job, run, document, models) | {
        "made_of": inputs,
        "converted": converted,
        "files": _listed(models),
        "report": _listed(reports),
    }
    write_json(models / "manifest.json", manifest)
    old = _manifest(found) or {"files": []}
    _replace(reports, found.reports, ours={*REPORT_FILES})
    _replace(models, found.models, ours={"manifest.json", *(entry["file"] for entry in old["files"])})
    return document


def _write_converted(models: Path, offers: list["Offer"], files: dict[str, str]) -> list[dict[str, Any]]:
    """Copy what was converted of the students that ship, and answers as they do: `model.tflite` of `student.int8.onnx`
    as `student.int8.tflite`. Returns the manifest's entries: `files` are names as the runtime knows them → names here.
    """
    entries = []
    for offer in offers:
        stage, names = offer.artifact.stage, offer.conversion.get("files", [])
        if stage not in files or stage == "teacher" or offer.failure or not names:
            continue
        stem = files[stage].removesuffix(".onnx")
        here = {name: stem + name.removeprefix("model") for name in names}
        for name, written in here.items():
            write_atomic(models / written, (offer.artifact.path / name).read_bytes())
        facts = {"stage": stage, "runtime": offer.runtime, "precision": offer.artifact.precision}
        entries.append({**facts, "files": here})
    return entries


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _fresh(folder: Path) -> Path:
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def _replace(new: Path, folder: Path, ours: set[str]) -> None:
    """Put `new` in the place of `folder`. Files in it that are not `ours` are the user's, and are kept."""
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    new.rename(folder)
    for path in aside.iterdir() if aside.exists() else ():
        if path.name not in ours and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def _listed(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(p for p in folder.iterdir() if p.is_file())
    return [{"file": p.name, "sha256": file_digest(p), "size_bytes": p.stat().st_size} for p in paths]


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
    chosen = golden_index(dataset)
    write_golden(golden_path(path), dataset.images[chosen], logits[chosen])


def golden_index(dataset: Dataset) -> np.ndarray:
    """Which images of a split become golden samples: evenly over its order, and so over its classes."""
    return np.unique(np.linspace(0, len(dataset.labels) - 1, GOLDEN_IMAGES).astype(int))


def _made_by(path: Path) -> str:
    """What the file says of itself: the digest of that part of the recipe, and of the data, which led to it. Recipes
    that differ elsewhere lead to the same file. "" of a file that was given.
    """
    import onnx

    said = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return said.get("compress.recipe_digest", "")


def _new_manifest(
    found: Places, job: "Job", run: dict[str, Any], document: dict[str, Any], models: Path
) -> dict[str, Any]:
    train = job.splits.train
    return {
        "schema_version": facts.SCHEMA_VERSION,
        "name": found.models.name,
        # the recipe as it was asked for and as it was resolved: both are this folder's own
        "recipes": [found.asked, asked_digest(job.recipe)],
        "recipe_digest": run["run"]["recipe_digest"],
        "shipped": next((a["file"] for a in run["artifacts"] if a["stage"] == run["shipped"]), ""),
        "input": {"name": "input", "dtype": "float32", "shape": ["batch", *train.input_shape], "range": [0, 1]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", len(train.class_names)]},
        "class_names": list(train.class_names),
        "class_names_digest": digest(list(train.class_names)),
        "preprocessing": {**PREPROCESSING, "size": list(train.input_shape[1:]), "channels": train.input_shape[0]},
        "artifacts": [a | {"made_by": _made_by(models / a["file"])} for a in run["artifacts"] if a["file"]],
        "verdict": document["derived"]["verdict"],
        "versions": run["environment"]["packages"],
    }
