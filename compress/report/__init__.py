"""The report of a run: one JSON document, and a Markdown and an HTML rendering of that document.

`facts` is what the pipeline observed (see `schema.json`); `rows.derive` adds every number; the rest only shows them.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from compress.errors import InputRejected
from compress.report import markdown
from compress.report.rows import derive
from compress.report.rows_classes import CLASSES_FILE, classes_csv
from compress.report.schema import validate
from compress.store import write_atomic

__all__ = ["document_of", "load", "summary", "validate", "write"]

summary = markdown.summary


def _shareable(value: Any, home: re.Pattern[str] | None) -> Any:
    """`value` without what JSON cannot hold (NaN, infinities: null) and without the user's home folder."""
    if isinstance(value, dict):
        return {str(_shareable(str(k), home)): _shareable(v, home) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_shareable(v, home) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and home:
        return home.sub("~", value)
    return value


def _home_pattern() -> re.Pattern[str] | None:
    home = os.path.expanduser("~").rstrip("/")
    return re.compile(re.escape(home) + r"(?![\w.-])") if len(home) > 1 else None


def document_of(facts: dict[str, Any]) -> dict[str, Any]:
    """The report's document: the facts, fit to be shared, with `derived` added.

    Raises InputRejected naming a field that is missing or wrong, or when the facts contradict each other.
    """
    raw = {k: v for k, v in _shareable(facts, _home_pattern()).items() if k != "derived"}
    validate(raw)
    try:
        derived = derive(raw)
    except ValueError as error:  # counts that cannot be, such as more correct answers than images
        raise InputRejected(
            f"the facts of the report contradict each other: {error}", code="E-REPORT-MALFORMED"
        ) from error
    return {**raw, "derived": derived}


def to_json(document: dict[str, Any]) -> str:
    """The document as ASCII JSON with sorted keys, so that equal documents are equal bytes. NaN raises ValueError."""
    return json.dumps(document, sort_keys=True, allow_nan=False, indent=1) + "\n"


def write(facts: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write `report.json`, `report.md` and `report.html` into `folder`, each whole or not at all, and `classes.csv`
    where the answers were counted by class.

    Returns the paths under "json", "md" and "html". Raises InputRejected when a field of `facts` is missing or wrong,
    or when `folder` cannot be written.
    """
    from compress.report import html  # brings what draws plots

    document = document_of(facts)
    texts = {"json": to_json(document), "md": markdown.render(document), "html": html.render(document)}
    paths = {kind: folder / f"report.{kind}" for kind in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, text in texts.items():
            write_atomic(paths[kind], text.encode())
        if found := document["derived"]["classes"]:
            write_atomic(folder / CLASSES_FILE, classes_csv(found["rows"]).encode())
    except OSError as error:
        raise InputRejected(
            f"cannot write the report into {folder}: {error.strerror or error}",
            code="E-REPORT-WRITE",
            hint="choose a folder with --out",
        ) from error
    return paths


def load(path: Path) -> dict[str, Any]:
    """Read a `report.json` that `write` made, with `derived` computed afresh from its facts: what the file holds there
    is not looked at.

    Raises InputRejected when the file cannot be read, is no JSON, or its facts break the schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputRejected(
            f"cannot read the report {path}: {error}", code="E-REPORT-MALFORMED", hint="make one with `compress run`"
        ) from error
    if isinstance(document, dict):
        document.pop("derived", None)  # of another version it may lack what the schema requires today
    validate(document, str(path))
    return document_of(document)
