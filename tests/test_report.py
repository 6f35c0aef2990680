"""The report: numbers agree between JSON, Markdown and the page; hostile text stays text; what is missing says why."""

import base64
import copy
import hashlib
import html as stdlib_html
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from compress import facts as facts_of
from compress import report, stats
from compress.errors import InputRejected
from compress.report import format as fmt
from compress.report import html, markdown, rows_accuracy, rows_cells, schema, svg
from compress.report.rows import derive
from compress.types import Measurement

ROUNDS = 10
QUERIES = 120
MEDIAN_MS = {
    ("teacher", "ort_cpu"): 6.4,
    ("teacher", "torch_eager"): 11.8,
    ("distilled", "ort_cpu"): 2.5,
    ("distilled", "torch_eager"): 9.1,
    ("pruned", "ort_cpu"): 2.1,
    ("int8", "ort_cpu"): 1.55,
}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MEMORY = {"peak_rss_bytes": 182_000_000, "empty_rss_bytes": 40_000_000, "pss_bytes": 150_000_000,
          "arena_off_peak_rss_bytes": 171_000_000, "gpu_bytes": 0, "failure": ""}  # fmt: skip


def _visit(round_number: int, position: int, median_ms: float, noise: np.random.Generator) -> dict:
    median_ns = median_ms * 1e6 * math.exp(noise.normal(0, 0.006))
    shape = np.exp(0.05 * np.clip(np.linspace(-2, 2, 101), -1.2, 3) + 0.25 * np.linspace(0, 1, 101) ** 14)
    quantiles = np.round(median_ns * shape / shape[50])
    return {
        "round": round_number,
        "position": position,
        "import_ns": 180_000_000,
        "load_ns": int(9e6 * median_ms),
        "first_inference_ns": int(4e6 * median_ms),
        "warmup_ns": [int(median_ns * 1.2)] * 3,
        "n": QUERIES,
        "median_ns": round(median_ns),
        "quantiles_ns": [int(q) for q in quantiles],
        "cpu_ns_per_inference": median_ns * 1.02,
        "effective": {"threads": 1},
    }


def _measurement(stage: str, runtime: str, place: int, *, twin: bool = False, failure: str = "") -> dict:
    noise = np.random.default_rng([place, 7])
    median = MEDIAN_MS.get((stage, runtime), 1.0)
    cell = f"{stage}/{runtime}/1"
    visits = [] if failure else [_visit(r, (r + place) % 8, median, noise) for r in range(ROUNDS)]
    return {
        "cell": cell + ("#twin" if twin else ""),
        "stage": stage,
        "artifact_digest": _digest(stage + ("torch" if runtime == "torch_eager" else "")),
        "runtime": runtime,
        "runtime_version": "2.14.1" if runtime == "torch_eager" else "1.31.0",
        "threads": 1,
        "batch": 1,
        "control": twin,
        "twin_of": cell if twin else "",
        "failure": failure,
        "visits": visits,
        "memory": None if failure else dict(MEMORY),
    }


def _artifact(stage: str, file: str, size_bytes: int, parameters: int, macs: int, *, format: str = "onnx") -> dict:
    parity = {"images": 10_000, "top1_agreement_fraction": 1.0, "max_difference": 3.1e-5}
    return {
        "stage": stage,
        "role": "teacher" if stage == "teacher" else "student",
        "file": file,
        "format": format,
        "precision": "int8" if stage == "int8" else "float32",
        "digest": _digest(stage + ("torch" if format == "torch" else "")),
        "size_bytes": size_bytes,
        "gzip_bytes": round(0.9 * size_bytes),
        "parameters": parameters,
        "macs": macs,
        "parity": parity if format == "onnx" else None,
    }


def _judged(stage: str, runtime: str, correct: int, lost: int | None, won: int | None, failure: str = "") -> dict:
    agree = 9_980 - (lost or 0) - (won or 0)  # 20 are wrong in another way
    counts = {"correct": correct, "top5_correct": 9_970, "teacher_only": lost, "this_only": won, "agree": agree}
    empty = dict.fromkeys(counts)
    where = {"stage": stage, "runtime": runtime, "n": 0 if failure else 10_000, "failure": failure}
    return {**where, **(empty if failure else counts)}


def _stage(name: str, parent: str, what: str, seconds: float, select: tuple | None, **changes) -> dict:
    keys = ("n", "correct", "parent_correct", "parent_only", "this_only")
    trained = name in ("distilled", "pruned")
    steps = list(range(0, 4000, 10))
    loss = [round(4.2 * math.exp(-s / 900) + 0.35 + 0.05 * math.sin(s / 7), 4) for s in steps]
    return {
        "name": name,
        "parent": parent,
        "what": what,
        "seconds": seconds,
        "reused": False,
        "select": dict(zip(keys, select, strict=True)) if select else None,
        "decision": "kept",
        "reason": "",
        "events": [],
        "curve": {"step": steps, "loss": loss} if trained else None,
        "pairing": "stride 4: layer2 to features.3" if name == "distilled" else "",
        **changes,
    }


NO_CUDA = "no CUDA device; pip install onnxruntime-gpu on a machine that has one"


