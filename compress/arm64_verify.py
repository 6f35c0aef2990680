"""Ask golden samples on another instruction set: the files of a run, or of `compress convert`, on emulated ARM64.

For answers only. Emulated seconds say nothing about a phone, so none is noted.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from compress import arm64, bench, catalog, files
from compress.child import workspace
from compress.errors import CompressError, InputRejected
from compress.files import read_golden
from compress.progress import say
from compress.store import file_digest, read_json

IMAGES = 8
# runtime → the distribution that its aarch64 wheel comes from
RUNTIMES = {
    "ort_cpu": "onnxruntime", "ort_mobile": "onnxruntime", "ncnn": "ncnn", "mnn": "mnn", "litert": "ai-edge-litert",
}  # fmt: skip
PACKAGES = ("numpy", *dict.fromkeys(RUNTIMES.values()))


def verify(folder: Path, kit: Path, scratch: Path) -> list[tuple[str, str, bool]]:
    """(what, what was found, whether it is well) for everything in `folder` that a runtime of the kit reads: `folder`
    is a run's models folder, one that `compress convert` made, or one with such in it.

    Raises InputRejected where there is nothing to ask, CompressError where the kit is none.
    """
    there = arm64.manifest(kit)["packages"]
    found = _found(folder)
    asked = [one for one in found if RUNTIMES.get(one["runtime"]) in there]
    for one in found:
        if one not in asked:
            say(f"  {one['what']} in {one['runtime']}: not asked, the ARM kit has no such runtime")
    if not asked:
        raise InputRejected(
            f"{folder} holds nothing that the ARM kit can run; it has {', '.join(sorted(there))}",
            code="E-CONVERTED-FOLDER",
            hint="name models/RUN, or what `compress convert` wrote for ncnn, mnn or litert",
        )
    return [_asked(one, kit, scratch) for one in asked]


def _found(folder: Path) -> list[dict[str, Any]]:
    """What is to be asked: `runtime`, `precision`, `files` (name that the runtime knows → path), `golden`."""
    if (folder / "manifest.json").is_file():
        return _of_run(folder)
    kits = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    return [_of_kit(path) for path in kits if (path / "versions.json").is_file()]


def _of_run(folder: Path) -> list[dict[str, Any]]:
    manifest, found = files.check_manifest(folder), []
    goldens = {}
    for entry in manifest["artifacts"]:
        golden = (folder / entry["file"]).with_suffix(".golden.npz")
        if golden.is_file():
            goldens[entry["stage"]] = golden
            one = {"what": entry["file"], "runtime": "ort_cpu", "precision": entry["precision"], "golden": golden}
            found.append({**one, "files": {"model.onnx": folder / entry["file"]}})
    for entry in manifest.get("converted", []):
        if entry["stage"] in goldens:
            paths = {name: folder / file for name, file in entry["files"].items()}
            one = {key: entry[key] for key in ("runtime", "precision")}
            found.append({**one, "what": ", ".join(entry["files"].values()), "files": paths,
                          "golden": goldens[entry["stage"]]})  # fmt: skip
    return found


def _of_kit(folder: Path) -> dict[str, Any]:
    versions = read_json(folder / "versions.json")
    try:
        paths = {entry["file"]: folder / entry["file"] for entry in versions["files"]}
        if any(Path(name).name != name for name in paths):
            raise InputRejected(
                f"{folder / 'versions.json'} names files elsewhere", code="E-CONVERTED-FOLDER", hint="convert it again"
            )
        for entry in versions["files"]:
            if not paths[entry["file"]].is_file() or file_digest(paths[entry["file"]]) != entry["sha256"]:
                raise InputRejected(
                    f"{paths[entry['file']]} is not the file of versions.json",
                    code="E-CONVERTED-FOLDER",
                    hint="convert it again",
                )
        runtime, precision = versions["runtime"], versions["source"]["precision"]
    except (KeyError, TypeError) as error:
        raise InputRejected(
            f"{folder / 'versions.json'} was not made by `compress convert`: {error}", code="E-CONVERTED-FOLDER"
        ) from error
    return {
        "what": f"{folder.name}/{', '.join(paths)}", "runtime": runtime, "precision": precision, "files": paths,
        "golden": folder / "golden.npz",
    }  # fmt: skip


def _asked(one: dict[str, Any], kit: Path, scratch: Path) -> tuple[str, str, bool]:
    runtime, module = one["runtime"], catalog.load("runtimes", one["runtime"]).module
    images, expected = (array[:IMAGES] for array in read_golden(one["golden"]))
    with workspace(scratch) as work:
        for name, path in one["files"].items():
            shutil.copyfile(path, work / name)
        model = work / "model.onnx" if module.FORMAT == "onnx" else work
        try:
            got = arm64.answers(kit, bench.runtime_file(runtime), model, images, scratch=scratch)
        except CompressError as error:
            return f"{one['what']} in {runtime}", error.message, False
    agree = int((got.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(got - expected).max() / (np.ptp(expected) or 1.0))
    allowed = module.TOLERANCE[one["precision"]]
    well = agree == len(images) and difference <= allowed
    said = f"{agree}/{len(images)} golden samples, difference {difference:.1e} of spread (allowed {allowed:g})"
    return f"{one['what']} in {runtime}", said, well
