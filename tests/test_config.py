"""Typed knobs: texts become values or errors that name the key, the rule and the nearest name."""

import dataclasses
from dataclasses import dataclass

import pytest

from compress import config
from compress.config import knob
from compress.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(4.0, "temperature T", low=0.05, high=1000)
    depth: int = knob(20, "layers", low=8, high=1202)
    center: bool = knob(False, "subtract the mean")
    shortcut: str = knob("A", "kind of shortcut", choices=("A", "B"))
    threads: tuple[str, ...] = knob(("1",), "numbers of threads")


def build(**values) -> Config:
    return config.build(Config, values, "method `kd`")


def refused(**values) -> str:
    with pytest.raises(UsageError) as caught:
        build(**values)
    print(caught.value)
    assert caught.value.exit_code == 2 and "method `kd`" in caught.value.message
    return str(caught.value)


def test_texts_and_toml_values_give_the_same() -> None:
    texts = build(temperature="2.5", depth="8", center="yes", shortcut="B", threads="1,2")
    assert texts == build(temperature=2.5, depth=8, center=True, shortcut="B", threads=["1", "2"])
    assert texts == Config(temperature=2.5, depth=8, center=True, shortcut="B", threads=("1", "2"))
    assert build() == Config() and type(build(temperature="3").temperature) is float


@pytest.mark.parametrize("text", ["true", "Yes", "on", "1"])
def test_truth_has_many_names(text: str) -> None:
    assert build(center=text).center is True


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"temperatur": 1}, ("unknown knob `temperatur`", "did you mean `temperature`?", "depth")),
        ({"temperature": "warm"}, ("`temperature`", "must be a number, got `warm`")),
        ({"temperature": "nan"}, ("`temperature`", "finite")),
        ({"temperature": "inf"}, ("`temperature`", "finite")),
        ({"temperature": 0.04}, ("`temperature`", "[0.05, 1000]", "temperature T")),
        ({"temperature": 1000.1}, ("`temperature`", "[0.05, 1000]")),
        ({"depth": "20.5"}, ("`depth`", "whole number")),
        ({"depth": 7}, ("`depth`", "[8, 1202]", "got 7")),
        ({"center": "maybe"}, ("`center`", "true or false")),
        ({"shortcut": "C"}, ("`shortcut`", "A, B")),
    ],
    ids=str,
)
def test_what_the_rules_do_not_allow_is_explained(values: dict, parts: tuple[str, ...]) -> None:
    message = refused(**values)
    assert all(part in message for part in parts)


@pytest.mark.parametrize("value", [0.05, 1000])
def test_bounds_are_inclusive(value: float) -> None:
    assert build(temperature=value).temperature == value


def test_a_spec_is_split_into_name_and_knobs() -> None:
    assert config.parse_spec("kd") == ("kd", {})
    assert config.parse_spec(" kd : temperature = 4 , depth=8, ") == ("kd", {"temperature": "4", "depth": "8"})
    assert config.parse_spec("folder:path=a=b:c") == ("folder", {"path": "a=b:c"})
    assert config.parse_spec("torchvision:resnet18", "name") == ("torchvision", {"name": "resnet18"})
    for spec in ("kd:4", "torchvision:a,b"):
        with pytest.raises(UsageError, match="not of the form knob=value"):
            config.parse_spec(spec, "name" if "," in spec else "")


@pytest.mark.parametrize("temperature", [4.0, 0.1, 1 / 3, 0.1 + 0.2, 123.4567891, 1e-1])
def test_the_written_spec_gives_the_same_knobs_back(temperature: float) -> None:
    built = Config(temperature=temperature, center=True, shortcut="B")
    # a comma parts knobs, so a tuple has no spec: recipes hold it as a list
    knobs = dataclasses.make_dataclass("Knobs", [(f.name, f.type, f) for f in dataclasses.fields(Config)[:4]])
    spec = config.format_spec("kd", knobs(temperature=temperature, center=True, shortcut="B"))
    name, values = config.parse_spec(spec)
    assert name == "kd" and build(**values) == built
    assert config.format_spec("kd", config.NoKnobs()) == "kd"
    assert "temperature=4," in config.format_spec("kd", Config())


def test_close_values_have_different_specs() -> None:
    specs = {config.format_spec("kd", Config(temperature=4 + d)) for d in (0, 1e-9, 1e-8)}
    assert len(specs) == 3, "keys are made of specs: two values may not share one"


def test_listing_has_default_and_sentence() -> None:
    assert config.describe(Config)[0] == ("temperature", 4.0, "temperature T")
    assert len(config.describe(Config)) == 5