def make_facts() -> dict:
    """A run as the pipeline records it: four stages, three runtimes of which one is not there, an A/A twin."""
    return {
        "schema_version": 1,
        "tool": {"version": "0.1.0", "commit": "0123abc"},
        "run": {
            "name": "cifar10-resnet56-mobilenet",
            "command": "compress run --data data/cifar10 --teacher resnet56 --student mobilenet --kd fitnet "
            "--prune 0.3 --quantize int8",
            "started": "2025-03-04 10:11:12 UTC",
            "seconds": 2971.4,
            "seed": 0,
            "tier": "standard",
            "recipe_digest": _digest("recipe"),
            "max_drop_points": 1.0,
            "data_note": "the official test set is the report split",
        },
        "recipe": {"data": "cifar10", "student": "mobilenet:width=0.5", "epochs": 30, "kd": ["fitnet:weight=1"]},
        "environment": {
            "cpu_model": "Example CPU 2.5 GHz",
            "isa": ["avx2", "avx512f", "avx512_vnni"],
            "cores_allowed": 2,
            "cpu_quota": 2.0,
            "memory_bytes": 8_000_000_000,
            "gpu": "",
            "system": "Linux 6.1",
            "python": "3.11.9",
            "packages": {"torch": "2.14.1", "onnxruntime": "1.31.0"},
            "commit": "0123abc",
        },
        "dataset": {
            "name": "cifar10",
            "class_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            "train": 45_000,
            "select": 5_000,
            "calibrate": 512,
            "report": 10_000,
            "input_shape": [3, 32, 32],
            "digest": _digest("data"),
            "skipped": [],
        },
        "artifacts": [
            _artifact("teacher", "teacher.onnx", 3_478_000, 855_770, 126_000_000),
            _artifact("teacher", "", 3_520_000, 855_770, 126_000_000, format="torch"),
            _artifact("distilled", "student.onnx", 2_790_000, 700_000, 6_500_000),
            _artifact("distilled", "", 2_850_000, 700_000, 6_500_000, format="torch"),
            _artifact("pruned", "", 1_510_000, 380_000, 4_100_000),
            _artifact("int8", "student.int8.onnx", 812_000, 700_000, 6_500_000),
        ],
        "shipped": "int8",
        "stages": [
            _stage("teacher", "", "resnet56 from a checkpoint", 0.4, None, reused=True),
            _stage("distilled", "teacher", "mobilenet learns from the teacher", 2410, (5000, 4645, 4671, 121, 95)),
            _stage("pruned", "distilled", "30 % of channels, then recovery", 431.0, (5000, 4520, 4645, 240, 115),
                   decision="dropped", reason="costs 2.5 points of top-1 on select, 1 is allowed"),
            _stage("int8", "distilled", "static QDQ, per channel, 512 images", 41.2, (5000, 4640, 4645, 31, 26)),
        ],
        "accuracy": [
            _judged("teacher", "ort_cpu", 9339, 0, 0),
            _judged("teacher", "torch_eager", 9339, 0, 0),
            _judged("distilled", "ort_cpu", 9321, 260, 242),
            _judged("distilled", "torch_eager", 9321, 260, 242),
            _judged("pruned", "ort_cpu", 9083, 471, 215),
            _judged("int8", "ort_cpu", 9308, 279, 248),
            _judged("int8", "ort_cuda", 0, None, None, failure=NO_CUDA),
        ],
        "measurements": [
            _measurement("teacher", "ort_cpu", 0),
            _measurement("distilled", "ort_cpu", 1),
            _measurement("pruned", "ort_cpu", 2),
            _measurement("int8", "ort_cpu", 3),
            _measurement("teacher", "ort_cpu", 4, twin=True),
            _measurement("teacher", "torch_eager", 5),
            _measurement("distilled", "torch_eager", 6),
            _measurement("teacher", "ort_cuda", 7, failure=NO_CUDA),
            _measurement("int8", "ort_cuda", 8, failure=NO_CUDA),
        ],
        "warnings": ["load average was 2.3 on 2 cores while round 4 ran"],
    }  # fmt: skip


@pytest.fixture
def facts() -> dict:
    return make_facts()


@pytest.fixture
def document(facts) -> dict:
    return report.document_of(facts)


