"""Targets: what they ask of int8, and how a file is judged for a CPU that is not at hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_pruning_steps import digits
from test_quantize import quantized, source, splits  # noqa: F401 (fixtures)
from test_report import make_facts

from compress import chain, emulate, environment, judge, payoff, plan, targets
from compress.cli.main import compress
from compress.errors import InputRejected, UsageError
from compress.recipe import Recipe
from compress.report import html, markdown, rows, schema
from compress.store import Store, file_digest
from compress.types import Artifact

HERE = environment.capture()
SATURATES = environment.int8_saturates(HERE)
AVX2, VNNI, ARM = ("avx2",), ("avx2", "avx512_vnni"), ("asimd", "neon")


def job_of(**values) -> plan.Job:
    torch.set_num_threads(1)
    common = {"student": "mlp", "kd": ("cross_entropy",), "runtimes": ("ort_cpu",), "quantize": "int8"}
    return plan.make(Recipe(**{**common, **values}), digits())


@pytest.mark.parametrize("name", [target.name for target in targets.TARGETS])
def test_every_target_makes_a_file_of_its_own_form(name: str, source, splits, tmp_path: Path) -> None:  # noqa: F811
    import onnx
    from onnx import numpy_helper

    target = targets.find(name)
    job = job_of(target=name)
    path, _ = quantized(job.quantizer.spec, source, splits.calibrate.images, tmp_path)
    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    zeros = [tensors[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype.name for zero in zeros} == {target.activations}
    assert target.symmetric <= (not any(zero.any() for zero in zeros))
    weights = [v for n, v in tensors.items() if v.dtype == np.int8 and v.ndim > 1]
    assert max(np.abs(w).max() for w in weights) == (64 if target.reduce_range else 127)
    clips = target.saturates is not False
    assert not (clips and emulate.can_saturate(onnx.load(path))), "one file for CPUs of both kinds, by plain int8 too"
    assert job.round_to == target.round_to
    assert name in CliRunner().invoke(compress, ["list", "targets"]).output


def test_pruned_widths_are_rounded_as_the_target_wants_unless_the_user_says() -> None:
    assert job_of(target="tensorrt", prune="0.3").round_to == 32
    assert job_of(target="tensorrt", prune="0.3", prune_round_to=4).round_to == 4


def test_a_saved_recipe_follows_another_target() -> None:
    """What the user set stays; what the target set is the new one's."""
    saved = job_of(target="cpu-avx2", quantize="int8:calibrator=mse", prune="0.3").recipe
    again = plan.make(dataclasses.replace(saved, target="tensorrt"), digits())
    config = again.quantizer.config
    assert (config.calibrator, config.activations, config.symmetric, config.reduce_range) == (
        "mse",
        "int8",
        True,
        False,
    )
    assert again.round_to == 32
    same = plan.make(saved, digits())
    assert same.quantizer.spec == job_of(target="cpu-avx2", quantize="int8:calibrator=mse").quantizer.spec


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown target `cpu-avx`"):
        job_of(target="cpu-avx")


@pytest.mark.parametrize(
    "spec",
    [
        "int8:symmetric=true", "int8:activations=int8,weights=uint8",
        "int8_qat:ce_weight=0,parent_weight=0,teacher_weight=0",
    ],
)  # fmt: skip
def test_knobs_that_exclude_each_other_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="int8"):
        job_of(quantize=spec)


@pytest.mark.parametrize(
    "isa,here", [(AVX2, {"generic", "cpu-avx2"}), (VNNI, {"generic", "cpu-vnni"}), (ARM, {"generic", "arm64"})]
)
def test_which_targets_a_machine_stands_for(isa: tuple[str, ...], here: set[str]) -> None:
    machine = dataclasses.replace(HERE, isa=isa)
    assert {target.name for target in targets.TARGETS if target.is_here(machine)} == here


