"""Choosing a student before training one: what candidates cost, which is taken, and what the report says of it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_report import make_facts

import compress as package
from compress import (
    bench,
    candidates,
    catalog,
    choice,
    costs,
    export,
    pipeline,
    plan,
    recipe,
    report,
    screen,
    training_steps,
    units,
)
from compress.choice import CANNOT, TOO_LARGE, TOO_SLOW, Candidate, Limits, Place
from compress.cli.main import main
from compress.errors import CompressError, InputRejected, TrainingDiverged, Unmeasurable, UsageError
from compress.recipe import Recipe
from compress.report import html, markdown
from compress.report.estimates import measured, missing
from compress.store import Store

TINY = ("mlp:depth=1,hidden=8", "mlp:depth=1,hidden=32", "mlp:depth=1,hidden=64")
HERE = Place(runtime="ort_cpu", threads=1, precision="int8")
QUICK = {
    "student": "auto", "teacher": ("mlp:depth=1,hidden=16",), "epochs": 1, "teacher_epochs": 1, "quantize": "int8",
    "runtimes": ("ort_cpu",),
}  # fmt: skip


# --- units and keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("3ms", 3e6), ("800us", 8e5), ("800 µs", 8e5), ("800μs", 8e5), ("1.5s", 1.5e9), (".5ms", 5e5), ("20ns", 20.0)],
)
def test_latencies_are_read_with_their_units(text: str, value: float) -> None:
    assert units.latency_ns(text, "`max_latency`") == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("500kB", 500_000), ("500KB", 500_000), ("1.5MB", 1_500_000), ("512KiB", 2**19), ("1 MiB", 2**20), ("7B", 7)],
)
def test_sizes_are_read_with_their_units(text: str, value: int) -> None:
    assert units.size_bytes(text, "`max_size`") == value


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"max_latency": "3"}, ("`max_latency`", "ms", "us", "`3`", "for example 3ms")),
        ({"max_latency": "3kB"}, ("`max_latency`", "ns, us")),
        ({"max_latency": "fast"}, ("`max_latency`", "`fast`")),
        ({"max_latency": "0ms"}, ("`max_latency`", "more than 0")),
        ({"max_latency": "-1ms"}, ("`max_latency`", "`-1ms`")),
        ({"max_latency": "1e3ms"}, ("`max_latency`", "`1e3ms`")),
        ({"max_size": "500"}, ("`max_size`", "kB, MB", "KiB", "for example 500kB")),
        ({"max_size": "3ms"}, ("`max_size`", "`3ms`")),
        ({"max_size": "nan kB"}, ("`max_size`", "`nan kB`")),
        ({"student": "auto", "width": 0.5}, ("--width", "--student auto")),
        ({"screen_epochs": 2}, ("`screen_epochs`", "`mobilenet`", "--student auto")),
        ({"student": "auto", "screen_epochs": -1}, ("`screen_epochs`", "[0, 100000]")),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_explained(values: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        recipe.from_values(values)
    print(caught.value)
    assert all(part in str(caught.value) for part in parts)


# --- the choice, on given facts ---------------------------------------------------------------------------------------


def candidate(
    label: str, macs: int = 1000, size: int = 1000, ms: tuple[float, float, float] | None = None, **more: Any
):
    latency = measured(*(1e6 * x for x in ms)) if ms else None
    return Candidate(label=label, spec=label, macs=macs, size_bytes=size, exported=True, latency=latency, **more)


def test_a_latency_is_judged_by_the_upper_end_of_its_interval() -> None:
    limits = Limits(latency_ns=3e6)
    assert choice.timed(candidate("a", ms=(2.0, 1.9, 3.0)), limits).out == ""
    slow = choice.timed(candidate("b", ms=(2.0, 1.9, 3.01)), limits)
    assert slow.out == TOO_SLOW and "3.01 ms" in slow.reason and "3.00 ms" in slow.reason
    assert choice.timed(candidate("c"), limits).out == "", "not timed is not too slow"
    failed = dataclasses.replace(candidate("d"), latency=missing("it crashed"))
    assert choice.timed(failed, Limits()).out == CANNOT and "it crashed" in choice.timed(failed, Limits()).reason


def test_a_bound_rules_out_before_there_is_a_file() -> None:
    limits = Limits(size_bytes=1000)
    assert choice.sized(candidate("a", size=1000), limits).out == ""
    bound = choice.sized(dataclasses.replace(candidate("b", size=1001), exported=False), limits)
    assert bound.out == TOO_LARGE and "at least" in bound.reason
    assert "at least" not in choice.sized(candidate("c", size=1001), limits).reason


def test_of_what_fits_the_most_macs_are_taken_whatever_the_order() -> None:
    found = [
        candidate("small", macs=10),
        candidate("large", macs=90, out=TOO_LARGE),
        candidate("b", macs=50, size=200),
        candidate("a", macs=50, size=100),
        candidate("c", macs=50, size=100),
    ]
    for order in (found, found[::-1]):
        assert [c.label for c in choice.by_macs(order)] == ["a", "c", "b", "small"]
        taken = choice.best(order)
        assert taken and taken.label == "a"
    assert choice.best([candidate("large", out=TOO_SLOW)]) is None


def test_of_what_was_tried_the_most_accurate_is_taken_and_of_equals_the_fewest_macs() -> None:
    found = [
        candidate("untried", macs=5),
        candidate("most", macs=90, correct=80),
        candidate("middle", macs=50, correct=91),
        candidate("few", macs=20, correct=91),
        candidate("diverged", macs=99, correct=99, out=CANNOT),
    ]
    taken = choice.best(found)
    assert taken and taken.label == "few"
    words = choice.sentence(taken, found, Limits(size_bytes=2000), HERE, 2, 143)
    print(words)
    assert "few was chosen of 5 candidates" in words and "2 epochs" in words and "91 of 143" in words
    assert "2.00 kB" in words


def test_the_sentence_names_the_limits_and_how_they_were_judged() -> None:
    found = [candidate("a", macs=10), candidate("b", macs=20), candidate("c", out=TOO_SLOW)]
    words = choice.sentence(found[1], found, Limits(latency_ns=3e6, size_bytes=500_000), HERE, 0, 143)
    assert "2 of them keep to at most 3.00 ms (the upper end of the interval) and 500 kB" in words
    assert "int8 in ort_cpu, 1 thread" in words and "the most MACs" in words
    assert "the only one" in choice.sentence(found[1], found[1:], Limits(size_bytes=9), HERE, 0, 143)


def test_the_frontier_holds_what_no_other_beats_in_all_three() -> None:
    found = [
        candidate("good", macs=50, size=100, ms=(1.0, 0.9, 1.1)),
        candidate("beaten", macs=40, size=120, ms=(1.2, 1.1, 1.3), out=TOO_SLOW),
        candidate("faster", macs=30, size=200, ms=(0.5, 0.4, 0.6)),
        candidate("larger", macs=90, size=900, ms=(9.0, 8.0, 9.9), out=TOO_SLOW),
        candidate("untimed", macs=999, size=99_999, out=TOO_LARGE),
        Candidate(label="broken", spec="broken", out=CANNOT, reason="no"),
    ]
    assert [c.label for c in choice.frontier(found)] == ["good", "faster", "larger"]
    bounds = [dataclasses.replace(c, exported=False, latency=None) for c in found[:4]]
    assert [c.label for c in choice.frontier(bounds)] == ["good", "larger"]
    assert choice.frontier([found[-1]]) == []


def test_tables_fit_a_terminal_and_leave_nothing_out() -> None:
    found = [
        candidate("mobilenet:width=0.25", macs=1_770_000, size=240_000, ms=(1234.5, 1200.1, 1300.9), correct=90),
        candidate("a_network_of_my_own:depth=110,channels=32,stem=64,shortcut=B,blocks=bottleneck", correct=91),
        dataclasses.replace(candidate("bound", size=12_345_678, out=TOO_LARGE), exported=False),
        candidate("refused", out=CANNOT, reason="it cannot be pruned " * 8),
        Candidate(label="broken", spec="broken", out=CANNOT, reason="RuntimeError: too small " * 8),
    ]
    lines = choice.choice_table(found, found[1], HERE, 143)
    print("\n".join(lines))
    assert all(len(line) <= 80 for line in lines if not line.startswith("a_network"))
    text = "\n".join(lines)
    assert all(c.label in text for c in found) and text.count("too small") == 8 and text.count("pruned") == 8
    assert "chosen" in text and ">12.3MB" in text and "too large" in text and "63.6" in text


# --- what there is to list --------------------------------------------------------------------------------------------


def test_every_name_is_listed_or_said_to_stand_for_others() -> None:
    specs, others = costs.specs_to_list((), ())
    assert len(specs) == len(set(specs)) and "torchvision" in others
    for name in catalog.names("nets"):
        # what a file declares stands for all of its names
        of_same_file = [
            s for s in specs if catalog.path_of("nets", s.partition(":")[0]) == catalog.path_of("nets", name)
        ]
        assert name in others or of_same_file, name
    for spec in specs:
        catalog.load("nets", spec)
    assert {"mobilenet:width=0.25", "shufflenet:width=0.5"} <= set(specs)
    chosen, _ = costs.specs_to_list(("shufflenet", "torchvision:resnet18", "resnet20"), ())
    assert chosen == [f"shufflenet:width={w}" for w in ("0.5", "1", "1.5", "2")] + ["torchvision:resnet18", "resnet20"]


def plugin(folder: Path, name: str, text: str) -> tuple[Path, ...]:
    path = folder / f"{name}.py"
    path.write_text(
        f'"""A net."""\n{text}\n\ndef build(config, num_classes, input_shape):\n    raise ValueError("no")\n'
    )
    return (path,)


def test_plugins_declare_candidates_without_being_run(tmp_path: Path) -> None:
    files = plugin(tmp_path, "mine", 'CANDIDATES = ("mine",)\nopen(__file__ + ".ran", "w").close()')
    assert catalog.candidates(files)["mine"] == ("mine",) and not (tmp_path / "mine.py.ran").exists()
    for name, text in (("word", 'CANDIDATES = "mine"'), ("number", "CANDIDATES = (1,)"), ("call", "CANDIDATES = f()")):
        with pytest.raises(InputRejected, match="CANDIDATES") as caught:
            catalog.candidates(plugin(tmp_path, name, text))
        print(caught.value)


@pytest.fixture
def compress(tmp_path, monkeypatch, capsys):
    """Runs `compress …` as the entry point does; returns the exit code and what was printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        print(printed.err)
        return stopped.value.code or 0, printed.out, printed.err

    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("nets", "--input", "3x"), ("--input", "CHANNELSxHEIGHTxWIDTH", "`3x`", "3x224x224")),
        (("nets", "--input", "4x8x8"), ("--input", "1 channel or 3", "4")),
        (("nets", "--input", "0"), ("--input", "`0`")),
        (("nets", "--input", "3x0x8"), ("--input", "[1, 4096]")),
        (("nets", "--input", "3x8x-8"), ("--input", "`3x8x-8`")),
        (("nets", "--input", ""), ("--input", "``")),
        (("nets", "--input", "1x8x8", "--classes", "1"), ("--classes", "[2, 1000000]")),
        (("nets", "--input", "1x8x8", "--classes", "few"), ("--classes", "whole number")),
        (("nets", "--classes", "10"), ("--classes needs --input",)),
        (("methods", "--input", "1x8x8"), ("are for networks",)),
        (("nets", "mobilnet", "--input", "1x8x8"), ("`mobilnet`", "`mobilenet`")),
        (("nets", "mlp", "nin"), ("one NAME at a time", "--input")),
    ],
    ids=str,
)
def test_bad_listings_are_explained(compress, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    code, out, err = compress("list", *arguments)
    assert code == 2 and out == "" and all(part in err for part in parts)


# --- measured for real ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    found = Store(tmp_path_factory.mktemp("store"))
    (found.root / "steps").mkdir()
    return found


@pytest.fixture(scope="module")
def splits(store):
    return plan.load_data(Recipe(), store)


class Count:
    """Calls of a function that still does its work."""

    def __init__(self, monkeypatch, module, name: str):
        self.calls, function = [], getattr(module, name)

        def counted(*arguments, **options):
            self.calls.append(arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counted)


NAMES = ("mlp:depth=1,hidden=8", "torchvision:alexnet", "resnet_cifar:depth=8,channels=4,stem=4")


@pytest.fixture(scope="module")
def listing(store) -> str:
    return costs.table(NAMES, (1, 8, 8), 10, store, ())


def test_the_listing_has_numbers_or_a_reason_in_each_row(listing: str) -> None:
    print(listing)
    lines = listing.splitlines()
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(listing.split())
    assert text.index("mlp:depth=1,hidden=8") < text.index("torchvision:name=alexnet: no file: RuntimeError")
    numbers = [line for line in lines if line.count("(") == 2 and line.count("-") >= 2]
    assert len(numbers) == 2 and "610" in numbers[0] and "kB" in numbers[0]
    assert "A/A control (mlp:depth=1,hidden=8 float32 again)" in text and "smoke" in text


def test_a_second_listing_exports_and_measures_nothing(listing: str, store, monkeypatch) -> None:
    exports, visits = Count(monkeypatch, export, "export_onnx"), Count(monkeypatch, bench, "measure")
    assert costs.table(NAMES, (1, 8, 8), 10, store, ()) == listing
    # and neither does a shorter one, which was never asked for before
    part = costs.table(NAMES[:1], (1, 8, 8), 10, store, ())
    row = next(line for line in part.splitlines() if "610" in line)
    assert row.split() == next(line for line in listing.splitlines() if "610" in line).split()
    assert not exports.calls and not visits.calls


def test_a_session_that_was_stopped_goes_on_where_it_was(tmp_path, splits, monkeypatch) -> None:
    subject = candidates.subject_of(splits.calibrate, "ort_cpu", 1, ())
    mine = Store(tmp_path)
    file = candidates.float_artifact(mine, subject, catalog.load("nets", TINY[0]))
    measure, rounds = bench.measure, []

    def stopped(cells, *arguments, seed, **options):
        if len(rounds) == 1:
            raise KeyboardInterrupt
        rounds.append(seed)
        return measure(cells, *arguments, seed=seed, **options)

    monkeypatch.setattr(bench, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        candidates.latencies(mine, subject, [file])
    monkeypatch.setattr(bench, "measure", measure)
    again = Count(monkeypatch, bench, "measure")
    found = candidates.latencies(mine, subject, [file])
    left = bench.TIERS[candidates.TIER].rounds - 1
    assert rounds == [0] and len(again.calls) == left > 0
    latency = found.of[file.stage]
    assert latency["low"] <= latency["value"] <= latency["high"] and found.control
    assert candidates.latencies(mine, subject, [file]) == found and len(again.calls) == left


def test_the_bound_lies_below_the_file_in_both_precisions(store, splits) -> None:
    subject = candidates.subject_of(splits.calibrate, "ort_cpu", 1, ())
    int8 = catalog.load("quantizers", "int8")
    for spec in (TINY[1], "resnet_cifar:depth=8,channels=4,stem=4"):
        entry = catalog.load("nets", spec)
        network = candidates.build(subject, entry)
        file = candidates.float_artifact(store, subject, entry)
        quantized = candidates.quantized_artifact(store, subject, entry, file, int8)
        for artifact in (file, quantized):
            assert 0 < candidates.counts(network, artifact.precision)["least_bytes"] <= artifact.size_bytes
        assert candidates.counts(network, "int4")["least_bytes"] == 0, "of a precision that we know nothing of"


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["ds_cnn", "resnet_cifar:depth=8,channels=4,stem=4"])
def test_a_file_has_as_many_bytes_as_one_with_other_weights(spec: str, splits, tmp_path) -> None:
    """No bias of zeros is left out, no weight stored once for two: trained weights would not be."""
    subject = candidates.subject_of(splits.calibrate, "ort_cpu", 1, ())
    entry = catalog.load("nets", spec)
    file = candidates.float_artifact(Store(tmp_path), subject, entry)
    network = candidates.build(subject, entry).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape))
    export.export_onnx(network, tmp_path / "other.onnx", recipe_digest="0" * 64)
    assert (tmp_path / "other.onnx").stat().st_size == file.size_bytes