class _Page(HTMLParser):
    """What a browser would see: the elements, and the text outside style."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.style = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "style":
            self.style += data
            self.inside = ""
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def _by_cell(document: dict, name: str) -> dict:
    return next(c for c in document["derived"]["cells"] if c["cell"] == name)


def test_corrupted_images_are_told_in_all_three(facts, tmp_path):
    kinds = [{"kind": "noise", "correct": [9200, 8000, 7000]}, {"kind": "blur", "correct": [9000, 8900, 8800]}]
    worse = [{"kind": "noise", "correct": [9100, 7000, 5000]}, {"kind": "blur", "correct": [8900, 8700, 8500]}]
    facts["corruptions"] = [
        {"stage": "teacher", "n": 10_000, "kinds": kinds, "lost_points": 8.0, "extra_points": 0, "low": 0, "high": 0},
        {"stage": "int8", "n": 10_000, "kinds": worse, "lost_points": 14.5, "extra_points": 6.5, "low": 6, "high": 7},
    ]
    document = report.document_of(facts)
    teacher, int8 = document["derived"]["corruptions"]
    assert int8["kinds"]["noise"]["mean"]["value"] == pytest.approx(0.70333, abs=1e-5)
    against = int8["against_teacher_fraction"]
    assert (against["low"], against["value"], against["high"]) == pytest.approx((-0.07, -0.065, -0.06))
    assert teacher["against_teacher_fraction"]["is_baseline"]
    paths = report.write(facts, tmp_path)
    page, text = _Page(paths["html"].read_text()).text, stdlib_html.unescape(paths["md"].read_text())
    for words in ("70.3", fmt.points_interval(against), fmt.points_interval(int8["change_fraction"])):
        assert words in page and words in text
    facts["corruptions"][1]["kinds"][0]["correct"] = [10_001, 1, 1]
    with pytest.raises(InputRejected, match="contradict"):
        report.document_of(facts)


def test_the_three_files_show_the_same_numbers(facts, tmp_path):
    paths = report.write(facts, tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json", "report.md"]
    document = json.loads(paths["json"].read_text())
    page, text = _Page(paths["html"].read_text()).text, stdlib_html.unescape(paths["md"].read_text())
    shown = 0
    for cell in document["derived"]["cells"]:
        if cell["control"] or cell["failure"]:
            continue
        for words in (fmt.latency_interval(cell["latency_ns"]), fmt.ratio_interval(cell["speedup_same_runtime"])):
            assert words in page and words in text
            shown += 1
    for row in document["derived"]["accuracy"]:
        if not row["failure"]:
            assert fmt.percent_interval(row["top1_fraction"]) in page
            assert fmt.percent_interval(row["top1_fraction"], unit=False) in text
            shown += 1
    assert shown == 18
    sentence = document["derived"]["verdict"]["sentence"]
    assert sentence in page and sentence in text and sentence in " ".join(report.summary(document).split())


def test_latency_and_speedup_come_from_the_visits(facts, document):
    medians = {
        m["cell"]: [v["median_ns"] for v in m["visits"]] for m in facts["measurements"] if m["runtime"] == "ort_cpu"
    }
    int8 = _by_cell(document, "int8/ort_cpu/1")
    assert int8["latency_ns"]["value"] == np.median(medians["int8/ort_cpu/1"])
    logs = np.log(np.array(medians["teacher/ort_cpu/1"]) / np.array(medians["int8/ort_cpu/1"]))
    # A mean of ten logarithms in float64; the interval's own arithmetic is tested with `stats`.
    assert int8["speedup_same_runtime"]["value"] == pytest.approx(np.exp(logs.mean()), rel=1e-12)
    assert int8["speedup_same_runtime"]["verdict"] == "faster"
    assert int8["speedup_native"]["against"] == "teacher/torch_eager/1"
    assert int8["images_per_second"]["value"] == pytest.approx(1e9 / int8["latency_ns"]["value"], rel=1e-12)


def test_speedup_is_paired_by_round_number_not_by_position(facts):
    for measurement in facts["measurements"]:
        if measurement["cell"] == "int8/ort_cpu/1":
            measurement["visits"] = measurement["visits"][::-1][:4]
    document = report.document_of(facts)
    of_round = {v["round"]: v["median_ns"] for v in facts["measurements"][0]["visits"]}
    logs = [math.log(of_round[v["round"]] / v["median_ns"]) for v in facts["measurements"][3]["visits"]]
    got = _by_cell(document, "int8/ort_cpu/1")["speedup_same_runtime"]["value"]
    assert got == pytest.approx(math.exp(np.mean(logs)), rel=1e-12)  # other pairs differ by 1e-3


def test_verdict_of_the_shipped_artifact(document):
    verdict = document["derived"]["verdict"]
    assert verdict["status"] == "pass" and verdict["reasons"] == []
    assert re.match(
        r"student\.int8\.onnx on ort_cpu \(1 thread\) is 4\.1x faster \(.+\) than the teacher in the same runtime, "
        r"4\.3x smaller, and its top-1 is 93\.1 % \(92\.6-93\.6\), -0\.3 points \(.+ to .+\) against the teacher\.$",
        verdict["sentence"],
    )


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        (lambda f: f["run"].update(tier="smoke"), "inconclusive", "smoke"),
        (lambda f: f["run"].update(max_drop_points=0.0), "inconclusive", "undecided"),
        (lambda f: f.update(shipped="pruned"), "fail", "lost"),
        (
            lambda f: [v.update(median_ns=v["median_ns"] * 1.1) for v in f["measurements"][4]["visits"]],
            "invalid",
            "A/A",
        ),
        (lambda f: f["measurements"].pop(4), "inconclusive", "no A/A control"),
        (lambda f: [v.update(median_ns=v["median_ns"] * 9) for v in f["measurements"][3]["visits"]], "fail", "slower"),
        (lambda f: f.update(measurements=[], accuracy=[]), "inconclusive", "not timed"),
    ],
)
def test_status_follows_the_gate_that_failed(facts, change, status, word):
    change(facts)
    document = report.document_of(facts)
    verdict = document["derived"]["verdict"]
    assert verdict["status"] == status
    assert any(word in reason for reason in verdict["reasons"]), verdict["reasons"]
    assert verdict["sentence"] in _Page(html.render(document)).text


@pytest.mark.parametrize("stage", ["int8", "teacher"])
def test_rounds_that_are_not_valid_decide_no_ratio(facts, stage):
    """Of the cell that the verdict speaks of, or of the one that it is compared with; bytes and accuracy stand."""
    cell = next(m for m in facts["measurements"] if m["cell"] == f"{stage}/ort_cpu/1")
    cell["visits"][0]["steal_fraction"] = 0.3
    gates = {g["name"]: g for g in report.document_of(facts)["derived"]["verdict"]["gates"]}
    assert gates["latency"]["status"] == "inconclusive" and gates["size"]["status"] == "pass"
    assert f"{stage}/ort_cpu/1 is not valid: other virtual machines took 30.0 %" in gates["latency"]["value"]
    said = report.document_of(facts)["derived"]["verdict"]["sentence"]
    assert "in the same runtime, by rounds that are not valid, " in said
    results = html.render(report.document_of(facts)).partition("Results of each cell")[2].partition("</table>")[0]
    assert results.count("invalid") == 1


def test_a_single_file_is_compared_with_nothing(facts):
    alone = {**facts, "stages": [], "accuracy": [], "shipped": "teacher"}
    verdict = report.document_of(alone)["derived"]["verdict"]
    assert [g["name"] for g in verdict["gates"]] == ["A/A control", "benchmark tier"] and verdict["status"] == "pass"
    assert verdict["sentence"].startswith("teacher.onnx on ort_cpu (1 thread) takes 6.42 ms (6.37-6.43)")
    several = {**facts, "stages": [], "accuracy": []}
    verdict = report.document_of(several)["derived"]["verdict"]
    assert [g["name"] for g in verdict["gates"]] == ["latency", "size", "A/A control", "benchmark tier"]
    assert "faster (4.1-4.2) than teacher.onnx in the same runtime" in verdict["sentence"]
    assert "top-1" not in verdict["sentence"] and verdict["status"] == "pass"


def test_the_sections_come_in_the_order_of_what_is_asked_first(facts):
    page = html.render(report.document_of(facts))
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    wanted = [
        "Warnings", "Accuracy against latency", "Results", "Speed-up", "How latency is distributed", "Round by round",
        "What each stage cost and gained", "Latency in detail", "Accuracy in detail", "Environment and data",
        "Reproduce", "Glossary",
    ]  # fmt: skip
    assert [title for title in titles if title in wanted] == wanted


def test_uneven_latencies_are_told_and_nothing_is_left_out(facts):
    measurement = Measurement(
        cell="int8/ort_cpu/1", artifact="int8", artifact_digest="", runtime="ort_cpu", runtime_version="", threads=1,
        batch=1, failure="",
        visits=({"round": 0, "samples_ns": [100, 101, 102, 103, 104, 105, 106, 107, 118, 400], "effective": {}},),
    )  # fmt: skip
    (visit,) = facts_of.measurement_facts(measurement, "")["visits"]
    # the quartiles are 102.25 and 106.75: the fences lie at 113.5 and 120.25
    assert visit["outliers"] == {"mild": 1, "severe": 1} and visit["n"] == 10
    for row in facts["measurements"]:
        for given in row["visits"]:
            given["outliers"] = {"mild": 3, "severe": 1}
    document = report.document_of(facts)
    cell = next(c for c in document["derived"]["cells"] if c["cell"] == "int8/ort_cpu/1")
    assert cell["outliers_fraction"]["value"] == pytest.approx(4 / QUERIES)
    assert cell["severe_outliers_fraction"]["value"] == pytest.approx(1 / QUERIES)
    ratio = cell["percentiles_ns"]["p99"]["value"] / cell["latency_ns"]["value"]
    assert cell["jitter"]["value"] == pytest.approx(ratio)
    page = html.render(document)
    assert "outliers 3.3 %, far 0.8 %" in page and f"{fmt.ratio(ratio)} the median" in page


def test_how_far_the_probabilities_lie_from_the_teachers(facts):
    for row in facts["accuracy"]:
        if not row["failure"]:
            row["divergence_nats"] = {"mean": 0.0214, "p95": math.inf}
    document = report.document_of(facts)
    said = "KL from the teacher 0.021 nats, 95 % of the images below endless"
    judged = [r for r in document["derived"]["accuracy"] if not r["is_teacher"] and not r["failure"]]
    for text in (html.render(document), markdown.render(document)):
        assert text.count(said) == len(judged) > 0


def test_settings_that_were_in_effect_are_shown_and_a_change_of_them_is_told(facts):
    effective = {"providers": ["CPU<b>"], "spinning": True, "by_precision": {"f32": 3}, "fixed_batch": 1, "nodes": []}
    for measurement in facts["measurements"]:
        for visit in measurement["visits"] if measurement["runtime"] == "ort_cpu" else []:
            visit["effective"] = effective
    words = "providers CPU<b>; spinning on; by precision 3 f32; batches of 1 only"
    document = report.document_of(facts)
    ort, native = document["derived"]["settings"]
    assert ort == {
        "runtime": "ort_cpu", "threads": 1, "stages": ["teacher", "distilled", "pruned", "int8"], "settings": words,
    }  # fmt: skip
    assert native["runtime"] == "torch_eager" and native["settings"] == "threads 1"
    shown = stdlib_html.unescape(html.render(document))
    assert words in shown and "Settings in effect" in shown and "spinning on" in markdown.render(document)
    first = next(m for m in facts["measurements"] if m["stage"] == "int8" and m["runtime"] == "ort_cpu")
    # where the nodes run is looked at once, and how long a page took to start is no setting
    first["visits"][0]["effective"] = effective | {"nodes": [{"provider": "CPU", "count": 3}], "create_ms": 12.5}
    assert report.document_of(facts)["derived"]["settings"] == [ort, native]
    first["visits"][3]["effective"] = effective | {"spinning": False}
    found = report.document_of(facts)["derived"]
    other = words.replace("spinning on", "spinning off")
    warned = [text for text in found["warnings"] if "settings" in text]
    assert warned == [f"int8/ort_cpu/1: its settings were not the same in every round: {words} | {other}"]
    assert [row["stages"] for row in found["settings"] if row["settings"] == other] == [["int8"]]


def test_int8_is_compared_with_its_float_file_in_each_runtime(facts):
    facts["converted"] = [
        {
            "stage": "int8", "runtime": "ort_cpu", "format": "onnx", "precision": "int8", "digest": "0" * 64,
            "size_bytes": 9, "files": [], "seconds": None, "tools": {}, "notes": ["57 QUANTIZE"], "locks": {},
            "gate": None, "failure": "",
        }
    ]  # fmt: skip
    document = report.document_of(facts)
    (row,) = document["derived"]["converted"]
    assert row["gain"]["parent"] == "distilled" and row["gain"]["verdict"] == "faster" and row["word"] == "not compared"
    assert "the speed of distilled in ort_cpu" in html.render(document)
    for visit in next(m for m in facts["measurements"] if m["cell"] == "int8/ort_cpu/1")["visits"]:
        visit["median_ns"] *= 3
    text = markdown.render(report.document_of(facts))
    assert "the speed of distilled in ort_cpu, so it does not pay in time here; 57 QUANTIZE" in text


def test_short_tier_is_stamped_everywhere(facts):
    facts["run"]["tier"] = "quick"
    document = report.document_of(facts)
    assert "quick tier" in _Page(html.render(document)).text
    assert "quick tier" in markdown.render(document) and "quick tier" in report.summary(document)


def test_a_virtual_machine_is_said_once_and_of_no_cell(facts, document):
    words = "what others do on the same machine may slow it down"
    for renderer in (html, markdown):
        assert words not in renderer.render(document)
    facts["environment"]["virtual"] = True
    virtual = report.document_of(facts)
    assert [renderer.render(virtual).count(words) for renderer in (html, markdown)] == [1, 1]
    assert virtual["derived"]["warnings"] == document["derived"]["warnings"]
    facts["environment"]["virtual"] = None
    assert "virtual machine" not in html.render(report.document_of(facts)), "not told"


def test_flips_are_told_beside_the_agreement(facts, document):
    row = next(r for r in document["derived"]["accuracy"] if (r["stage"], r["runtime"]) == ("int8", "ort_cpu"))
    assert row["flips"] == {"lost": 279, "won": 248, "other": 20}
    words = "flips: 279 right to wrong, 248 wrong to right, 20 wrong to wrong"
    assert words in _Page(html.render(document)).text and words in markdown.render(document)
    impossible = copy.deepcopy(facts)
    next(r for r in impossible["accuracy"] if r["stage"] == "int8" and r["n"])["agree"] = 9_990
    with pytest.raises(InputRejected, match="contradict each other"):
        report.document_of(impossible)


def test_copies_to_a_device_are_shown_where_there_are_any(facts):
    assert "of which copies" not in html.render(report.document_of(facts))
    facts = copy.deepcopy(facts)
    first = facts["measurements"][0]
    for visit in first["visits"]:
        visit["transfer_ns"] = 230_000
    document = report.document_of(facts)
    assert document["derived"]["cells"][0]["transfer_ns"]["value"] == 230_000
    page = html.render(document)
    assert "of which copies" in page and "0.230 ms" in page


def test_stages_name_their_cost_and_whether_they_paid(document):
    stages = {s["stage"]: s for s in document["derived"]["stages"]}
    assert [s["paid"] for s in stages.values()] == ["", "paid", "not kept", "paid"]
    assert stages["int8"]["cost_on_select_fraction"]["value"] == pytest.approx(-5 / 5000)
    assert stages["distilled"]["cost_on_report_fraction"]["paired"]
    # its parent is not the teacher, and these facts do not say which images only one of the two gets right
    assert not stages["int8"]["cost_on_report_fraction"]["paired"]
    counted = {"stage": "int8", "parent": "distilled", "n": 10_000, "parent_only": 30, "this_only": 10}
    known = {k: v for k, v in document.items() if k != "derived"} | {"against_parents": [counted]}
    paired = {s["stage"]: s for s in report.document_of(known)["derived"]["stages"]}["int8"]["cost_on_report_fraction"]
    assert paired["paired"] and paired["value"] == pytest.approx(-0.002) and paired["high"] < 0
    assert stages["int8"]["size_gain"]["value"] == pytest.approx(2_790_000 / 812_000)


def test_a_stage_that_is_slower_did_not_pay(facts):
    for visit in facts["measurements"][3]["visits"]:
        visit["median_ns"] *= 3
    stage = report.document_of(facts)["derived"]["stages"][3]
    assert stage["paid"] == "did not pay" and "slower in ort_cpu" in stage["why"]


def test_files_whose_parameters_nobody_counted_say_so(facts):
    for artifact in facts["artifacts"]:
        artifact["parameters"] = artifact["macs"] = None
    assert html.render(report.document_of(facts)).count(fmt.absent("not counted")) >= 2 * len(facts["artifacts"])


def test_missing_numbers_say_why_and_are_never_zero(document):
    cuda = _by_cell(document, "int8/ort_cuda/1")
    assert cuda["latency_ns"] == {"value": None, "low": None, "high": None, "reason": NO_CUDA}
    page = _Page(html.render(document)).text
    assert f"not measured ({NO_CUDA})" in page
    assert NO_CUDA in markdown.render(document)
    assert NO_CUDA in " ".join(report.summary(document).split())
    for zero in ("0.000 ms", " 0 B", "0.0 %", "0.00x"):
        assert not re.search(rf"(?<![\d.]){re.escape(zero)}", page), zero


def test_percentiles_wait_for_enough_queries(facts):
    for visit in facts["measurements"][0]["visits"]:
        visit["n"] = 30
    document = report.document_of(facts)
    tail = _by_cell(document, "teacher/ort_cpu/1")["percentiles_ns"]
    assert tail["p90"]["value"] and tail["p95"]["value"]
    assert tail["p99"] == {"value": None, "low": None, "high": None, "reason": "have 300 queries, need 662"}
    assert "not measured (have 300 queries, need 662)" in _Page(html.render(document)).text
    assert [rows_cells.queries_needed(p) for p in (90, 95, 99, 99.9)] == [64, 130, 662, 6_636]
    assert tail["p99.9"]["reason"] == "have 300 queries, need 6,636"


def test_the_slowest_in_a_thousand_have_quantiles_of_their_own():
    """Of an even grid of 101 the 99.9th percentile would lie between the 99th and the slowest query of all."""
    noise = np.random.default_rng(4)
    samples = [noise.lognormal(0, 0.2, 5000) * 1e6 for _ in range(2)]
    samples[0][:3] *= 40
    measurement = Measurement(
        cell="a", artifact="a", artifact_digest="", runtime="ort_cpu", runtime_version="1", threads=1, batch=1,
        visits=tuple({"round": i, "samples_ns": list(s)} for i, s in enumerate(samples)), failure="",
    )  # fmt: skip
    visits = facts_of.measurement_facts(measurement, "")["visits"]
    found = rows_cells.percentile_of(visits, 99.9)["value"]
    assert found == pytest.approx(np.quantile(np.concatenate(samples), 0.999), rel=0.05)
    coarse = [{k: v for k, v in visit.items() if k != "tail_ns"} for visit in visits]
    assert rows_cells.percentile_of(coarse, 99.9)["value"] is None


def test_tails_have_intervals_over_rounds(facts):
    visits = next(m for m in facts["measurements"] if m["cell"] == "int8/ort_cpu/1")["visits"]
    picked = np.random.default_rng(5).multinomial(ROUNDS, np.full(ROUNDS, 1 / ROUNDS), rows_cells.RESAMPLES)
    repeated = [[v for v, times in zip(visits, row, strict=True) for _ in range(times)] for row in picked[:300]]
    one_by_one = [rows_cells.pooled_quantiles(some, np.array([0.9, 0.99])) for some in repeated]
    expected = np.quantile(one_by_one, [0.025, 0.975], axis=0).T
    found = rows_cells.percentile_intervals(visits, (90, 99), seed=5)
    assert found.shape == (2, 2) and np.allclose(found, expected, rtol=3e-3)
    flat = [{**visit, "quantiles_ns": [7] * 101} for visit in visits]  # a clock too coarse
    assert rows_cells.percentile_intervals(flat, (90, 99), seed=5).tolist() == [[7, 7], [7, 7]]
    # a round of many slow queries weighs more: with it in nearly every resample, the upper end is its own
    slow = [{**visits[0], "n": 9000, "quantiles_ns": [2 * q for q in visits[0]["quantiles_ns"]]}, *visits[1:]]
    (_, high), (_, usual) = rows_cells.percentile_intervals(slow, (90,), 5)[0], found[0]
    assert high > 1.9 * usual
    document = report.document_of(facts)
    tail = _by_cell(document, "int8/ort_cpu/1")["percentiles_ns"]["p99"]
    assert tail["low"] < tail["value"] < tail["high"] < 1.02 * tail["value"]
    value, _, interval = fmt.latency_interval(tail).partition(" (")
    assert f"{value}<small>({interval}</small>" in html.render(document)


def test_pooled_quantiles_are_those_of_all_queries_together():
    noise = np.random.default_rng(3)
    samples = [noise.lognormal(0, 0.2, n) * scale for n, scale in ((6000, 1.0), (2000, 1.6))]
    visits = [{"n": len(s), "quantiles_ns": list(np.quantile(s, np.linspace(0, 1, 101)))} for s in samples]
    wanted = np.quantile(np.concatenate(samples), [0.5, 0.9, 0.95])
    got = rows_cells.pooled_quantiles(visits, np.array([0.5, 0.9, 0.95]))
    # A visit's slowest 1 % is taken as spread evenly up to its maximum, which moves these by under 1 %;
    # weights that ignore the number of queries are over 5 % off.
    np.testing.assert_allclose(got, wanted, rtol=1e-2)
    unweighted = rows_cells.pooled_quantiles([{**v, "n": 1} for v in visits], np.array([0.5, 0.9, 0.95]))
    assert np.all(unweighted / wanted > 1.05)


def test_unpaired_interval_is_newcombes_published_example():
    this, other = ({"value": c / n, "low": lo, "high": hi} for c, n, (lo, hi) in
                   [(56, 70, stats.wilson(56, 70)), (48, 80, stats.wilson(48, 80))])  # fmt: skip
    got = rows_accuracy.unpaired_difference(this, other)
    # Newcombe 1998, table II (a), method 10: printed to four decimals.
    assert (round(got["low"], 4), round(got["high"], 4)) == (0.0524, 0.3339)


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "]]><!--<b>",
    "a|b`c`*d*[e](javascript:1)",
    "\u202egnp.exe\x00\x1b[31m\ud800",
    "</style><style>*{display:none}",
    "${style} $body {0} %s",
]


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_stays_text(facts, tmp_path, payload):
    clean_elements = [e[0] for e in _Page(html.render(report.document_of(facts))).elements]
    facts["dataset"]["class_names"] = [payload] * 10
    facts["dataset"]["name"] = facts["environment"]["cpu_model"] = facts["run"]["name"] = payload
    facts["warnings"] = [payload]
    facts["recipe"] = dict.fromkeys(facts["recipe"], payload)
    facts["run"]["command"] = facts["stages"][1]["what"] = facts["stages"][2]["reason"] = payload
    facts["artifacts"][5]["file"] = payload
    for measurement in facts["measurements"]:
        measurement["runtime_version"] = payload
        measurement["failure"] = payload if measurement["failure"] else ""
    paths = report.write(facts, tmp_path)
    page = _Page(paths["html"].read_text(encoding="utf-8"))
    assert [e[0] for e in page.elements] == clean_elements
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert not re.search("[\x00\x1b\u202e]", page.text)
    text = paths["md"].read_text(encoding="utf-8")
    outside_code = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.S)
    assert not re.search(r"<[a-z/!]", outside_code) and not re.search(r"(?<!\\)\]\(", outside_code)


def test_hostile_stage_and_runtime_names_reach_plots_as_text(facts):
    text = json.dumps(facts).replace("ort_cpu", "<b onload=x>").replace("distilled", "<i>&amp;")
    page = _Page(html.render(report.document_of(json.loads(text))))
    assert not {"b onload", "i"} & {e[0] for e in page.elements}
    assert "<i>&amp; · <b onload=x>" in page.text


def test_page_asks_nothing_of_the_network_and_runs_its_own_script_alone(document):
    rendered = html.render(document)
    page = _Page(rendered)
    names = [e[0] for e in page.elements]
    script = (Path(html.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert names.count("script") == 1 and rendered.count(f"<script>{script}</script>") == 1
    assert not {"link", "iframe", "img", "object", "embed", "form", "base"} & set(names)
    assert "svg" in names and "//" not in rendered
    assert not [a for _, attributes in page.elements for a in attributes if a in ("style", "src", "xlink:href")]
    # markers of one plot share their shapes
    assert all(a["href"].startswith("#") for e, a in page.elements if "href" in a and e == "use")
    assert not [e for e, a in page.elements if "href" in a and e != "use"]
    assert "@import" not in page.style and "url(" not in page.style
    policy = next(a["content"] for e, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (page.style, script))
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_every_plot_names_and_describes_itself(document):
    page = _Page(html.render(document))
    plots = [a for e, a in page.elements if e == "svg" and a.get("role") == "img"]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(plots) == 6
    assert all(set(a["aria-labelledby"].split()) <= set(ids) for a in plots)
    assert len(ids) == len(set(ids))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html.render(document))


def test_same_facts_same_bytes_and_reload(facts, tmp_path):
    one = report.write(facts, tmp_path / "a")
    two = report.write(copy.deepcopy(facts), tmp_path / "b")
    assert all(one[k].read_bytes() == two[k].read_bytes() for k in ("json", "md", "html"))
    three = report.write(report.load(one["json"]), tmp_path / "c")
    assert all(one[k].read_bytes() == three[k].read_bytes() for k in ("json", "md", "html"))


@pytest.mark.parametrize("long_name", [False, True])
def test_tables_fit_eighty_columns(facts, long_name):
    if long_name:
        facts = json.loads(json.dumps(facts).replace("distilled", "distilled_then_|recovered_again"))
    document = report.document_of(facts)
    rows = [line for line in markdown.render(document).splitlines() if line.startswith("|")]
    assert len(rows) == 10 and max(map(len, rows)) <= 80
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert max(map(len, report.summary(document).splitlines())) <= 80


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: f.pop("environment"), "`environment` is missing"),
        (
            lambda f: f["measurements"][2]["visits"][1].pop("median_ns"),
            "`measurements[2].visits[1].median_ns` is missing",
        ),
        (lambda f: f["run"].update(seed="zero"), "`run.seed` must be integer"),
        (lambda f: f["run"].update(seed=True), "`run.seed` must be integer"),
        (lambda f: f.update(schema_version=2), "`schema_version` must be 1"),
        (lambda f: f["stages"][1].update(decision="maybe"), "`stages[1].decision` must be one of kept, dropped"),
        (lambda f: f["run"].update(seconds=float("nan")), "`run.seconds` must be number, got NoneType"),
        (lambda f: f["accuracy"][0].update(correct=10_001), "contradict"),
    ],
)
def test_schema_names_the_field(facts, tmp_path, spoil, named):
    spoil(facts)
    with pytest.raises(InputRejected) as caught:
        report.write(facts, tmp_path / "out")
    print(caught.value)
    assert named in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_rule_of_the_schema_is_read():
    def rules(rule):
        yield rule
        several = [inner for word in ("properties", "$defs") for inner in rule.get(word, {}).values()]
        for inner in [*several, *(rule[word] for word in ("items", "additionalProperties") if word in rule)]:
            yield from rules(inner)

    assert sum(1 for _ in rules(schema.schema())) > 100
    with pytest.raises(ValueError, match="pattern"):
        schema.first_error("x", {"pattern": "y"})
    for rule in rules(schema.schema()):
        schema.first_error(None, {k: v for k, v in rule.items() if k not in ("properties", "$defs", "$ref", "items")})
        assert "$ref" not in rule or schema.referred(rule["$ref"])


def test_unknown_fields_are_tolerated(facts):
    facts["future"] = {"x": 1}
    assert report.document_of(facts)["future"] == {"x": 1}


def test_load_rejects_what_is_no_report(tmp_path):
    for name, text in {"a.json": "{", "b.json": "[]", "c.json": "{}"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputRejected, match=name):
            report.load(tmp_path / name)
    with pytest.raises(InputRejected, match="none.json"):
        report.load(tmp_path / "none.json")


def test_unwritable_folder_is_an_error_that_names_it(facts, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputRejected, match="file"):
        report.write(facts, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_home_folder_and_nan_do_not_leave_the_machine(facts, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    facts["run"]["command"] = "compress run --data /home/someone/data --out /home/someone.else"
    facts["stages"][1]["curve"]["loss"][3] = float("nan")
    text = report.write(facts, tmp_path)["json"].read_text()
    assert "--data ~/data --out /home/someone.else" in text and "NaN" not in text


def test_numbers_as_text():
    assert [fmt.latency(v) for v in (123_456, 1_234_567, 123_456_789, 2_500_000_000)] == [
        "0.123 ms", "1.23 ms", "123 ms", "2.50 s"]  # fmt: skip
    assert [fmt.size(v) for v in (999, 1_234_567, 812_000)] == ["999 B", "1.23 MB", "812 kB"]
    assert fmt.latency_interval({"value": 123e3, "low": 120e3, "high": 127e3, "reason": ""}) == "0.123 ms (0.120-0.127)"
    assert fmt.percent_interval({"value": 0.934, "low": 0.929, "high": 0.938, "reason": ""}) == "93.4 % (92.9-93.8)"
    points = {"value": -0.006, "low": -0.019, "high": 0.007, "reason": ""}
    assert fmt.points_interval(points) == "-0.6 points (-1.9 to +0.7)"
    assert fmt.points_interval({**points, "value": -0.0001}).startswith("0.0 points")
    assert fmt.ratio_interval({"value": 4.69, "low": 4.68, "high": 4.7, "reason": ""}) == "4.69x (4.68-4.70)"
    assert [fmt.about(n) for n in (7, 54_936)] == ["7", "55,000"]
    assert [fmt.duration(s) for s in (9.04, 125, 3725)] == ["9.0 s", "2 min 05 s", "1 h 02 min"]


def test_all_of_memory_is_shown(facts):
    facts["measurements"][0]["memory"] = MEMORY | {"gpu_bytes": 301_000_000}
    document = report.document_of(facts)
    first, second = document["derived"]["cells"][:2]
    assert first["pss_bytes"]["value"] == 150e6 and second["gpu_bytes"]["value"] is None
    page = html.render(document)
    assert (
        "182 MB<small>own: 142 MB</small><small>PSS: 150 MB</small><small>no arena: 171 MB</small>"
        "<small>GPU: 301 MB</small>" in page
    )


def test_what_the_harness_adds_is_stated_beside_the_fastest_cell(facts):
    assert "What the harness adds to a query was not measured" in html.render(report.document_of(facts))
    for measurement in facts["measurements"]:
        for visit in measurement["visits"]:
            visit["harness_ns"] = 1_500.0
    document = report.document_of(facts)
    said = fmt.harness_words(document)
    assert re.fullmatch(r"The harness adds 1\.50? µs to a query, 0\.1 % of the fastest cell's\.", said), said
    assert all(said.partition(",")[0] in page for page in (html.render(document), markdown.render(document)))


@pytest.mark.parametrize(
    ("memory", "in_visits", "peak", "own"),
    [
        (MEMORY, None, 182e6, 142e6),
        (MEMORY | {"empty_rss_bytes": 190e6}, None, 182e6, 0),
        ({"failure": "killed"}, None, "killed", "killed"),
        (MEMORY | {"peak_rss_bytes": 0}, None, "the system does not say", "the system does not say"),
        ({"failure": ""}, None, "the system does not say", "the system does not say"),
        ({"failure": "", "peak_rss_bytes": 182e6}, None, 182e6, "the system does not say"),
        # reports of earlier versions, and of phones
        (None, 99e6, 99e6, "the whole process alone was looked at"),
        ({"failure": "gives no memory"}, 99e6, 99e6, "the whole process alone was looked at"),
        (None, None, "memory was not looked at", "memory was not looked at"),
    ],
)
def test_memory_is_that_of_its_own_visit(facts, memory, in_visits, peak, own):
    one = facts["measurements"][0]
    one["memory"] = memory
    for visit in one["visits"] if in_visits else []:
        visit["peak_rss_bytes"] = in_visits
    cell = report.document_of(facts)["derived"]["cells"][0]
    for key, wanted in (("peak_rss_bytes", peak), ("own_rss_bytes", own)):
        assert wanted in (cell[key]["value"], cell[key]["reason"])


def test_ticks_lie_inside_their_scale():
    for low, high, log in [(0.11, 0.14, True), (1, 3000, True), (92.1, 93.4, False), (0, 1, False), (1e-9, 10, True)]:
        ticks = svg.ticks(low, high, log=log)
        assert 2 <= len(ticks) <= 9 and all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
        if log and high / low > 1e3:
            ratios = np.diff(np.log10(ticks))
            assert np.ptp(ratios) < 0.11, "even on a logarithmic axis"


def test_report_imports_nothing_heavy():
    heavy = ("torch", "onnxruntime", "PIL", "matplotlib")
    code = f"import sys, compress.report; print([m for m in {heavy} if m in sys.modules])"
    root = Path(report.__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_derive_leaves_its_facts_alone(facts):
    before = copy.deepcopy(facts)
    derive(facts)
    assert facts == before
