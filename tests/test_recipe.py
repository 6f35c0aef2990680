"""Recipes: a round trip through TOML, errors that name the key, and the plan that comes of them."""

import dataclasses
from pathlib import Path

import pytest

from compress import plan, recipe
from compress.errors import CompressError, InputRejected, UsageError
from compress.recipe import Recipe
from compress.store import Store
from compress.types import Splits

SOME = {
    "data": 'a "quoted" folder/ü',
    "teacher": ("resnet56", "resnet20:depth=20"),
    "teacher_checkpoint": ("a.th", ""),
    "teacher_mean": (".485,.456,.406",),
    "teacher_std": (".229 .224 .225",),
    "kd": ("kd:temperature=2", "fitnet"),
    "prune": "macs=0.3",
    "seed": 2**31 - 1,
    "download": True,
    "threads": ("1", "4"),
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(Recipe(), Store(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("made", [Recipe(), recipe.from_values(SOME)], ids=["defaults", "some"])
def test_a_recipe_comes_back_from_its_file(made: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(made), encoding="utf-8")
    places = {key: getattr(made, key) for key in recipe.PLACES}  # each command's own to say, so not in the file
    assert dataclasses.replace(recipe.from_values(recipe.read(path)), **places) == made
    assert recipe.from_values(recipe.as_dict(made)) == made
    text = path.read_text(encoding="utf-8")
    for field in dataclasses.fields(Recipe):
        assert (f"# {field.metadata['help']}" in text) == (field.name not in recipe.PLACES)


def test_lists_are_not_empty_and_name_nothing_twice() -> None:
    for key, value in (("kd", ()), ("runtimes", ()), ("threads", ()), ("runtimes", ("ort_cpu", "ort_cpu"))):
        with pytest.raises(UsageError, match=key):
            Recipe(**{key: value})


def test_texts_of_the_command_line_give_the_same() -> None:
    texts = {"prune": "0.3", "epochs": "5", "kd": "kd:temperature=4,kd_weight=1;fitnet", "download": "yes"}
    assert recipe.from_values(texts) == Recipe(
        prune="0.3", epochs=5, kd=("kd:temperature=4,kd_weight=1", "fitnet"), download=True
    )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"epoch": 3}, ("unknown knob `epoch`", "did you mean `epochs`?")),
        ({"prune": "1.5"}, ("`prune` must lie between 0 and 1", "macs=0.5")),
        ({"prune": "flops=0.5"}, ("`flops`", "is no target", "latency=0.6")),
        ({"prune": "macs=0"}, ("between 0 and 1",)),
        ({"prune": "half"}, ("must be a number",)),
        ({"learning_rate": "fast"}, ("`learning_rate`", "must be a number")),
        ({"optimizer": "adam"}, ("`optimizer`", "sgd, adamw", "did you mean `adamw`?")),
        ({"threads": ["0"]}, ("`threads`", "1 to 1024")),
        ({"threads": "1,two"}, ("`threads`", "got `two`")),
        ({"teacher_mean": "1,2"}, ("`teacher_mean`", "1 or 3")),
        ({"teacher_mean": ".5"}, ("belong together",)),
        ({"teacher_size": "big"}, ("`teacher_size`", "1 to 1024")),
        ({"teacher": ""}, ("`teacher`", "empty")),
        ({"ensemble": "mean"}, ("`ensemble`", "probabilities, logits, random")),
        ({"teacher_mean": ".5", "teacher_std": "0"}, ("`teacher_std`", "positive")),
        ({"teacher_mean": ".5,x,.5", "teacher_std": "1"}, ("`teacher_mean`", "number")),
        ({"_target_": "os.system"}, ("unknown knob `_target_`",)),
    ],
    ids=str,
)
def test_what_the_rules_do_not_allow_is_explained(values: dict, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        recipe.from_values(values, "recipe.toml")
    print(caught.value)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("data", [b"epochs = ", b"epochs = 1\nepochs = 2", b"\xff\xfe", b"[a\n", None])
def test_a_file_that_is_no_recipe_is_named(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputRejected, match="recipe.toml") as caught:
        recipe.read(path)
    print(caught.value)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "digits-mobilenet-kd"),
        ({"kd": "fitnet:stride=2,kd", "prune": "0.25", "quantize": "int8"}, None),
        (
            {"kd": ("fitnet:stride=2", "kd"), "prune": "0.25", "quantize": "int8"},
            "digits-mobilenet-fitnet-kd-prune0.25-int8",
        ),
        ({"data": "/home/me/my photos"}, "my_photos-mobilenet-kd"),
        ({"name": "../../etc/passwd"}, "_.._etc_passwd"),
        ({"name": "..."}, "run"),
        ({"name": "-rf"}, "rf"),
    ],
)
def test_names_of_runs_are_plain_folders(values: dict, name: str | None) -> None:
    if name is not None:
        assert recipe.run_name(Recipe(**values)) == name
    else:
        assert "/" not in recipe.run_name(recipe.from_values(values))


