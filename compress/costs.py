"""What networks cost here, as a table: the first look before a student is chosen, which needs no training.

A table that was made before is found again without importing torch.
"""

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import catalog, choice, environment
from compress.environment import versions
from compress.errors import UsageError
from compress.progress import Progress
from compress.report import format as fmt
from compress.store import Store, digest, file_digest
from compress.types import Artifact

if TYPE_CHECKING:
    from compress.candidates import Latencies, Subject

LARGEST_SIDE = 4096
_HEADS = ("network", "params", "MACs", "int8", "float32, ms", "int8, ms")


def parse_input(text: str) -> tuple[int, int, int]:
    """`3x224x224` → (3, 224, 224). Raises UsageError."""
    parts = re.split(r"[x×,]", text.strip().lower())
    if len(parts) != 3 or not all(re.fullmatch(r"\d+", part) for part in parts):
        raise UsageError(
            f"--input must be CHANNELSxHEIGHTxWIDTH, got `{text}`", code="E-OPTION-VALUE", hint="for example 3x224x224"
        )
    channels, height, width = (int(part) for part in parts)
    if channels not in (1, 3):
        raise UsageError(f"--input: images have 1 channel or 3, got {channels} in `{text}`", code="E-OPTION-VALUE")
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise UsageError(
            f"--input: height and width must lie in [1, {LARGEST_SIDE}], got `{text}`", code="E-OPTION-VALUE"
        )
    return channels, height, width


def specs_to_list(names: tuple[str, ...], plugins: tuple[Path, ...]) -> tuple[list[str], list[str]]:
    """(specs, names that only stand for networks of others): each network's CANDIDATES, else every name that it has.
    A name that is given stands for its CANDIDATES, if it has any, and for itself if it has not.
    """
    declared = catalog.candidates(plugins)
    if names:
        return list(dict.fromkeys(spec for name in names for spec in declared.get(name) or [name])), []
    specs: list[str] = []
    for stem, of_stem in declared.items():
        specs += catalog.names_of("nets", stem, plugins) if of_stem is None else of_stem
    return list(dict.fromkeys(specs)), [stem for stem, of_stem in declared.items() if of_stem == ()]


def table(
    names: tuple[str, ...], input_shape: tuple[int, int, int], classes: int, store: Store, plugins: tuple[Path, ...]
) -> str:
    """Parameters, MACs, bytes in int8 and latency of each network with untrained weights. Raises UsageError."""
    specs, others = specs_to_list(names, plugins)
    for spec in specs:
        catalog.path_of("nets", spec.partition(":")[0], plugins)  # an unknown name is known to be one at once
    parts = {
        "step": "costs",
        "specs": specs,
        "others": others,
        "input_shape": list(input_shape),
        "classes": classes,
        "program": [file_digest(path) for path in sorted(Path(__file__).parent.rglob("*.py"))],
        "plugins": [file_digest(path) for path in plugins],
        "versions": versions(
            "torch",
            "torchvision",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "onnxruntime-gpu",
            *(package for spec in specs for package in catalog.packages("nets", spec, plugins)),
        ),  # fmt: skip
        "machine": environment.fingerprint(environment.capture()),
    }
    found = store.find("costs", digest(parts))
    if found:
        return found.facts["text"]
    text, whole = _made(specs, others, input_shape, classes, store, plugins)
    if whole:  # what failed, perhaps for want of memory, is tried again
        del parts["step"]
        store.step("costs", parts, lambda folder: {"text": text})
    return text


def _made(
    specs: list[str], others: list[str], input_shape: tuple[int, int, int], classes: int, store: Store,
    plugins: tuple[Path, ...],
) -> tuple[str, bool]:  # fmt: skip
    """The table, and whether everything that has a file was measured."""
    from compress import candidates

    entries = [catalog.load("nets", spec, plugins) for spec in specs]
    quantizer = catalog.load("quantizers", "int8")
    subject = candidates.synthetic_subject(input_shape, classes, "ort_cpu", plugins)
    files: dict[str, tuple[list[Artifact], str]] = {}
    with Progress("exporting and quantizing", len(entries), "networks") as bar:
        for number, entry in enumerate(entries):
            bar.to(number, entry.label)
            files[entry.label] = _files(store, subject, entry, quantizer)
    found = candidates.latencies(store, subject, [a for made, _ in files.values() for a in made])
    rows, below = [], []
    for label, (made, reason) in files.items():
        row, notes = _row(label, made, reason, found)
        rows.append(row)
        below += notes
    shape = "x".join(map(str, input_shape))
    place = f"untrained, {shape} images, {classes} classes; latency in ort_cpu, 1 thread, median (interval), tier smoke"
    notes = [
        f"`{name}` stands for networks of others, listed by name: compress list nets {name}:NAME --input {shape}"
        for name in others
    ]
    lines = [*below, "", place, *fmt.control_words(found.control), *notes]
    wrapped = [part for line in lines for part in (textwrap.wrap(line, choice.WIDTH, subsequent_indent="  ") or [""])]
    whole = all(estimate["value"] is not None for estimate in found.of.values())
    return "\n".join([*choice.table(_HEADS, rows), *wrapped]), whole


def _files(
    store: Store, subject: "Subject", entry: catalog.Entry, quantizer: catalog.Entry
) -> tuple[list[Artifact], str]:
    """The float32 file and the int8 one, and why one is missing."""
    from compress import candidates

    made: list[Artifact] = []
    try:
        made.append(candidates.float_artifact(store, subject, entry))
        made.append(candidates.quantized_artifact(store, subject, entry, made[0], quantizer))
    # whatever a network of anybody has against such images is its row's reason
    except Exception as error:
        return made, f"{'no int8 file' if made else 'no file'}: {candidates.why(error)}"
    return made, ""


def _row(label: str, files: list[Artifact], reason: str, found: "Latencies") -> tuple[list[str], list[str]]:
    """A row of the table, and what is to be said below it."""
    if not files:
        return [label, reason], []
    of: dict[str, dict[str, Any]] = {a.precision: found.of[a.stage] for a in files}
    size = choice.short(fmt.size(files[1].size_bytes)) if len(files) > 1 else "-"
    numbers = [choice.short(fmt.quantity(n)) for n in (files[0].parameters, files[0].macs)]
    row = [label, *numbers, size, choice.milliseconds(of["float32"]), choice.milliseconds(of.get("int8"))]
    notes = [f"{label}: {reason}"] if reason else []
    return row, notes + [f"{label} {p}: {fmt.absent(e['reason'])}" for p, e in of.items() if e["value"] is None]
