"""The whole chain on real digits, once, small; then everything that must hold about what it left behind."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compress.cli.main import main

FLAGS = (
    "--teacher", "resnet_cifar:depth=8,channels=32,stem=16", "--student", "ds_cnn:channels=96",
    "--kd", "fitnet", "--prune", "0.2", "--quantize", "int8", "--epochs", "8", "--max-drop", "30",
    "--runtimes", "ort_cpu,ort_cuda,torch_eager,mnn", "--set", "teacher_epochs=4", "--set", "recover_epochs=3",
    "--set", "least_speedup=0", "--set", "name=small",
)  # fmt: skip


def command(tmp: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "COMPRESS_STORE": str(tmp / "store")}
    return [sys.executable, "-m", "compress", *arguments], environment


def compress(tmp: Path, *arguments: str) -> subprocess.CompletedProcess:
    """What the command line does, in this process: another one would take seconds to import torch."""
    line, environment = command(tmp, *arguments)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        contextlib.chdir(tmp),
        pytest.raises(SystemExit) as stopped,
    ):
        patch.setenv("COMPRESS_STORE", environment["COMPRESS_STORE"])
        patch.setattr(sys, "argv", ["compress", *arguments])
        main()
    code = stopped.value.code or 0
    print(out.getvalue(), err.getvalue())
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("chain")
    done = compress(tmp, "run", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stderr and "next" in done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    return tmp


@pytest.mark.slow
def test_it_wrote_what_it_promises(finished):
    models, reports = finished / "models/small", finished / "reports/small"
    for name in ("student.onnx", "student.int8.onnx", "teacher.onnx", "recipe.toml", "manifest.json", "card.md"):
        assert (models / name).stat().st_size > 0
    for name in ("report.json", "report.md", "report.html", "samples.npz"):
        assert (reports / name).stat().st_size > 0
    document = json.loads((reports / "report.json").read_text())
    stages = {s["name"]: s for s in document["stages"]}
    assert list(stages) == ["teacher", "distilled", "pruned", "int8"]
    assert stages["pruned"]["parent"] == "distilled" and stages["int8"]["parent"] == "pruned"
    assert "stride" in stages["distilled"]["pairing"]
    artifacts = {a["stage"]: a for a in document["artifacts"]}
    assert artifacts["pruned"]["parameters"] < artifacts["distilled"]["parameters"]
    assert artifacts["int8"]["size_bytes"] < 0.6 * artifacts["pruned"]["size_bytes"]
    for stage in ("teacher", "distilled", "pruned"):
        assert artifacts[stage]["parity"]["images"] >= 1000
        assert artifacts[stage]["parity"]["top1_agreement_fraction"] == 1.0


@pytest.mark.slow
def test_accuracy_is_of_every_report_image_and_says_why_where_there_is_none(finished):
    document = json.loads((finished / "reports/small/report.json").read_text())
    for row in document["accuracy"]:
        if row["runtime"] == "ort_cuda" and row["failure"]:
            assert row["correct"] is None
        else:
            assert row["n"] == document["dataset"]["report"] == 359
    by_place = {(r["stage"], r["runtime"]): r for r in document["accuracy"]}
    # the same network in torch and exported
    assert by_place["teacher", "ort_cpu"]["correct"] == by_place["teacher", "torch_eager"]["correct"]
    assert by_place["teacher", "ort_cpu"]["correct"] / 359 > 0.9
    cuda = [m for m in document["measurements"] if m["runtime"] == "ort_cuda"]
    assert all(m["failure"] or m["visits"][0]["effective"]["providers"][0].startswith("CUDA") for m in cuda)
    assert all(m["failure_kind"] == ("unavailable" if m["failure"] else "") for m in cuda)
    twins = [m for m in document["measurements"] if m["control"]]
    assert len(twins) == 1 and twins[0]["twin_of"] == "teacher/ort_cpu/1"


@pytest.mark.slow
def test_teacher_and_student_were_asked_about_corrupted_images(unbroken):
    document = json.loads((unbroken / "reports/unbroken/report.json").read_text())
    rows = {row["stage"]: row for row in document["corruptions"]}
    assert list(rows) == ["teacher", "distilled"]
    clean = {r["stage"]: r["correct"] for r in document["accuracy"] if r["runtime"] == "ort_cpu"}
    for stage, row in rows.items():
        counts = [kind["correct"] for kind in row["kinds"]]
        assert row["n"] == 359 and all(len(right) == 3 for right in counts)
        mean = sum(map(sum, counts)) / (3 * len(counts))
        assert row["lost_points"] == pytest.approx(100 * (clean[stage] - mean) / 359)
    assert (
        rows["teacher"]["extra_points"] == 0
        and "On corrupted images" in (unbroken / "reports/unbroken/report.html").read_text()
    )


@pytest.mark.slow
def test_files_for_another_runtime_ship_where_they_answer_as_the_onnx_files(finished):
    pytest.importorskip("MNN")
    models = finished / "models/small"
    document = json.loads((finished / "reports/small/report.json").read_text())
    rows = {row["stage"]: row for row in document["converted"]}
    assert {row["runtime"] for row in document["converted"]} == {"mnn"}  # a missing GPU is no conversion that failed
    assert list(rows) == ["teacher", "distilled", "pruned", "int8"] and not any(r["failure"] for r in rows.values())
    for row in rows.values():
        gate = row["gate"]
        assert gate["images"] >= 1000 and gate["agreement_fraction"] >= 0.98
    shipped = json.loads((models / "manifest.json").read_text())["converted"]
    assert {entry["stage"]: entry["files"] for entry in shipped} == {
        "pruned": {"model.mnn": "student.mnn"}, "int8": {"model.mnn": "student.int8.mnn"},
    }  # fmt: skip
    assert (models / "student.int8.mnn").stat().st_size == rows["int8"]["size_bytes"]
    assert "| student.int8.mnn | mnn | int8 |" in (models / "card.md").read_text()
    sizes = {c["stage"]: c["size_bytes"] for c in document["derived"]["cells"] if c["runtime"] == "mnn"}
    assert sizes == {stage: row["size_bytes"] for stage, row in rows.items()}
    for name in ("report.html", "report.md"):
        assert "Files for other runtimes" in (finished / "reports/small" / name).read_text()


@pytest.mark.slow
def test_onnx_file_takes_any_batch_and_carries_its_contract(finished):
    import onnxruntime

    for name in ("student.onnx", "student.int8.onnx", "teacher.onnx"):
        session = onnxruntime.InferenceSession(finished / "models/small" / name)
        assert [i.name for i in session.get_inputs()] == ["input"]
        assert [o.name for o in session.get_outputs()] == ["logits"]
        for batch in (1, 2, 7):
            logits = session.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0]
            assert logits.shape == (batch, 10)
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["compress.class_names"]) == list("0123456789")
        assert len(metadata["compress.recipe_digest"]) == 64 and "resize" in metadata["compress.preprocessing"]
        manifest = json.loads((finished / "models/small/manifest.json").read_text())
        (listed,) = (entry for entry in manifest["artifacts"] if entry["file"] == name)
        assert listed["made_by"] == metadata["compress.recipe_digest"]


@pytest.mark.slow
def test_same_command_again_computes_nothing(finished):
    before = (finished / "models/small/manifest.json").stat().st_mtime_ns
    done = compress(finished, "run", *FLAGS)
    assert done.returncode == 0 and "nothing to do" in done.stderr
    assert (finished / "models/small/manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_is_made_again_has_a_reason(finished, monkeypatch):
    from compress import publish, recipe

    monkeypatch.chdir(finished)
    found = publish.places(recipe.from_values({**recipe.read(Path("models/small/recipe.toml")), "name": "small"}))
    asked = json.loads(Path("models/small/manifest.json").read_text())["made_of"][0]
    assert publish.finished(found, asked)
    other = asked | {"this program": "-", "the data": "-"}
    assert publish.finished(found, other) is None
    assert publish.why_again(found, other) == "changed since: the data, this program"
    assert publish.why_again(found, asked | {"the recipe": "-"}) == ""
    page = Path("reports/small/report.html")
    text = page.read_text()
    page.write_text(text + " ")
    assert publish.finished(found, asked) is None and "a file of it" in publish.why_again(found, asked)
    page.write_text(text)


@pytest.mark.slow
def test_recipe_gives_the_same_run_and_another_quantizer_trains_nothing(finished):
    done = compress(
        finished, "run", "--recipe", "models/small/recipe.toml", "--quantize", "int8:calibrator=percentile",
        "--set", "name=other", "--runtimes", "ort_cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, other = (json.loads((finished / f"reports/{n}/report.json").read_text()) for n in ("small", "other"))
    digests = [{a["stage"]: a["digest"] for a in d["artifacts"]} for d in (first, other)]
    reused = {s["name"]: s["reused"] for s in other["stages"]}
    assert reused == {"teacher": True, "distilled": True, "pruned": True, "int8": False}
    assert digests[0]["int8"] != digests[1]["int8"]


@pytest.mark.slow
def test_dry_run_knows_what_is_there_and_estimates_the_rest(finished):
    done = compress(finished, "run", *FLAGS, "--set", "name=dry", "--kd", "kd", "--dry-run")
    assert done.returncode == 0
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines() if line and line[0] != " ")
    assert "in the store" in lines["teacher"] or "teacher    in the store" in done.stdout
    assert "distilled  about" in done.stdout
    assert not (finished / "models/dry/manifest.json").exists()


@pytest.mark.slow
def test_verify_eval_bench_and_report_work_on_what_run_made(finished):
    run = "models/small"
    assert compress(finished, "verify", run).stdout.count("ok ") == 3
    verified = json.loads(compress(finished, "verify", run, "--json").stdout)
    assert [row["ok"] for row in verified] == [True] * 3 and "golden samples" in verified[0]["found"]
    evaluated = compress(finished, "eval", run, "--json")
    rows = {row["stage"]: row for row in json.loads(evaluated.stdout)}
    document = json.loads((finished / "reports/small/report.json").read_text())
    assert all(m["memory"]["peak_rss_bytes"] > 1e6 for m in document["measurements"] if m["visits"])
    for row in document["accuracy"]:
        if row["runtime"] == "ort_cpu" and row["stage"] in rows:
            assert rows[row["stage"]]["correct"] == row["correct"]
    benched = compress(
        finished, "bench", f"{run}/teacher.onnx", f"{run}/student.onnx", "--data", "digits", "--tier", "smoke",
        "--out", "reports/again", "--json",
    )  # fmt: skip
    assert benched.returncode in (0, 4) and (finished / "reports/again/report.html").exists()
    assert json.loads(benched.stdout) == json.loads((finished / "reports/again/report.json").read_text())
    with np.load(finished / "reports/again/samples.npz") as samples:  # every query of every visit
        for row in json.loads(benched.stdout)["measurements"]:
            assert all(len(samples[f"{row['cell']}#{v['round']}"]) == v["n"] for v in row["visits"])
    shown = compress(finished, "report", "reports/small")
    assert document["derived"]["verdict"]["sentence"].split()[0] in shown.stdout


@pytest.mark.slow
def test_verify_finds_a_changed_file(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished / "models/small", copy)
    data = bytearray((copy / "student.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "student.onnx").write_bytes(data)
    done = compress(finished, "verify", str(copy))
    assert done.returncode == 5 and "student.onnx" in done.stderr


@pytest.mark.slow
def test_a_stage_that_costs_too_much_is_reported_and_the_chain_goes_on_from_its_parent(finished):
    done = compress(
        finished, "run", *FLAGS, "--set", "name=strict", "--prune", "0.8", "--max-drop", "0",
        "--set", "recover_epochs=1", "--runtimes", "ort_cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((finished / "reports/strict/report.json").read_text())
    stages = {s["name"]: s for s in document["stages"]}
    assert stages["pruned"]["decision"] == "dropped" and "points" in stages["pruned"]["reason"]
    assert stages["int8"]["parent"] == "distilled"
    measured = {m["stage"] for m in document["measurements"]}
    assert "pruned" in measured


# A chain that is small enough to be run again; networks with statistics are killed in test_resume.py.
SMALLER = (
    "--teacher", "mlp:hidden=64", "--student", "mlp:hidden=128", "--kd", "kd", "--epochs", "40",
    "--runtimes", "ort_cpu", "--set", "teacher_epochs=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("unbroken")
    flags = ("--set", "name=unbroken", "--set", "corruptions=true")
    assert compress(tmp, "run", *SMALLER, *flags).returncode == 0
    return tmp


def interrupted(unbroken: Path, tmp_path: Path, flags: tuple[str, ...], how: signal.Signals) -> str:
    """Messages of a run that gets the signal in the middle of its training."""
    # the choice of layout and precision is measured: it must be the same for the comparison
    import shutil

    (tmp_path / "store").mkdir()
    shutil.copytree(unbroken / "store/steps", tmp_path / "store/steps")
    for folder in (tmp_path / "store/steps").iterdir():
        if not folder.name.startswith("execution"):
            shutil.rmtree(folder)
    line, environment = command(tmp_path, "run", *flags)
    code = "import compress.train as t, compress.cli.main as m; t.CHECKPOINT_EVERY_S = 0.1; m.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *line[3:]], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("store/steps/distilled-*/checkpoint-main.safetensors")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(how)
    _, messages = child.communicate(timeout=300)
    assert child.returncode == (-9 if how == signal.SIGKILL else 143)
    assert not (tmp_path / "models/killed/manifest.json").exists()
    return messages


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(unbroken, tmp_path):
    messages = interrupted(unbroken, tmp_path, (*SMALLER, "--set", "name=killed"), signal.SIGTERM)
    assert "same command goes on" in messages


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_same_bytes(unbroken, tmp_path):
    flags = (*SMALLER, "--set", "name=killed")
    interrupted(unbroken, tmp_path, flags, signal.SIGKILL)
    done = compress(tmp_path, "run", *flags)
    assert done.returncode == 0 and "going on from step" in done.stderr
    ours, theirs = (
        {a["stage"]: a for a in json.loads((root / f"reports/{name}/report.json").read_text())["artifacts"]}
        for root, name in ((tmp_path, "killed"), (unbroken, "unbroken"))
    )
    # the bytes hold the weights, and in their metadata the key of all that made them
    assert {k: v["digest"] for k, v in ours.items()} == {k: v["digest"] for k, v in theirs.items()}


@pytest.mark.slow
def test_python_does_what_the_command_does(finished, monkeypatch):
    import compress as package
    from compress.recipe import from_values, read
    from compress.store import Store

    monkeypatch.chdir(finished)
    values = {**read(finished / "models/small/recipe.toml"), "name": "small"}
    result = package.run(from_values(values), store=Store(finished / "store"))
    # the recipe file holds what the flags resolved into
    assert result.reused and result.document["run"]["name"] == "small"
    assert result.models.resolve() == (finished / "models/small").resolve()
