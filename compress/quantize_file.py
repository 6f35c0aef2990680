"""Quantize an ONNX file of the user's own: the rungs that need no network, and the price of what came out.

The file is opened in a child process first, as every file from outside; then it takes the way of a teacher in a run,
its normalisation put inside where it was named.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import artifact_steps, evaluate, judge, ladder, payoff, plan, publish, training_steps
from compress.errors import InputRejected, UsageError
from compress.plan import Job
from compress.recipe import Recipe
from compress.store import Store
from compress.types import Artifact

PREPROCESSING_KEYS = ("compress.preprocessing", "compress.normalisation")
LEAST_OPSET = 13  # of QuantizeLinear and DequantizeLinear with an axis
QUANTIZED_OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written, the float file that it came from, counts of both on the `report` split, the ladder, what is
    known of other CPUs, and whether it pays, in words.
    """

    artifact: Artifact
    parent: Artifact
    counts: dict[str, Any]
    rungs: list[dict[str, Any]]
    elsewhere: list[dict[str, Any]]
    lost_on_select_points: float
    pays: bool
    figures: str


def quantize_file(found: Artifact, recipe: Recipe, target: Path, *, store: Store) -> Quantized:
    """Quantize what `files.open_onnx` found as `recipe.quantize` says into `target`, golden samples beside it.

    `recipe` names the data and, where the file does not know it, the normalisation (`teacher_mean`, `teacher_std`).
    Raises InputRejected for a file that is quantized already or whose preprocessing is unknown.
    """
    _refuse(found, recipe)
    # a first look at its speed; `compress bench` takes longer
    recipe = replace(recipe, teacher=(str(found.path),), tier="smoke")
    job = plan.make(recipe, plan.load_data(recipe, store))
    plan.warn_of_few_images(job)
    step = training_steps.teacher_step(job, store, 0)
    parent = artifact_steps.onnx_artifact(job, "float32", step.folder / "model.onnx", "float32", step.facts)
    artifact, rungs = _made(job, store, parent)
    notes = artifact_steps.kernel_notes(artifact.path) if artifact.precision == "int8" else []
    pays, figures = payoff.of_quantized(job, store, parent, artifact, notes)
    report = job.splits.report
    expected = artifact_steps.answers_step(job, store, parent, "ort_cpu", report)
    logits = artifact_steps.answers_step(job, store, artifact, "ort_cpu", report)
    evaluate.refuse_nan(expected, str(found.path))
    evaluate.refuse_nan(logits, f"{found.path} in {artifact.precision}")
    publish.write_artifact(target, artifact, report, logits)
    counts = evaluate.counts(logits, report.labels, expected)
    return Quantized(
        artifact=replace(artifact, path=target), parent=parent, counts=counts, rungs=rungs,
        elsewhere=judge.elsewhere(job, store, [(artifact, parent)]),
        lost_on_select_points=evaluate.drop_points(judge.counts(job, store, artifact, parent, job.splits.select)),
        pays=pays, figures=figures,
    )  # fmt: skip


def _made(job: Job, store: Store, parent: Artifact) -> tuple[Artifact, list[dict[str, Any]]]:
    assert job.quantizer
    if hasattr(job.quantizer.module, "FIRST"):
        best, rungs = ladder.climb(job, store, parent, None)
        return best.artifact, rungs
    step, precision = artifact_steps.quantize_step(job, store, parent), job.quantizer.module.PRECISION
    return artifact_steps.onnx_artifact(job, precision, step.folder / "model.onnx", precision, step.facts), []


def _refuse(found: Artifact, recipe: Recipe) -> None:
    import onnx

    path, model = found.path, onnx.load(found.path, load_external_data=False)
    marks = sorted({node.op_type for node in model.graph.node} & set(QUANTIZED_OPERATORS))
    if found.precision != "float32" or marks:
        raise InputRejected(
            f"{path} is quantized already ({', '.join(marks) or found.precision})",
            code="E-ONNX-QUANTIZED",
            hint="start from the float file",
        )
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < LEAST_OPSET:
        raise InputRejected(
            f"{path} has opset {opset}; a scale for each channel of a weight needs {LEAST_OPSET}",
            code="E-ONNX-OPSET",
            hint=f"export it anew, or convert it: onnx.version_converter.convert_version(model, {LEAST_OPSET})",
        )
    if not any(recipe.teacher_mean) and not {entry.key for entry in model.metadata_props} & set(PREPROCESSING_KEYS):
        channels = found.input_shape[0]
        raise UsageError(
            f"{path} does not say how its images are normalised",
            code="E-NORMALISATION",
            hint="name --mean and --std of the images in [0,1]; where it takes those as they are: "
            f"--mean {','.join('0' * channels)} --std {','.join('1' * channels)}",
        )
