"""The ladder of int8: order, what is left out and why, what is taken back, and what the report says of it."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_pruning_steps import digits
from test_report import make_facts
from test_resume import die_after

from compress import (
    artifact_steps,
    environment,
    evaluate,
    int8_steps,
    ladder,
    plan,
    qat_steps,
    schedules,
)
from compress.recipe import Recipe
from compress.report import html, markdown, plots_ladder, rows, rows_ladder, rows_layers, schema
from compress.store import Store

STUDENT = "resnet_cifar:depth=8,stem=8,channels=8"
STEPS = {"rounding_steps": 20}
SAFE = {"reduce_range": True}  # what `generic` asks for
NAMES = [rung.name for rung in ladder.RUNGS]


def job_of(**values) -> plan.Job:
    torch.set_num_threads(1)
    common = {
        "teacher": (STUDENT,), "student": STUDENT, "kd": ("cross_entropy",), "epochs": 2, "runtimes": ("ort_cpu",),
        "quantize": "int8_auto:rounding_steps=20,most_float=3", "max_drop": 0.0,
    }  # fmt: skip
    return plan.make(Recipe(**{**common, **values}), digits())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, the trained student's step, its file)."""
    root = tmp_path_factory.mktemp("store")
    (root / "steps").mkdir()
    return student_in(Store(root))


def student_in(store: Store) -> tuple:
    job = job_of()
    (student,) = schedules.students(job, store, ())
    exported = artifact_steps.export_step(job, store, "distilled", student.step)
    path = exported.folder / "model.onnx"
    return store, student.step, artifact_steps.onnx_artifact(job, "distilled", path, "float32", exported.facts)


@pytest.fixture(scope="module")
def climbed(made):
    """The whole ladder, since nothing is ever good enough, on a CPU whose products saturate."""
    store, student, parent = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "drop_points", lambda counts: 1.0)
        patch.setattr(environment, "int8_saturates", lambda found: True)
        return ladder.climb(job_of(), store, parent, student)


@pytest.mark.slow
def test_every_rung_is_tried_in_order_and_the_best_file_wins(climbed) -> None:
    best, records = climbed
    assert [record["rung"] for record in records] == NAMES and not any(record["left_out"] for record in records)
    tried = {record["rung"]: record["tried"] for record in records}
    assert [row["knobs"]["calibrator"] for row in tried["better calibrator"]] == ["percentile", "mse", "entropy"]
    assert tried["per-channel min-max"][0]["knobs"] == STEPS | SAFE
    assert all(row["reestimated"] for row in tried["BatchNorm re-estimation"])
    in_float = [rows_ladder.layers_in_float(row) for row in tried["sensitive layers in float"]]
    assert len(in_float) == 2 and in_float[0] and set(in_float[0]) < set(in_float[1])
    (trained,) = tried["quantization-aware training"]
    assert trained["trained_epochs"] == 1, "at least one"
    assert trained["knobs"].get("reduce_range") or trained["knobs"]["weights"] == "uint8", "it must not saturate"
    standing: dict = {}
    for record in records:
        for row in record["tried"]:
            kept = {k: v for k, v in standing.items() if row["knobs"].get(k) != v}
            assert set(kept) <= {"reduce_range"}, "each is tried on top of what helped, and of nothing else"
            assert len(row["knobs"]) - len(standing) <= 2
        assert record["helped"] == any(row["better"] for row in record["tried"])
        standing = next((row["knobs"] for row in reversed(record["tried"]) if row["better"]), standing)
    assert standing == best.how.knobs


@pytest.mark.slow
def test_layers_are_ordered_by_what_they_take_off_the_error(climbed) -> None:
    found = next(record["layers"] for record in climbed[1] if "layers" in record)
    shares = [row["noise_share"] for row in found["layers"]]
    assert shares == sorted(shares) and len(shares) == 8
    assert shares[0] < found["noise_share"], "the most sensitive layer takes something off"
    assert {row["layer"] for row in found["layers"]} >= {"body.conv1", "body.linear"}


@pytest.mark.slow
def test_a_ladder_climbed_again_makes_nothing(climbed, made, monkeypatch) -> None:
    store, student, parent = made
    monkeypatch.setattr(evaluate, "drop_points", lambda counts: 1.0)
    monkeypatch.setattr(environment, "int8_saturates", lambda found: True)
    before = {folder for folder, *_ in store.entries()}
    best, records = ladder.climb(job_of(), store, parent, student)
    assert {folder for folder, *_ in store.entries()} == before
    assert records == climbed[1] and best.artifact == climbed[0].artifact


def counted(correct: int, agree: int, *, lost: int = 10, won: int = 10) -> dict:
    return {"n": 1000, "correct": correct, "agree": agree, "baseline_only": lost, "this_only": won}


def tried(**counts) -> int8_steps.Tried:
    return int8_steps.Tried(how=None, step=None, artifact=None, counts=counted(**counts))


