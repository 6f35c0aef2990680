"""Check a document against `schema.json`, naming the first field that breaks it.

Only the words of JSON Schema that `schema.json` uses are read here; an unknown word is an error, so none is ignored.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from compress.errors import InputRejected

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
# by exact type: True is an int to Python, but no number here
_PLAIN: dict[str, frozenset[type]] = {"integer": frozenset({int}), "number": frozenset({int, float})}
_READ = {
    "$schema", "$id", "$defs", "$ref", "title", "description", "type", "required", "properties", "additionalProperties",
    "items", "enum", "const",
}  # fmt: skip
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "minItems"}


@cache
def schema() -> dict[str, Any]:
    """The versioned schema that ships with the package."""
    return json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))


def _is(value: Any, name: str) -> bool:
    # In Python True is an int; in JSON it is not a number.
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _bound_error(value: Any, rule: dict[str, Any]) -> str:
    is_number = _is(value, "number")
    if is_number and value < rule.get("minimum", value):
        return f"must be at least {rule['minimum']}, got {value}"
    if is_number and value > rule.get("maximum", value):
        return f"must be at most {rule['maximum']}, got {value}"
    if is_number and "exclusiveMinimum" in rule and value <= rule["exclusiveMinimum"]:
        return f"must be above {rule['exclusiveMinimum']}, got {value}"
    if _is(value, "array") and len(value) < rule.get("minItems", 0):
        return f"must hold at least {rule['minItems']} items, got {len(value)}"
    return ""


def _value_error(value: Any, rule: dict[str, Any]) -> str:
    """What is wrong with `value` itself, or nothing."""
    if unread := rule.keys() - _READ - _BOUNDS:
        raise ValueError(f"schema.json uses words that schema.py does not read: {sorted(unread)}")
    if "const" in rule and value != rule["const"]:
        return f"must be {rule['const']!r}, got {value!r}"
    if "enum" in rule and value not in rule["enum"]:
        return f"must be one of {', '.join(map(str, rule['enum']))}, got {value!r}"
    names = rule.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(_is(value, name) for name in names):
        return f"must be {' or '.join(names)}, got {type(value).__name__}"
    return _bound_error(value, rule)


def _all_numbers(values: Any, rule: dict[str, Any]) -> bool:
    """Whether all are numbers that keep to the rule, told at once: most of a report is long lists of times."""
    if not values or not rule.keys() <= {"type", "minimum", "description"} or not isinstance(rule.get("type"), str):
        return False
    plain = _PLAIN.get(rule["type"], frozenset())
    return plain.issuperset(map(type, values)) and min(values) >= rule.get("minimum", -math.inf)


def referred(name: str) -> dict[str, Any]:
    """The rule that a `$ref` of the schema names, such as `#/$defs/estimate`."""
    return schema()["$defs"][name.removeprefix("#/$defs/")]


def first_error(value: Any, rule: dict[str, Any], where: str = "") -> str:
    """`field: what is wrong` for the first field that breaks the schema, or nothing."""
    # a rule beside a reference adds to it
    if "$ref" in rule and (error := first_error(value, referred(rule["$ref"]), where)):
        return error
    if error := _value_error(value, rule):
        return f"`{where or 'the document'}` {error}"
    if isinstance(value, dict):
        for name in rule.get("required", []):
            if name not in value:
                return f"`{f'{where}.{name}'.lstrip('.')}` is missing"
        fields = rule.get("properties", {})
        if "additionalProperties" in rule:  # of a map whose names are data: all values follow one rule
            fields = dict.fromkeys(value, rule["additionalProperties"]) | fields
        for name, inner in fields.items():
            if name in value and (error := first_error(value[name], inner, f"{where}.{name}".lstrip("."))):
                return error
    if isinstance(value, list | tuple) and "items" in rule and not _all_numbers(value, rule["items"]):
        for index, item in enumerate(value):
            if error := first_error(item, rule["items"], f"{where}[{index}]"):
                return error
    return ""


def validate(document: dict[str, Any], source: str = "the report") -> None:
    """Raise InputRejected naming the field of `document` that is missing or breaks `schema.json`; `source` is named."""
    if error := first_error(document, schema()):
        raise InputRejected(
            f"{source}: {error}",
            code="E-REPORT-MALFORMED",
            hint="write it again with `compress run`; the rules are in compress/report/schema.json",
        )
