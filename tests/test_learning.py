"""The learning experiments: each is a recipe that resolves, stops and goes on, and compares what belongs together."""

import json
import math
import sys
from pathlib import Path

import pytest

from compress import plan, recipe, training_steps
from compress.errors import InputRejected
from compress.store import Store

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import experiments  # noqa: E402
import learning  # noqa: E402
import record  # noqa: E402

EXPERIMENTS = experiments.all_of("digits", "weights.th")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_resolves_and_every_comparison_names_variants(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    (tmp_path / "weights.th").write_bytes(b"")
    splits = plan.load_data(recipe.Recipe(), Store(tmp_path / "store"))
    for values in experiment.variants.values():
        chosen = {**experiment.common, **values, "data": "digits"}
        if "teacher_checkpoint" in chosen:
            chosen |= {"teacher_checkpoint": [str(tmp_path / "weights.th")], "teacher_mean": [], "teacher_std": []}
        job = plan.make(recipe.from_values(chosen), splits)
        assert job.methods and job.teachers
    for addresses in experiment.compared:
        assert {address.partition("/")[0] for address in addresses} <= set(experiment.variants)
    assert set(experiment.paired or ()) <= set(experiment.variants)


def test_every_method_but_that_for_trees_is_in_the_table() -> None:
    from compress import catalog

    tried = {values["kd"][0].partition(":")[0] for values in EXPERIMENTS["methods"].variants.values()}
    assert tried == set(catalog.names("methods")) - {"soft_tree"}
    assert len(experiments.NAMED) == 8 and EXPERIMENTS["methods"].seeds == 5


def test_the_interval_is_students() -> None:
    found = learning.points([52, 55, 54], [50, 51, 53], 100)
    mean, deviation = 7 / 3, math.sqrt(((2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2 + (1 - 7 / 3) ** 2) / 2)
    half = 4.302653 * deviation / math.sqrt(3)  # the quantile of t with two degrees of freedom
    assert found["points"] == pytest.approx(mean) and found["seeds"] == 3
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half), rel=1e-6)
    assert learning.points([3], [1], 100)["low"] is None


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks/learning.py", *arguments])
    return learning.main()


@pytest.mark.slow
def test_an_experiment_stops_and_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    path = tmp_path / "learning_x.json"
    flags = ("missing_class", "--epochs", "1", "--record", str(path), "--variants", "no threes;all classes", "--seeds")
    assert run(monkeypatch, *flags, "1") == record.CLAIM_HOLDS
    first = json.loads(path.read_text())
    assert {row["outcome"] for row in first["rows"]} >= {"distilled", "corrected", "corrected, of class 3"}
    assert first["comparisons"][0]["seeds"] == 1 and first["comparisons"][0]["low"] is None
    run(monkeypatch, *flags, "2")
    second = json.loads(path.read_text())
    assert second["results"]["no threes"]["0"] == first["results"]["no threes"]["0"]
    assert second["comparisons"][0]["seeds"] == 2 and second["comparisons"][0]["low"] is not None
    monkeypatch.setattr(training_steps, "train_step", lambda *_, **__: pytest.fail("trained again"))
    run(monkeypatch, *flags, "2")
    assert "against all classes" in capsys.readouterr().out
    assert "paired over the seeds" in (text := learning.page(tmp_path)) and "| no threes: corrected | 2 |" in text
    with pytest.raises(InputRejected, match="was made with") as caught:
        run(monkeypatch, "missing_class", "--epochs", "2", "--record", str(path), "--seeds", "1")
    print(caught.value)


def test_the_page_is_that_of_the_records() -> None:
    assert learning.PAGE.read_text() == learning.page(), "python benchmarks/learning.py --page"