def test_files_are_told_apart_by_right_answers_and_within_chance_by_agreement() -> None:
    """20 images differ from the float file's: chance alone moves √20 = 4.5 of them."""
    standing = tried(correct=900, agree=970)
    assert tried(correct=905, agree=960).better_than(standing), "more than chance"
    assert not tried(correct=904, agree=960).better_than(standing), "chance, and farther from the float file"
    assert tried(correct=896, agree=980).better_than(standing), "chance, and nearer to the float file"
    assert not tried(correct=895, agree=990).better_than(standing)


@pytest.mark.parametrize("lost,won,max_drop,enough", [(10, 10, 0.75, True), (10, 10, 0.7, False), (0, 0, 0.2, True)])
def test_a_loss_has_to_be_allowed_with_confidence(lost, won, max_drop, enough) -> None:
    """No point lost, give or take 1.645 · √20 of 1,000 images: 0.74 points; where none differs, one image."""
    counts = counted(900, 970, lost=lost, won=won) | {"baseline_correct": 900}
    found = int8_steps.Tried(how=None, step=None, artifact=None, counts=counts)
    assert ladder._good_enough(found, job_of(max_drop=max_drop)) is enough


@pytest.mark.parametrize(("images", "max_drop", "lost", "enough"),
                         [(164, 1.0, 1, True), (164, 1.0, 2, False), (165, 1.0, 1, False), (165, 1.0, 0, True),
                          (500, 0.0, 0, True), (500, 0.0, 1, False)])  # fmt: skip
def test_too_few_images_to_be_sure_are_said_and_the_loss_itself_decides(images, max_drop, lost, enough) -> None:
    """164.5 images: where none of them differs, the loss may still be one of them."""
    counts = counted(images - lost, images - lost, lost=lost, won=0) | {"n": images, "baseline_correct": images}
    found, job = int8_steps.Tried(how=None, step=None, artifact=None, counts=counts), job_of(max_drop=max_drop)
    assert ladder._good_enough(found, job) is enough
    said = ladder.doubts(found, job)
    assert bool(said) is (images < 165 or not max_drop)
    if said:
        assert f"{images} images of select cannot show" in said[0] and ("165 would do" in said[0]) is bool(max_drop)


def test_a_target_sets_the_first_knobs_and_the_user_has_the_last_word() -> None:
    assert ladder._first_knobs(job_of()) == STEPS | SAFE
    assert ladder._first_knobs(job_of(target="cpu-vnni")) == STEPS
    assert ladder._first_knobs(job_of(target="cpu-avx2")) == STEPS | SAFE
    assert ladder._first_knobs(job_of(target="tensorrt")) == STEPS | {"activations": "int8", "symmetric": True}
    assert ladder._first_knobs(job_of(target="arm64", quantize="int8_qat")) == {
        "activations": "int8", "calibrator": "mse",
    }  # fmt: skip
    assert job_of(target="cpu-avx2", quantize="int8").quantizer.config.reduce_range
    assert not job_of(target="cpu-avx2", quantize="int8:reduce_range=false").quantizer.config.reduce_range


def test_training_alone_is_one_rung(made, monkeypatch) -> None:
    store, student, parent = made
    monkeypatch.setattr(environment, "int8_saturates", lambda found: True)
    best, records = ladder.climb(job_of(quantize="int8_qat:teacher_weight=0"), store, parent, student)
    assert [record["rung"] for record in records] == ["quantization-aware training"]
    assert best.how.trained and best.how.knobs == {"calibrator": "mse", "reduce_range": True}
    again, _ = ladder.climb(job_of(quantize="int8_qat:teacher_weight=0"), store, parent, student)
    assert again.step.reused and again.artifact == best.artifact


KILLED = "int8_qat:teacher_weight=0,ce_weight=0.5"  # no other test's, whose step would lie in the store


def trained_in(root: Path) -> str:
    """The digest of the file that training through the rounding makes in this store."""
    store, student, parent = student_in(Store(root))
    return ladder.climb(job_of(quantize=KILLED), store, parent, student)[0].artifact.digest


def child(root: str, most_steps: str) -> None:
    """One process that trains in this store, killed before one more than so many steps."""
    die_after(int(most_steps))
    print(trained_in(Path(root)))


