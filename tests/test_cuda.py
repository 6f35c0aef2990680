"""On a GPU, where there is one: every method trains, the chain goes through, and runtimes answer as the CPU does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_schedules import learn, noise
from test_trainer import STUDENT, TEACHER, made

from compress import bench, catalog, distill, export, files, network, train
from compress.augment import Augmenter
from compress.cli.main import compress as group
from compress.execution import Execution
from compress.teacher import Live
from compress.types import Artifact

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

# what is drawn on a GPU is another number than on the CPU
DRAWING = ("crd", "mgd", "noisy")


@pytest.fixture(autouse=True)
def no_tensorfloat(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def distilled(name: str, device: str, folder: Path, **plan) -> tuple[network.Network, list[float]]:
    """The student, and the loss at each step of the last phase."""
    training = distill.Training(
        plan=train.Plan(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | plan), name="test", seed=0,
        student_execution=Execution(), thread_choices=(1,), folder=folder, device=device,
    )  # fmt: skip
    student, teacher = made(STUDENT, 0), Live(made(TEACHER, 1).eval(), Execution(frozen=True), device)
    folder.mkdir(exist_ok=True)
    facts = distill.distill(student, teacher, (catalog.load("methods", name),), Augmenter(noise()), training)
    return student, facts["phases"]["main"]["curve"]["loss"]


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_every_method_trains_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    student, losses = distilled(name, "cuda", tmp_path / "cuda")
    assert next(student.parameters()).device.type == "cpu" and np.isfinite(losses).all()
    _, expected = distilled(name, "cpu", tmp_path / "cpu")
    if name not in DRAWING:
        assert losses[:2] == pytest.approx(expected[:2], rel=0.01)


def test_an_average_of_the_weights_and_a_stopped_run(tmp_path: Path, monkeypatch) -> None:
    whole, _ = distilled("kd", "cuda", tmp_path / "whole", ema=0.7)
    steps, real = [], train._step

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_step", stopping)
        patch.setattr(train._Keeper, "due", lambda self: True)
        with pytest.raises(KeyboardInterrupt):
            distilled("kd", "cuda", tmp_path / "parts", ema=0.7)
    resumed, _ = distilled("kd", "cuda", tmp_path / "parts", ema=0.7)
    for (key, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4), key


def test_networks_learn_together(tmp_path: Path) -> None:
    networks = (made(STUDENT, 0), made(STUDENT, 1))
    teacher = Live(made(TEACHER, 2).eval(), Execution(frozen=True), "cuda")
    learn(networks, tmp_path, ("similarity", "vid"), teacher=teacher, device="cuda")
    assert all(torch.isfinite(p).all() for one in networks for p in one.parameters())


@pytest.fixture(scope="module")
def network_and_file(tmp_path_factory) -> tuple[Artifact, Artifact, np.ndarray]:
    folder = tmp_path_factory.mktemp("net")
    shape = {"class_names": ("a", "b", "c"), "input_shape": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    net = network.build("mobilenet", **shape, seed=1).eval()
    network.save(net, folder / "net")
    export.export_onnx(net, folder / "model.onnx", recipe_digest="")
    torch_one = Artifact(
        path=folder / "net", digest="", format="torch", precision="float32", stage="teacher",
        class_names=shape["class_names"], input_shape=shape["input_shape"], parameters=0, macs=0, size_bytes=1,
    )  # fmt: skip
    onnx_one = files.open_onnx(folder / "model.onnx", folder)
    return torch_one, onnx_one, np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("runtime", ["torch_cuda", "torch_cuda_graph", "ort_cuda"])
def test_runtimes_answer_as_the_cpu_does(runtime: str, network_and_file, tmp_path: Path) -> None:
    module = catalog.load("runtimes", runtime).module
    if reason := module.unavailable():
        pytest.skip(reason)
    torch_one, onnx_one, images = network_and_file
    expected = bench.answers(onnx_one, "ort_cpu", images, threads=1, scratch=tmp_path)
    artifact = torch_one if module.FORMAT == "torch" else onnx_one
    got = bench.answers(artifact, runtime, images, threads=1, scratch=tmp_path)
    spread = expected.max() - expected.min()
    assert np.abs(got - expected).max() <= module.TOLERANCE["float32"] * spread
    cells = [
        bench.Cell(name=str(b), artifact=artifact, runtime=runtime, threads=1, batch=b) for b in (1, 8)
    ]  # fmt: skip
    tier = bench.Tier(name="t", rounds=2, warmup_runs=2, warmup_s=0.0, block_s=0.05)
    for found in bench.measure(cells, images, tier, seed=0, scratch=tmp_path):
        assert not found.failure
        for visit in found.visits:
            assert 0 < visit["transfer_ns"] < np.median(visit["samples_ns"])
            print(
                runtime,
                found.batch,
                np.median(visit["samples_ns"]),
                visit["transfer_ns"],
                json.dumps(visit["effective"]),
            )


def test_the_chain_on_a_gpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    wanted = ["run", "--device", "cuda", "--teacher", "resnet20", "--student", "mobilenet", "--width", "0.25"]
    wanted += ["--kd", "fitnet", "--kd", "crd", "--epochs", "4", "--prune", "0.3", "--quantize", "int8_qat"]
    wanted += ["--target", "cuda", "--runtimes", "ort_cpu,ort_cuda,torch_cuda,torch_cuda_graph"]
    wanted += ["--set", "teacher_epochs=4", "--set", "tier=smoke", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(group, [*wanted, "--set", "least_speedup=0", "--max-drop", "50"])
    assert done.exit_code == 0, done.output
    (report,) = (tmp_path / "out").rglob("report.json")
    cells = {(c["stage"], c["runtime"]): c for c in json.loads(report.read_text())["derived"]["cells"]}
    for runtime in ("torch_cuda", "torch_cuda_graph"):
        assert not cells["teacher", runtime]["failure"]
    for (_, runtime), cell in cells.items():
        assert runtime != "ort_cuda" or not cell["failure"] or catalog.load("runtimes", "ort_cuda").module.unavailable()