def make(splits: Splits, **values) -> plan.Job:
    return plan.make(recipe.from_values({"device": "cpu", **values}), splits)


def test_automatic_values_are_chosen_and_written_down(splits: Splits) -> None:
    job = make(splits)
    got = job.recipe
    assert len(got.teacher) == 1 and got.teacher[0].startswith("resnet8x4:depth=8")
    assert got.views == 9 < got.epochs, "digits have nine crops and no flip"
    assert got.student.startswith("mobilenet:width=0.5")
    assert (
        got.epochs > 0
        and got.teacher_epochs > 0
        and got.recover_epochs > 0
        and (got.batch_size, got.learning_rate) == (64, 0.05)
    )
    assert got.tier != "auto" and got.name == "" and job.pruner is job.quantizer is None
    again = plan.make(got, splits)
    assert again.recipe == got, "a resolved recipe must resolve to itself"
    assert len(plan.describe(make(splits, prune="0.3", quantize="int8"))) == 6


def test_explicit_values_stay(splits: Splits) -> None:
    job = make(splits, student="shufflenet", width="1", epochs="3", batch_size="7", kd="logits", recover_epochs="2")
    assert job.student.config.width == 1 and job.recipe.epochs == 3 and job.recipe.batch_size == 7
    assert job.recipe.recover_epochs == 2 and [m.name for m in job.methods] == ["logits"]


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        ({"student": "mobilnet"}, UsageError, "did you mean `mobilenet`"),
        ({"kd": "kd:heat=3"}, UsageError, "temperature"),
        ({"runtimes": "ort_gpu"}, UsageError, "ort_cpu"),
        ({"student": "resnet20", "width": "2"}, UsageError, "no width multiplier"),
        ({"teacher_checkpoint": "x.pth"}, UsageError, "needs --teacher"),
        ({"teacher": "resnet20", "teacher_checkpoint": "/nowhere/x.pth"}, InputRejected, "/nowhere/x.pth"),
        ({"teacher_mean": ".1,.2,.3", "teacher_std": "1,1,1"}, UsageError, "the images have 1 channel"),
        ({"teacher": "resnet20;resnet56", "teacher_checkpoint": "a.th"}, UsageError, "there are 2 teachers"),
        ({"teacher": "/nowhere/t.onnx"}, InputRejected, "/nowhere/t.onnx"),
        ({"teacher": "resnet20", "teacher_size": "64"}, UsageError, "with a checkpoint"),
    ],
    ids=str,
)
def test_a_plan_fails_before_the_work(values: dict, error: type, part: str, splits: Splits) -> None:
    with pytest.raises(error) as caught:
        make(splits, **values)
    print(caught.value)
    assert part in str(caught.value)


def test_data_is_a_name_or_a_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a,b").mkdir()
    assert plan.data_spec(Recipe(data="digits")) == "digits"
    assert plan.data_spec(Recipe(data="photos", image_size=64)) == "folder:path=photos,size=64"
    for data, part in (("digit", "did you mean `digits`"), ("a,b", "comma")):
        with pytest.raises(CompressError) as caught:
            plan.data_spec(Recipe(data=data))
        print(caught.value)
        assert part in str(caught.value)


def test_a_pairing_by_names_is_of_two_networks_only() -> None:
    for more in ({"peer": ("mlp",)}, {"assistant": ("mlp",)}):
        with pytest.raises(UsageError, match="by names") as caught:
            Recipe(pairing=("a=b",), **more)
        print(caught.value)
    for bad in (("strid",), ("a=b", "c"), ("a=b=c",)):
        with pytest.raises(UsageError, match="pairing"):
            Recipe(pairing=bad)
