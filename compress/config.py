"""Typed knobs: each is declared once, beside its user, with its default, bounds and sentence.

An entry declares a frozen dataclass `Config` whose fields come from `knob(...)`. The same declaration feeds the
command line (`kd:temperature=4`), recipes, listings and error messages.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from compress.errors import UsageError, unknown


def knob(
    default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, choices: tuple[str, ...] = (),
    separator: str = ",",
) -> Any:  # fmt: skip
    """A dataclass field with its sentence, inclusive bounds, allowed values, and what parts a list given as text."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "separator": separator}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoKnobs:
    """The configuration of an entry that has nothing to set."""


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def convert(kind: type, value: Any, where: str) -> Any:
    """`value` (text or a TOML value) as `kind`: one of bool, int, float, str. Raises UsageError naming `where`."""
    text = str(value).strip()
    if kind is str:
        return str(value)
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise UsageError(f"{where} must be true or false, got `{value}`", code="E-KNOB-TYPE")
    try:
        if kind is int:
            return int(text)
        number = float(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise UsageError(f"{where} must be {noun}, got `{value}`", code="E-KNOB-TYPE") from None
    if not math.isfinite(number):
        raise UsageError(f"{where} must be finite, got `{value}`", code="E-KNOB-TYPE")
    return number


def _check(field: dataclasses.Field, value: Any, where: str) -> None:
    low, high, choices = (field.metadata.get(k) for k in ("low", "high", "choices"))
    if choices and value not in choices:
        raise unknown("value", str(value), list(choices), where=where, code="E-KNOB-CHOICE")
    if isinstance(value, int | float) and not isinstance(value, bool) and low is not None and high is not None:
        if not low <= value <= high:
            raise UsageError(
                f"{where} must lie in [{low:g}, {high:g}], got {value:g}: {field.metadata['help']}", code="E-KNOB-RANGE"
            )


def check(instance: Any, where: str) -> None:
    """Raises UsageError for the first value of a dataclass of knobs that is out of its bounds or choices."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        kind = type(field.default)
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise UsageError(f"`{field.name}` in {where} must be {kind.__name__}, got {value!r}", code="E-KNOB-TYPE")
        _check(field, value, f"`{field.name}` in {where}")


def build(config_class: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of `config_class` from texts or TOML values; see `typed`."""
    return config_class(**typed(config_class, values, where))


def typed(config_class: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` (texts or TOML values) in the types of the knobs; tuples take a list, or a text parted by the
    knob's separator.

    Raises UsageError for an unknown knob (nearest offered), a wrong type or a value out of bounds; `where` is named.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    hints = get_type_hints(config_class)
    built = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown("knob", name, list(fields), where=where, code="E-KNOB-UNKNOWN")
        place = f"`{name}` in {where}"
        if hints[name] == tuple[str, ...]:
            text = str(value).split(fields[name].metadata["separator"])
            items = value if isinstance(value, list | tuple) else [part for part in text if part]
            built[name] = tuple(convert(str, item, place) for item in items)
        else:
            built[name] = convert(hints[name], value, place)
        _check(fields[name], built[name], place)
    return built


def parse_spec(spec: str, first_knob: str = "") -> tuple[str, dict[str, str]]:
    """Split `name:knob=value,knob=value` into the name and its knobs' texts.

    A part without `=` is the value of `first_knob` (so that `torchvision:resnet18` reads well).
    """
    name, _, rest = spec.partition(":")
    values: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            if not first_knob or first_knob in values:
                raise UsageError(f"`{part}` in `{spec}` is not of the form knob=value", code="E-OPTION-VALUE")
            key, value = first_knob, part
        values[key.strip()] = value.strip()
    return name.strip(), values


def format_spec(name: str, config: Any) -> str:
    """The inverse of `parse_spec`, with every knob written out: the resolved form that recipes and keys hold."""
    knobs = ",".join(f"{f.name}={_plain(getattr(config, f.name))}" for f in dataclasses.fields(config))
    return f"{name}:{knobs}" if knobs else name


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # short where it is exact: keys are made of this text, and two values may not share one
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def describe(config_class: type) -> list[tuple[str, Any, str]]:
    """(knob, default, sentence) for listings."""
    return [(f.name, f.default, f.metadata.get("help", "")) for f in dataclasses.fields(config_class)]