@pytest.mark.slow
def test_killed_amid_training_through_the_rounding_it_ends_with_the_same_bytes(made, tmp_path: Path) -> None:
    for name in ("killed", "straight"):
        shutil.copytree(made[0].root, tmp_path / name, ignore=lambda folder, names: {"locks"} & set(names))
    here, root = Path(__file__), tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here.parent}"}
    plan_ = qat_steps._plan(job_of(quantize=KILLED))
    steps, _ = plan_.steps(len(job_of().transfer.labels))
    assert steps > 4
    ends = []
    for most in (3, steps - 3):  # the second has just as many as are left: none is done again
        command = [sys.executable, str(here), str(root), str(most)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        ends.append((done.returncode, done.stdout.strip()))
    assert ends[0] == (-signal.SIGKILL, "") and ends[1] == (0, trained_in(tmp_path / "straight"))


def test_it_stops_at_the_first_file_that_costs_no_more_than_allowed(made) -> None:
    store, student, parent = made
    best, records = ladder.climb(job_of(max_drop=100.0), store, parent, student)
    assert [record["rung"] for record in records] == NAMES[:1] and best.how.knobs == STEPS | SAFE


def test_rungs_that_cannot_be_tried_say_why(made, monkeypatch) -> None:
    store, _, parent = made
    monkeypatch.setattr(evaluate, "drop_points", lambda counts: 1.0)
    job = job_of(quantize="int8_auto:rounding_steps=20,most_float=0", target="cpu-vnni")
    _, records = ladder.climb(job, store, parent, None)
    reasons = {record["rung"]: record["left_out"] for record in records if record["left_out"]}
    assert list(reasons) == [
        "BatchNorm re-estimation", "weights that cannot saturate", "sensitive layers in float",
        "quantization-aware training",
    ]  # fmt: skip
    assert "only a file" in reasons["BatchNorm re-estimation"] and "only a file" in list(reasons.values())[-1]


def test_weights_on_the_grid_are_rounded_by_output_channel() -> None:
    weight = torch.randn(6, 3, 3, 3)
    found = int8_steps.on_grid(weight, 127)
    scale = weight.flatten(1).abs().amax(1) / 127
    levels = found / scale.reshape(-1, 1, 1, 1)
    assert torch.allclose(levels, levels.round(), atol=1e-3) and levels.abs().max() <= 127.001
    assert (found - weight).abs().max() <= 0.501 * scale.max()
    assert torch.equal(int8_steps.on_grid(torch.zeros(2, 1, 1, 1), 64), torch.zeros(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("isa", "saturates"),
    [(("avx2",), True), (("avx2", "avx512f"), True), (("avx2", "avx_vnni"), False), (("neon",), False)],
)
def test_products_saturate_on_x86_without_vnni(isa: tuple[str, ...], saturates: bool) -> None:
    found = dataclasses.replace(environment.capture(), isa=isa)
    assert environment.int8_saturates(found) is saturates


def row(**values):
    return {
        "knobs": {}, "reestimated": False, "n": 100, "correct": 90, "parent_correct": 95, "parent_only": 7,
        "this_only": 2, "agree": 91, "size_bytes": 50_000, "seconds": 3.0, "trained_epochs": 0,
        "emulated": False, "better": False, **values,
    }  # fmt: skip


def with_ladder() -> dict:
    facts = make_facts()
    layers = [{"layer": f"body.<b>{i}", "noise_share": 0.01 + 0.01 * i} for i in range(3)]
    kept = row(knobs={"keep_float": "body.<b>0"}, correct=95, agree=97, better=True)
    stage = next(s for s in facts["stages"] if s["name"] == "int8")
    stage["ladder"] = [
        {"rung": "per-channel min-max", "tried": [row(better=True)], "left_out": "", "helped": True},
        {"rung": "BatchNorm re-estimation", "tried": [], "left_out": "it has <none>", "helped": False},
        {"rung": "better calibrator", "tried": [row(knobs={"calibrator": "mse"})], "left_out": "", "helped": False},
        {"rung": "sensitive layers in float", "tried": [kept], "left_out": "", "helped": True,
         "layers": {"noise_share": 0.04, "layers": layers}},
    ]  # fmt: skip
    return facts


def test_the_report_shows_every_rung() -> None:
    facts = with_ladder()
    schema.validate(facts)
    document = {**facts, "derived": rows.derive(facts)}
    found = document["derived"]["ladder"]
    assert [r["word"] for r in found] == ["better", "left out", "no better", "better"]
    assert found[0]["cost_on_select_fraction"]["value"] == pytest.approx(-0.05)
    assert found[3]["what"] == "in float: <b>0" and found[0]["what"] == "min-max"
    assert rows_layers.in_words(document)[0] == "<b>0: 75% of the error, stays in float"
    page = html.render(document)
    assert "How int8 was repaired" in page and "<b>0" not in page and "it has &lt;none&gt;" in page
    text = markdown.render(document)
    assert "How int8 was repaired" in text and "75% of the error" in text


def test_without_a_ladder_the_report_says_nothing_of_it() -> None:
    facts = make_facts()
    document = {**facts, "derived": rows.derive(facts)}
    assert document["derived"]["ladder"] == [] and plots_ladder.sensitivity(document) is None


def test_the_plain_quantizer_stands_for_the_ladder_where_nothing_is_trained() -> None:
    job = job_of()
    assert artifact_steps.plain(job.quantizer).name == "int8"
    assert artifact_steps.plain(job_of(quantize="int8").quantizer).name == "int8"


if __name__ == "__main__":
    child(*sys.argv[1:])