# --- --student auto ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(catalog, "candidates", lambda plugins=(): {"mlp": TINY})


def resolve(made: Recipe, splits, store: Store, check=lambda job: None, trials: Store | None = None):
    return screen.resolve(made, splits, store, (), check, trials)


def test_a_student_that_is_given_is_left_alone(splits, store) -> None:
    made = Recipe(student="mlp", max_size="1B")
    assert resolve(made, splits, store) == (made, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store):
    """A whole run by `auto`, from Python."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "candidates", lambda plugins=(): {"mlp": TINY})
        made = Recipe(**QUICK, max_size="9kB", max_latency="1s", out=str(out))
        return made, package.run(made, store=store)


def test_a_run_takes_the_most_macs_that_fit_and_goes_on_as_if_it_had_been_typed(finished) -> None:
    _, result = finished
    document, told = result.document, result.document["choice"]
    words = {c["label"]: c["word"] for c in document["derived"]["choice"]}
    assert words == {TINY[0]: "fits", TINY[1]: "chosen", TINY[2]: "too large"}
    assert told["chosen"] == TINY[1] and told["max_size_bytes"] == 9000 and told["max_latency_ns"] == 1e9
    assert (told["runtime"], told["threads"], told["precision"]) == ("ort_cpu", 1, "int8")
    kept = recipe.from_values(recipe.read(result.models / "recipe.toml"))
    assert kept.student.startswith("mlp:depth=1,hidden=32") and kept.max_size == "9kB" and not kept.screen_epochs
    artifacts = {a["stage"]: a for a in document["artifacts"]}
    screened = next(c for c in told["candidates"] if c["label"] == TINY[1])
    assert artifacts["int8"]["macs"] == screened["macs"] and artifacts["int8"]["parameters"] == screened["parameters"]
    # the file is the same but for zero points, which are numbers of one byte or two
    assert abs(artifacts["int8"]["size_bytes"] - screened["size_bytes"]) <= 16
    for name in ("report.md", "report.html"):
        text = (result.reports / name).read_text()
        assert "How the student was chosen" in text and TINY[1] in text and "too large" in text
    gates = {gate["name"]: gate["status"] for gate in document["derived"]["verdict"]["gates"]}
    assert gates["max_size"] == gates["max_latency"] == "pass"
    assert "at most 9.00 kB: met" in document["derived"]["verdict"]["sentence"]


def test_the_same_run_again_and_its_screening_compute_nothing(finished, tiny, splits, store, monkeypatch) -> None:
    made, result = finished
    counts = [Count(monkeypatch, export, "export_onnx"), Count(monkeypatch, bench, "measure")]
    again = package.run(made, store=store)
    assert again.reused and again.document["choice"] == result.document["choice"]
    _, facts = resolve(made, splits, store)
    assert json.loads(json.dumps(facts)) == result.document["choice"], "judged alike each time"
    assert not any(count.calls for count in counts)


def test_a_dry_run_screens_and_plans(finished, tiny, store, capsys) -> None:
    made, _ = finished
    text = pipeline.dry_run(dataclasses.replace(made, name="dry"), store=store)
    assert "student  mlp:depth=1,hidden=32" in text and "distilled" in text
    assert "was chosen of 3 candidates" in capsys.readouterr().err
    tried = dataclasses.replace(made, name="dry", screen_epochs=7)
    assert "student  mlp" in pipeline.dry_run(tried, store=store)
    assert "7 epochs are not in the store" in capsys.readouterr().err


def test_an_impossible_pair_prints_the_frontier(finished, tiny, splits, store) -> None:
    made = dataclasses.replace(finished[0], max_latency="1ns")
    with pytest.raises(InputRejected) as caught:
        resolve(made, splits, store)
    print(caught.value)
    text = str(caught.value)
    assert caught.value.exit_code == 5 and "frontier" in text and TINY[0] in text and TINY[1] in text
    assert "the 1 that are too large were not timed" in text and "upper end" in text
    assert all(len(line) <= 80 for line in text.splitlines()[1:])


def test_a_size_below_everything_is_said_before_anything_is_exported(tiny, splits, tmp_path, monkeypatch) -> None:
    exports = Count(monkeypatch, export, "export_onnx")
    with pytest.raises(InputRejected, match="none of 3 candidates") as caught:
        resolve(Recipe(**{**QUICK, "quantize": ""}, max_size="10B"), splits, Store(tmp_path))
    print(caught.value)
    assert not exports.calls and ">" in str(caught.value) and "int8" in str(caught.value)


def test_the_command_exits_with_five(compress, tiny) -> None:
    code, out, err = compress("run", "--student", "auto", "--max-size", "10B", "--teacher", "mlp")
    assert code == 5 and out == "" and "frontier" in err


def test_a_few_epochs_of_labels_decide_where_they_are_asked_for(finished, tiny, splits, store, monkeypatch) -> None:
    trainings = Count(monkeypatch, training_steps, "train_step")
    made = dataclasses.replace(finished[0], max_size="", max_latency="", screen_epochs=1)
    chosen, facts = resolve(made, splits, store)
    correct = {c["label"]: c["correct"] for c in facts["candidates"]}
    assert len(trainings.calls) == 3 and all(0 <= right <= len(splits.select.labels) for right in correct.values())
    macs = {c["label"]: c["macs"] for c in facts["candidates"]}
    assert facts["chosen"] == min(correct, key=lambda label: (-correct[label], macs[label]))
    assert chosen.student.startswith(facts["chosen"]) and chosen.screen_epochs == 0
    assert "after 1 epoch of labels" in facts["sentence"]
    assert resolve(made, splits, store)[1] == facts


def test_at_most_the_constant_are_tried_and_one_that_diverges_is_out(
    finished, tiny, splits, store, monkeypatch
) -> None:
    monkeypatch.setattr(screen, "MOST_TRIALS", 2)
    tried: list[str] = []

    def trial(job, store, entry, epochs):
        tried.append(entry.label)
        if entry.label == TINY[2]:
            raise TrainingDiverged("the loss is nan")
        return 100

    monkeypatch.setattr(screen, "_trial", trial)
    made = dataclasses.replace(finished[0], max_size="", max_latency="", screen_epochs=1)
    _, facts = resolve(made, splits, store)
    assert tried == [TINY[2], TINY[1]] and facts["chosen"] == TINY[1]
    assert "nan" in next(c["reason"] for c in facts["candidates"] if c["label"] == TINY[2])


def test_what_cannot_do_what_the_recipe_asks_is_passed_over(finished, tiny, splits, store) -> None:
    def check(job) -> None:
        if "hidden=64" in job.student.spec:
            raise CompressError("it cannot be pruned")

    _, facts = resolve(dataclasses.replace(finished[0], max_size=""), splits, store, check)
    assert facts["chosen"] == TINY[1]
    assert [c["reason"] for c in facts["candidates"] if c["out"] == CANNOT] == ["it cannot be pruned"]


def test_networks_that_fail_are_rows_with_reasons(splits, store, monkeypatch, capsys) -> None:
    names = ("torchvision:alexnet", TINY[0])
    monkeypatch.setattr(catalog, "candidates", lambda plugins=(): {"any": names})
    _, facts = resolve(Recipe(**QUICK), splits, store)
    assert facts["chosen"] == TINY[0] and "RuntimeError" in facts["candidates"][0]["reason"]
    assert "torchvision:name=alexnet: RuntimeError" in capsys.readouterr().err
    monkeypatch.setattr(catalog, "candidates", lambda plugins=(): {"any": names[:1]})
    with pytest.raises(InputRejected, match="can be built") as caught:
        resolve(Recipe(**QUICK), splits, store)
    print(caught.value)
    monkeypatch.setattr(catalog, "candidates", lambda plugins=(): {"mlp": None, "torchvision": ()})
    with pytest.raises(UsageError, match="CANDIDATES"):
        resolve(Recipe(**QUICK), splits, store)


def test_a_runtime_that_reads_onnx_and_works_here_is_needed(tiny, splits, store, monkeypatch) -> None:
    with pytest.raises(UsageError, match="torch_eager") as caught:
        resolve(Recipe(**{**QUICK, "runtimes": ("torch_eager",)}), splits, store)
    print(caught.value)
    monkeypatch.setattr(bench, "runtime_state", lambda *_: {"unavailable": "it is broken", "version": ""})
    with pytest.raises(Unmeasurable, match="it is broken") as caught:
        resolve(Recipe(**QUICK), splits, store)
    print(caught.value)


# --- the report -------------------------------------------------------------------------------------------------------


def facts_with(limits: dict[str, str], told: dict[str, Any] | None = None) -> dict[str, Any]:
    facts = make_facts()
    return {**facts, "recipe": {**facts["recipe"], **limits}, "choice": told}


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ({"max_size": "100MB"}, {"max_size": "pass"}),
        ({"max_size": "1kB"}, {"max_size": "fail"}),
        ({"max_latency": "1s"}, {"max_latency": "pass"}),
        ({"max_latency": "1us", "max_size": "1kB"}, {"max_latency": "fail", "max_size": "fail"}),
        ({"max_latency": "", "max_size": ""}, {}),
        ({}, {}),
    ],
    ids=str,
)
def test_the_verdict_says_whether_the_limits_are_met(limits: dict[str, str], status: dict[str, str]) -> None:
    verdict = report.document_of(facts_with(limits))["derived"]["verdict"]
    assert {g["name"]: g["status"] for g in verdict["gates"] if g["name"].startswith("max_")} == status
    assert ("Of what was asked" in verdict["sentence"]) == bool(status)
    assert verdict["sentence"].count("not met") == sum(s == "fail" for s in status.values())
    assert verdict["status"] == "fail" or "fail" not in status.values()


def test_a_limit_within_the_interval_is_not_decided() -> None:
    cells = report.document_of(facts_with({}))["derived"]
    cell = next(c for c in cells["cells"] if c["cell"] == cells["primary_cell"])
    middle = f"{(cell['latency_ns']['value'] + cell['latency_ns']['high']) / 2:.0f}ns"
    gates = report.document_of(facts_with({"max_latency": middle}))["derived"]["verdict"]["gates"]
    assert next(g["status"] for g in gates if g["name"] == "max_latency") == "inconclusive"


def a_choice(**changes: Any) -> dict[str, Any]:
    found = [
        candidate("a<i>", macs=10, ms=(1.0, 0.9, 1.1), correct=90),
        candidate("big", macs=90, out=TOO_LARGE, reason="its file has 9 MB"),
        Candidate(label="broken", spec="broken", out=CANNOT, reason="too small"),
    ]
    control = {**measured(1.0, 0.99, 1.01), "verdict": "ok", "of": "a"}
    return choice.facts(found[0], found, Limits(size_bytes=2000), HERE, 1, 143, control) | changes


def test_pages_show_the_choice_and_only_where_there_was_one() -> None:
    document = report.document_of(facts_with({}, a_choice()))
    page, text = html.render(document), markdown.render(document)
    for shown in (page, text):
        assert "How the student was chosen" in shown and "broken" in shown and "its file has 9 MB" in shown
        assert "<i>" not in shown and "a&lt;i&gt;" in shown
        assert "A/A control (a again): 1.00x" in shown and "62.9" in shown
    for nothing in ({}, {"choice": None}):
        document = report.document_of(make_facts() | nothing)
        assert "How the student" not in html.render(document) + markdown.render(document)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"select": 0}, "contradict"),
        ({"candidates": []}, "choice.candidates"),
        ({"sentence": None}, "choice.sentence"),
        ({"max_size_bytes": -1}, "choice.max_size_bytes"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputRejected, match=part) as caught:
        report.document_of(facts_with({}, a_choice(**changes)))
    print(caught.value)


def test_a_limit_that_is_none_is_refused_in_a_report() -> None:
    with pytest.raises(InputRejected, match="max_size") as caught:
        report.document_of(facts_with({"max_size": "a lot"}))
    print(caught.value)
