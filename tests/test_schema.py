"""The published schema describes all of report.json: no number without a place in it, and none of another type."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_page import everything
from test_report import make_facts
from test_screen import a_choice

from compress import report
from compress.errors import InputRejected
from compress.report import schema

PUBLISHED = [
    Path(__file__).parents[1] / "reports" / name / "report.json" for name in ("digits-mobilenet", "resnet8-cifar10")
]


def written(facts: dict[str, Any]) -> dict[str, Any]:
    return json.loads(report.to_json(report.document_of(facts)))


def complete() -> dict[str, Any]:
    """A document in which every part of `derived` holds something."""
    facts = everything() | {"choice": a_choice()}
    facts["run"]["tier"] = "smoke"
    facts["measurements"][0]["visits"][0]["steal_fraction"] = 0.3  # a flag and a warning
    return written(facts)


DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "invented": lambda: written(make_facts()),
    "complete": complete,
    "nothing measured": lambda: written(make_facts() | {"stages": [], "accuracy": [], "measurements": []}),
    **{path.parent.name: lambda path=path: json.loads(path.read_text(encoding="utf-8")) for path in PUBLISHED},
    **{f"{path.parent.name} anew": lambda path=path: written(report.load(path)) for path in PUBLISHED},
}


def unnamed(value: Any, rule: dict[str, Any], where: str) -> Iterator[str]:
    """The keys of `value`, at every level, that neither `rule` nor what it refers to names."""
    rules = [rule]
    while "$ref" in rules[-1]:
        rules.append(schema.referred(rules[-1]["$ref"]))
    if isinstance(value, dict):
        fields: dict[str, Any] = {}
        for each in rules:
            others = each.get("additionalProperties")
            fields |= (dict.fromkeys(value, others) if others else {}) | each.get("properties", {})
        for key, inner in value.items():
            yield from unnamed(inner, fields[key], f"{where}.{key}") if key in fields else [f"{where}.{key}"]
    elif isinstance(value, list):
        items = next((each["items"] for each in rules if "items" in each), {})
        for inner in value:
            yield from unnamed(inner, items, f"{where}[]")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_whole_document_is_as_the_schema_says_and_every_number_is_named(name: str) -> None:
    document = DOCUMENTS[name]()
    schema.validate(document)
    assert set(unnamed(document["derived"], schema.schema()["properties"]["derived"], "derived")) == set()


def test_a_number_that_the_schema_does_not_name_is_noticed() -> None:
    derived = complete()["derived"]
    derived["cells"][0]["speedup_native"]["new"] = derived["corruptions"][0]["kinds"]["noise"] = {"new": 1}
    derived["new"] = 1
    found = set(unnamed(derived, schema.schema()["properties"]["derived"], "derived"))
    assert found == {"derived.cells[].speedup_native.new", "derived.corruptions[].kinds.noise.new", "derived.new"}


@pytest.fixture(scope="module")
def text() -> str:
    document = complete()
    # what is not there cannot break a rule
    assert [name for name, part in document["derived"].items() if not part] == []
    return json.dumps(document)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda d: d["cells"][0]["latency_ns"].update(value="6.4"),
            "cells[0].latency_ns.value` must be number or null",
        ),
        (lambda d: d["cells"][0].update(latency_ns="6.4 ms"), "cells[0].latency_ns` must be object, got str"),
        (lambda d: d["cells"][0].pop("latency_ns"), "cells[0].latency_ns` is missing"),
        (lambda d: d["cells"][0].update(threads="1"), "cells[0].threads` must be integer, got str"),
        (lambda d: d["cells"][0]["round_medians_ns"].append("6.4"), "cells[0].round_medians_ns[10]` must be number"),
        (
            lambda d: d["cells"][1]["speedup_same_runtime"].update(verdict="quick"),
            "cells[1].speedup_same_runtime.verdict` must be one of faster, slower",
        ),
        (
            lambda d: d["cells"][1]["speedup_same_runtime"].pop("low"),
            "cells[1].speedup_same_runtime.low` is missing",
        ),
        (lambda d: d["stages"][1]["latency_gain"].pop("runtime"), "stages[1].latency_gain.runtime` is missing"),
        (lambda d: d["choice"][0].update(label=1), "choice[0].label` must be string, got int"),
        (
            lambda d: d["corruptions"][0]["kinds"].update(noise=0.9),
            "corruptions[0].kinds.noise` must be object, got float",
        ),
        (lambda d: d["verdict"]["gates"][0].update(status="maybe"), "verdict.gates[0].status` must be one of pass"),
        (lambda d: d.pop("harness_ns"), "harness_ns` is missing"),
    ],
)
def test_what_is_not_as_described_is_refused_by_its_name(text: str, spoil: Callable, said: str) -> None:
    document = json.loads(text)
    spoil(document["derived"])
    with pytest.raises(InputRejected, match=re.escape(f"`derived.{said}")):
        schema.validate(document)


@pytest.mark.parametrize("held", [{}, {"cells": "as they were"}])
def test_what_a_file_holds_as_derived_is_made_anew(tmp_path: Path, held: dict[str, Any]) -> None:
    """A report of another version says there what that version knew."""
    path = report.write(make_facts(), tmp_path)["json"]
    wanted = report.load(path)
    path.write_text(json.dumps(wanted | {"derived": held}))
    assert report.load(path) == wanted


def test_a_candidates_latency_is_a_number() -> None:
    told = a_choice()
    told["candidates"][0]["latency"]["value"] = "1 ms"
    with pytest.raises(InputRejected, match=re.escape("`choice.candidates[0].latency.value` must be number or null")):
        report.document_of(make_facts() | {"choice": told})
