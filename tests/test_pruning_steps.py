"""Pruning in the chain: targets, steps, statistics, recovery that holds zeros, and whether a stage pays."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress import (
    artifact_steps,
    batchnorm,
    catalog,
    export,
    network,
    plan,
    prune,
    pruning_steps,
    schedules,
    sensitivity,
    sparse,
    training_steps,
)
from compress.errors import CompressError, UsageError
from compress.recipe import Recipe
from compress.report import plots_pruning, rows, rows_pruning, schema
from compress.store import Store

STUDENT = "resnet_cifar:depth=8,stem=16,channels=16"
WIDE = "resnet_cifar:depth=8,stem=32,channels=64,shortcut=B"


@functools.cache
def digits():
    """With fewer images to train on: nothing here depends on how good a network is."""
    found = plan.load_data(Recipe(), Store(Path("/nonexistent")))
    train = dataclasses.replace(found.train, images=found.train.images[:512], labels=found.train.labels[:512])
    return dataclasses.replace(found, train=train)


def job_of(**values) -> plan.Job:
    torch.set_num_threads(1)
    common = {
        "teacher": (STUDENT,), "student": STUDENT, "kd": ("cross_entropy",), "teacher_epochs": 1, "epochs": 2,
        "recover_epochs": 2, "runtimes": ("ort_cpu",), "max_drop": 100.0,
    }  # fmt: skip
    return plan.make(Recipe(**{**common, **values}), digits())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    (root / "steps").mkdir()
    return Store(root)


def student_of(job: plan.Job, store: Store):
    (made,) = schedules.students(job, store, ())
    return made.step


def exported_student(job: plan.Job, store: Store, step):
    exported = artifact_steps.export_step(job, store, "distilled", step)
    return artifact_steps.onnx_artifact(job, "distilled", exported.folder / "model.onnx", "float32", exported.facts)


def test_steps_lead_to_the_same_widths_little_by_little(store: Store) -> None:
    job = job_of(prune="0.5", prune_steps=2, prune_scope="uniform")
    step = pruning_steps.pruned(job, store, student_of(job, store), ())
    once = job_of(prune="0.5", prune_scope="uniform", recover_epochs=1)
    at_once = pruning_steps.pruned(once, store, student_of(once, store), ())
    kept = [{f["layers"][0]: f["kept"] for f in s.facts["pruning"][-1]["families"]} for s in (step, at_once)]
    assert kept[0] == kept[1]
    first, second = step.facts["pruning"]
    for before, after in zip(first["families"], second["families"], strict=True):
        assert before["layers"] == after["layers"] and after["channels"] == before["kept"]
    assert first["ratio"] == pytest.approx(0.25)
    assert first["sensitivity"] and not second["sensitivity"]
    net = training_steps.trained(job, step)
    wide = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert min(wide) == 8 and max(wide) < 64
    assert "MACs" in pruning_steps.describe(job, step) and "2 steps" in pruning_steps.describe(job, step)


def test_finished_steps_are_not_run_again(store: Store) -> None:
    job = job_of(prune="0.5", prune_steps=2, prune_scope="uniform")
    student = student_of(job, store)
    pruning_steps.pruned(job, store, student, ())
    assert pruning_steps.pruned(job, store, student, ()).reused


def test_a_last_step_with_nothing_left_to_remove_changes_nothing(store: Store) -> None:
    # rounding to 16 takes more at once than half of what is asked for, and as much as all of it
    job = job_of(prune="0.26", prune_steps=2, prune_scope="uniform", prune_round_to=16)
    step = pruning_steps.pruned(job, store, student_of(job, store), ())
    first, second = step.facts["pruning"]
    assert first["macs"][1] < first["macs"][0] and second["macs"][0] == second["macs"][1]


def test_other_ratios_ask_for_the_same_sensitivity(store: Store, monkeypatch) -> None:
    asked = []
    real = sensitivity.of_families
    monkeypatch.setattr(sensitivity, "of_families", lambda *given: asked.append(1) or real(*given))
    found = []
    for ratio in ("0.41", "0.62"):
        job = job_of(prune=ratio, epochs=1, recover_epochs=1)
        cuts = pruning_steps.pruned(job, store, student_of(job, store), ()).facts["pruning"]
        found.append(cuts[0]["sensitivity"])
    assert len(asked) == 1 and found[0] == found[1]


def test_what_was_tried_before_training_is_not_tried_again(store: Store, monkeypatch) -> None:
    job = job_of(prune="0.5")
    twin = training_steps.build(job, STUDENT, digits().train.mean, digits().train.std, 0)
    pruning_steps.refuse(job, store, twin)
    monkeypatch.setattr(prune, "prunable", lambda *_: pytest.fail("it was proved again"))
    pruning_steps.refuse(job, store, twin)


def test_a_share_of_macs_is_kept(store: Store) -> None:
    job = job_of(prune="macs=0.5")
    facts = pruning_steps.pruned(job, store, student_of(job, store), ()).facts["pruning"][0]
    assert 0.35 < facts["macs"][1] / facts["macs"][0] <= 0.5


def test_slimming_trains_for_sparsity_first(store: Store) -> None:
    job = job_of(prune="0.4", pruner="bn_scale:sparsity=0.1,epochs=3")
    student = student_of(job, store)
    step = pruning_steps.pruned(job, store, student, ())
    assert step.facts["pruning"][0]["macs"][1] < step.facts["pruning"][0]["macs"][0]
    (sparse_step,) = [f for f, *_ in store.entries() if f.name.startswith("sparse-")]
    sums = []
    for folder in (student.folder, sparse_step):
        net = network.load(folder)
        sums.append(sum(m.weight.abs().sum().item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)))
    assert sums[1] < 0.9 * sums[0]


@pytest.mark.parametrize(("pruner", "ratio"), [("unstructured", 0.8), ("two_four", 0.5)])
def test_zeros_hold_through_recovery(pruner: str, ratio: float, store: Store, tmp_path) -> None:
    job = job_of(prune=f"{ratio:g}", pruner=pruner, prune_steps=1 if pruner == "two_four" else 2)
    student = student_of(job, store)
    step = pruning_steps.pruned(job, store, student, ())
    net, cut = training_steps.trained(job, step), step.facts["pruning"][-1]
    found = sparse.zeros(net)
    assert found == {"weights": cut["weights"], "zero": cut["zero"]}, "momentum or decay moved a zero"
    assert found["zero"] / found["weights"] == pytest.approx(ratio, abs=0.03)
    before = training_steps.trained(job, student).state_dict()
    assert any(not torch.equal(before[k], v) for k, v in net.state_dict().items() if k.endswith("weight"))
    sizes = []
    for name, each in (("dense", training_steps.trained(job, student)), ("sparse", net)):
        export.export_onnx(each, tmp_path / f"{name}.onnx", recipe_digest="")
        sizes.append(sparse.compressed_bytes(tmp_path / f"{name}.onnx"))
    artifacts = [
        dataclasses.replace(exported_student(job, store, student), path=tmp_path / f"{name}.onnx")
        for name in ("dense", "sparse")
    ]
    said = pruning_steps.compressed(artifacts[0], pruning_steps.sizes(job, *artifacts))
    assert f"{sizes[1]:,} bytes" in said and f"{sizes[0]:,}" in said
    assert sizes[1] < (0.75 if ratio == 0.5 else 0.45) * sizes[0]


def test_two_of_four_is_the_larger_half_of_every_four() -> None:
    entry = catalog.load("pruners", "two_four")
    weight = torch.randn(8, 12, 3, 3)
    kept = entry.module.masks(entry.config, {"w": weight.abs()}, 0.5)["w"]
    fours, masks = (t.transpose(1, -1).reshape(-1, 4) for t in (weight.abs(), kept))
    assert (masks.sum(1) == 2).all()
    assert all(four[mask].min() >= four[~mask].max() for four, mask in zip(fours, masks, strict=True))


def test_sensitivity_counts_masked_networks() -> None:
    split = digits().select
    job = job_of(prune="0.5")
    net = training_steps.build(job, STUDENT, digits().train.mean, digits().train.std, 0)
    ranking = prune.rank(prune.prunable(net), job.pruner)
    found = sensitivity.of_families(ranking, split.images, split.labels)
    assert found["images"] == len(split.labels) and len(found["families"]) == len(ranking.families)
    assert all(0 <= count <= found["images"] for family in found["families"] for count in family["correct"])
    assert torch.equal(ranking.network.body.conv1.weight, net.body.conv1.weight), "the network itself stays as it is"


def test_statistics_become_those_of_the_images() -> None:
    net = network.build(
        STUDENT, class_names=tuple("ab"), input_shape=(1, 8, 8), mean=(0.0,), std=(1.0,), seed=0
    )  # fmt: skip
    images = digits().calibrate.images[:256]
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert batchnorm.reestimate(net, images, batch_size=128) == len(momenta) and not net.training
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    floats = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = torch.stack([net.body.conv1(part).mean((0, 2, 3)) for part in floats.split(128)]).mean(0)
    assert torch.allclose(net.body.bn1.running_mean, expected, atol=1e-5)


def worth(job: plan.Job, store: Store, parent, child) -> tuple[bool, str]:
    return pruning_steps.worth(job, store, parent, child, pruning_steps.sizes(job, parent, child))


def test_a_stage_that_is_not_faster_is_not_kept(store: Store) -> None:
    job = job_of(prune="0.5", tier="smoke")
    step = student_of(job, store)
    artifact = exported_student(job, store, step)
    same = dataclasses.replace(artifact, stage="pruned")
    kept, why = worth(job, store, artifact, same)
    print(why)
    assert not kept and "is not 1.15 times as fast as distilled" in why and "ort_cpu" in why
    any_speed = job_of(prune="0.5", tier="smoke", least_speedup=0.0)
    assert worth(any_speed, store, artifact, same) == (True, "")
    smaller = dataclasses.replace(same, size_bytes=artifact.size_bytes - 1000)
    limited = job_of(prune="0.5", tier="smoke", max_size=f"{artifact.size_bytes - 500}B")
    kept, why = worth(limited, store, artifact, smaller)
    assert kept and "allowed" in why


def test_a_latency_that_no_ratio_reaches_says_the_best(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(pruning_steps, "RATIOS", (0.8,))
    job = job_of(prune="latency=0.01", tier="smoke", student=WIDE)
    with pytest.raises(CompressError, match=r"no ratio leaves 1% of the latency: the best was \d+%") as caught:
        pruning_steps.pruned(job, store, student_of(job, store), ())
    print(caught.value)
    assert "take a smaller student" in caught.value.hint


def test_a_latency_is_found_by_measuring(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(pruning_steps, "RATIOS", (0.5, 0.8))
    job = job_of(prune="latency=0.97", tier="smoke", student=WIDE)
    facts = pruning_steps.pruned(job, store, student_of(job, store), ()).facts["pruning"][0]
    assert [row["ratio"] for row in facts["search"]] == list(pruning_steps.RATIOS)
    assert facts["ratio"] == next(row["ratio"] for row in facts["search"] if row["share"] <= 0.97)


def test_without_a_runtime_for_files_it_says_so_before_any_training(store: Store) -> None:
    job = job_of(prune="0.5", runtimes=("torch_eager",))
    twin = training_steps.build(job, STUDENT, digits().train.mean, digits().train.std, 0)
    with pytest.raises(UsageError, match="none of the runtimes reads: torch_eager") as caught:
        pruning_steps.refuse(job, store, twin)
    print(caught.value)


def test_many_steps_never_take_more_than_four_fifths_of_a_layer() -> None:
    net = training_steps.build(job_of(), "mobilenet", digits().train.mean, digits().train.std, 0)
    original: dict[str, int] = {}
    for _ in range(4):
        ranking = prune.rank(prune.prunable(net), catalog.load("pruners", "magnitude"))
        original = original or {f.layers[0]: len(f.units) for f in ranking.families}
        net = prune.without(ranking, prune.choose(ranking, 0.6, original=original))
    left = {f.layers[0]: len(f.units) for f in prune.prunable(net).families}
    assert all(left[layer] >= 0.2 * count - 1e-9 for layer, count in original.items() if layer in left)
    assert max(1 - left[layer] / count for layer, count in original.items() if layer in left) > 0.7


def test_images_for_scores_are_of_all_classes() -> None:
    labels = np.repeat(np.arange(5), 300)  # as a folder lists them, class by class
    found = prune.samples_of(np.zeros((1500, 1, 1, 1), np.uint8), labels, 256)
    assert np.bincount(found.labels).min() > 30 and len(found.labels) == 256


def test_what_a_cut_depends_on_is_in_its_key(store: Store) -> None:
    job = job_of(prune="0.5")
    pruning_steps.pruned(job, store, student_of(job, store), ())
    other = plan.load_data(Recipe(calibration_images=400), Store(Path("/nonexistent")))
    changed = dataclasses.replace(job, splits=dataclasses.replace(job.splits, calibrate=other.calibrate))
    assert not pruning_steps.pruned(changed, store, student_of(job, store), ()).reused


def test_zeros_that_a_merge_would_fill_are_refused() -> None:
    net = training_steps.build(job_of(), "mobileone_s0:width=0.5", digits().train.mean, digits().train.std, 0)
    with pytest.raises(CompressError, match="merged before export") as caught:
        sparse.thin(net, catalog.load("pruners", "unstructured"), 0.5)
    print(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prune": "0.9"}, "would leave layers empty"),
        ({"prune": "0.4", "pruner": "two_four"}, "exactly half"),
        ({"prune": "0.5", "pruner": "two_four", "prune_steps": 2}, "one step"),
        ({"prune": "0.5", "pruner": "unstructured", "prune_scope": "uniform"}, "are for channels"),
        ({"prune": "latency=0.5", "prune_steps": 2}, "searched in one step"),
        ({"prune": "macs=0.5", "pruner": "unstructured"}, "leaves macs as they are"),
        ({"prune": "0.5", "pruner": "magnitud"}, "magnitude"),
        ({"prune": "0.5", "pruner": "magnitude:p=3"}, "`p`"),
    ],
)
def test_bad_input_says_why(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        job_of(**values)
    print(caught.value, caught.value.hint)


def test_what_cannot_be_pruned_says_so_before_any_training(store: Store) -> None:
    job = job_of(prune="0.4", student="resnet_cifar:depth=8,stem=2,channels=2")
    twin = training_steps.build(job, job.student.spec, digits().train.mean, digits().train.std, 0)
    with pytest.raises(CompressError, match="rounding to multiples of 8") as caught:
        pruning_steps.refuse(job, store, twin)
    print(caught.value)


def test_pruned_files_hold_no_subnormal_weights(store: Store, tmp_path) -> None:
    import onnx
    from onnx import numpy_helper

    job = job_of(prune="0.5", prune_steps=2, prune_scope="uniform")
    net = training_steps.trained(job, pruning_steps.pruned(job, store, student_of(job, store), ()))
    with torch.no_grad():
        net.body.conv1.weight[0] *= 1e-39  # as decay leaves a channel that nothing needs
    export.export_onnx(net, tmp_path / "model.onnx", recipe_digest="")
    tiny = np.finfo(np.float32).tiny
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype != np.float32 or not ((values != 0) & (np.abs(values) < tiny)).any(), tensor.name


def test_the_report_draws_what_pruning_saw() -> None:
    from test_report import make_facts

    facts = make_facts()
    stage = next(s for s in facts["stages"] if s["name"] == "pruned")
    families = [{"layers": [f"body.<b>{i}", "body.x"], "channels": 64, "kept": 64 - 8 * i} for i in range(4)]
    measured = [{"layer": f"<b>{i}", "correct": [90, 80 - 5 * i, 40]} for i in range(4)]
    stage["pruning"] = [
        {
            "ratio": 0.3, "families": families, "stays": {"body.y": "why"}, "macs": [100, 60], "parameters": [10, 6],
            "search": [],
            "sensitivity": {"images": 100, "correct": 95, "shares": [0.25, 0.5, 0.75], "families": measured},
        }
    ]  # fmt: skip
    schema.validate(facts)
    document = {**facts, "derived": rows.derive(facts)}
    drawn = str(plots_pruning.sensitivity(document))
    assert drawn.count('class="bar best"') == 4 and drawn.count('class="line ') == 3 and "<b>" not in drawn
    lines = rows_pruning.lines(document)
    assert lines[1].startswith("<b>3: 65") and "38% removed" in lines[1] and "1 layers" in lines[-1]
    seen = stage["pruning"][0]["sensitivity"]
    seen["shares"], seen["families"] = [], [family | {"correct": []} for family in measured]
    nothing = {**facts, "derived": rows.derive(facts)}
    assert plots_pruning.sensitivity(nothing) is None and len(rows_pruning.lines(nothing)) == 2
    del stage["pruning"]
    assert plots_pruning.sensitivity({**facts, "derived": rows.derive(facts)}) is None