@pytest.fixture(scope="module")
def files(source, splits, tmp_path_factory) -> tuple[Artifact, Artifact]:  # noqa: F811
    """(the float file, its int8 file, of which sums can leave 16 bits)"""
    path, _ = quantized("int8", source, splits.calibrate.images, tmp_path_factory.mktemp("int8"))
    common = {"format": "onnx", "parameters": 1, "macs": 1, "input_shape": splits.train.input_shape,
              "class_names": splits.train.class_names}  # fmt: skip
    return tuple(
        Artifact(path=file, digest=file_digest(file), precision=precision, stage=precision,
                 size_bytes=file.stat().st_size, **common)
        for file, precision in ((source, "float32"), (path, "int8"))
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


OTHER = "cpu-vnni" if SATURATES else "cpu-avx2"
SAME = "cpu-avx2" if SATURATES else "cpu-vnni"


def test_a_file_is_emulated_where_its_target_computes_otherwise(files, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(judge, "EMULATED_IMAGES", 40)
    other, same = job_of(target=OTHER), job_of(target=SAME)
    float_, int8 = files
    assert judge.counts(other, store, float_, None, other.splits.select)["emulated"] is False
    found = judge.counts(other, store, int8, float_, other.splits.select)
    assert found["emulated"] and found["n"] == 40
    again = judge.counts(other, store, int8, float_, other.splits.select)
    assert again == found
    measured = judge.counts(same, store, int8, float_, same.splits.select)
    assert not measured["emulated"] and measured["n"] == len(same.splits.select.labels)


def test_what_cannot_saturate_is_never_emulated(source, splits, files, store, tmp_path: Path) -> None:  # noqa: F811
    path, _ = quantized("int8:reduce_range=true", source, splits.calibrate.images, tmp_path)
    safe = dataclasses.replace(files[1], path=path, digest=file_digest(path))
    job = job_of(target=OTHER)
    assert not judge.counts(job, store, safe, None, job.splits.select)["emulated"]


def test_the_report_tells_measured_from_emulated_from_assumed(files, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(judge, "EMULATED_IMAGES", 40)
    float_, int8 = files
    found = judge.elsewhere(job_of(), store, [(int8, float_)])
    assert [row["how"] for row in found] == (["emulated", "measured"] if SATURATES else ["measured", "emulated"])
    assert {row["n"] for row in found} == {40, len(job_of().splits.report.labels)}
    abroad = judge.elsewhere(job_of(target=OTHER), store, [(int8, float_)])
    assert [row["how"] for row in abroad] == ["emulated", "assumed"] and "nothing was timed" in abroad[1]["words"]
    gpu = judge.elsewhere(job_of(target="tensorrt"), store, [(int8, float_)])
    assert gpu[-1]["how"] == "assumed" and "TensorRT" in gpu[-1]["words"]
    assert judge.elsewhere(job_of(), store, [(float_, float_)]) == []
    facts = make_facts() | {"elsewhere": found + abroad}
    schema.validate(facts)
    document = {**facts, "derived": rows.derive(facts)}
    for text in (html.render(document), markdown.render(document)):
        assert "int8 on other CPUs" in text and "emulated" in text and "nothing was timed" in text


def link_of(artifact: Artifact, **values) -> chain.Link:
    return chain.Link(artifact=artifact, parent="float32", what="", step=None, reason="costs nothing", **values)


def speed(low: float, high: float, control: str = "ok"):
    return lambda *_: {"ratio": (low * high) ** 0.5, "low": low, "high": high, "runtime": "ort_cpu", "control": control}


@pytest.mark.parametrize(
    "low,high,kept,says",
    [
        (1.1, 1.4, True, "faster than float32"),
        (0.9, 1.3, False, "makes no difference in time to float32"),
        (0.5, 0.6, False, "is slower than float32"),
    ],
)
def test_int8_is_kept_if_it_is_faster(files, store, monkeypatch, low, high, kept, says) -> None:
    monkeypatch.setattr(payoff, "speedup", speed(low, high))
    float_, int8 = files
    link = link_of(int8, facts={"notes": ["8 of 8 layers run as int8 kernels"]})
    found = chain._paying(job_of(), store, link, link_of(float_))
    assert found.kept is kept and says in found.reason and f"({low:.2f} to {high:.2f})" in found.reason
    assert kept or ("8 of 8 layers" in found.reason and "least_speedup=0" in found.reason)


def test_slower_int8_is_kept_for_the_bytes_that_were_asked_for_or_where_speed_was_not(
    files, store, monkeypatch
) -> None:
    monkeypatch.setattr(payoff, "speedup", speed(0.5, 0.6))
    float_, int8 = files
    between = f"{(float_.size_bytes + int8.size_bytes) // 2}B"
    found = chain._paying(job_of(max_size=between), store, link_of(int8), link_of(float_))
    assert found.kept and "allowed" in found.reason
    assert chain._paying(job_of(least_speedup=0.0), store, link_of(int8), link_of(float_)).kept
    assert not chain._paying(job_of(), store, link_of(int8, kept=False), link_of(float_)).kept


def test_a_speed_that_cannot_be_measured_here_decides_nothing(files, store, monkeypatch) -> None:
    monkeypatch.setattr(payoff, "speedup", speed(0.5, 0.6))
    float_, int8 = files
    found = chain._paying(job_of(target="tensorrt"), store, link_of(int8), link_of(float_))
    assert found.kept and "speed on tensorrt that cannot be measured on this machine" in found.reason


def test_where_int8_is_known_not_to_be_faster_it_is_kept_for_its_bytes_only(files, store) -> None:
    float_, int8 = files
    found = chain._paying(job_of(target="cuda"), store, link_of(int8), link_of(float_))
    assert not found.kept and "no int8 convolution" in found.reason
    between = f"{(float_.size_bytes + int8.size_bytes) // 2}B"
    assert chain._paying(job_of(target="cuda", max_size=between), store, link_of(int8), link_of(float_)).kept


def test_a_file_with_an_unknown_operator_is_said_not_to_be_emulated(files, store, tmp_path: Path) -> None:
    import onnx

    float_, int8 = files
    model = onnx.load(int8.path)
    node = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    node.op_type = "ReduceMax"
    onnx.save(model, tmp_path / "other.onnx")
    other = dataclasses.replace(int8, path=tmp_path / "other.onnx", digest=file_digest(tmp_path / "other.onnx"))
    job = job_of(target=OTHER)
    assert not judge.counts(job, store, other, None, job.splits.select)["emulated"]
    (row,) = judge.elsewhere(job_of(), store, [(other, float_)])
    assert row["how"] == "assumed" and "ReduceMax" in row["words"]


def test_quantizers_for_bytes_need_not_be_faster(files, store, monkeypatch) -> None:
    monkeypatch.setattr(payoff, "speedup", None)
    float_, int8 = files
    assert chain._paying(job_of(quantize="int8_weights"), store, link_of(int8), link_of(float_)).kept
    larger = dataclasses.replace(int8, size_bytes=float_.size_bytes + 1)
    assert not chain._paying(job_of(quantize="int8_weights"), store, link_of(larger), link_of(float_)).kept


def test_calibration_images_that_are_also_in_the_test_set_are_an_error() -> None:
    whole = digits()
    leaked = whole.report.images.copy()
    leaked[:3] = whole.calibrate.images[:3]
    bad = dataclasses.replace(whole, report=dataclasses.replace(whole.report, images=leaked))
    common = {"student": "mlp", "kd": ("cross_entropy",)}
    with pytest.raises(InputRejected, match="3 of the 512 train images that would calibrate int8 are also in the test"):
        plan.make(Recipe(**common, quantize="int8"), bad)
    plan.make(Recipe(**common, quantize="int8_weights"), bad)  # looks at no images


def test_the_emulated_part_is_the_same_every_time() -> None:
    dataset = digits().report
    assert np.array_equal(judge._part(dataset), judge._part(dataset))
    assert len(judge._part(dataset)) == min(judge.EMULATED_IMAGES, len(dataset.labels))
