"""A run that is killed after every single step, each time in another process, ends bit for bit like one that was not.

The negative controls change one element of what a checkpoint holds: if the end were still the same, the test of the
whole would be blind to it.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compress import answers, augment, catalog, distill, network, prune, sparse, train
from compress.execution import Execution
from compress.teacher import Kept, Live
from compress.types import Dataset

SHAPE, CLASSES = (3, 8, 8), ("a", "b", "c")
PLAN = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
SCENARIOS: dict[str, dict[str, Any]] = {
    "sgd": {"student": "resnet_cifar:depth=8,stem=8,channels=8", "plan": PLAN},
    "adamw": {
        "student": "resnet_cifar:depth=8,stem=8,channels=8",
        "plan": {**PLAN, "optimizer": "adamw", "schedule": "onecycle", "learning_rate": 0.01},
    },
    "ema": {"student": "resnet_cifar:depth=8,stem=8,channels=8", "plan": {**PLAN, "ema": 0.7}},
    "dropout in bfloat16": {
        "student": "mobilenet:width=0.25,dropout=0.5",
        "plan": PLAN,
        "execution": {"precision": "bfloat16", "channels_last": True},
    },
    "fitnet": {
        "student": "mobilenet:width=0.25",
        "methods": ["fitnet:hint_share=0.5", "kd"],
        "plan": {**PLAN, "ema": 0.5},
    },
    "pruned": {"student": "resnet_cifar:depth=8", "prune": 0.5, "methods": ["kd"], "plan": {**PLAN, "ema": 0.7}},
    "held zeros": {
        "student": "resnet_cifar:depth=8,stem=8,channels=8",
        "thin": 0.6,
        "methods": ["kd"],
        "plan": {**PLAN, "ema": 0.7},
    },
    "kept answers": {
        "student": "resnet_cifar:depth=8,stem=8,channels=8",
        "methods": ["kd"],
        "plan": {**PLAN, "views": 1},  # the second epoch finds what the first has kept, in other batches
        "keep": True,
    },
}
STEPS = 6  # two epochs of 48 images in batches of 16


def data() -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 48)
    images = (rng.integers(0, 200, (48, *SHAPE[1:], 3)) + 20 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset(
        name="noise", split="train", images=images, labels=labels, class_names=CLASSES, mean=(0.5,) * 3,
        std=(0.25,) * 3, may_flip=True, digest="",
    )  # fmt: skip


def make(spec: str, seed: int = 0) -> network.Network:
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return network.build(spec, class_names=CLASSES, input_shape=SHAPE, **statistics, seed=seed)


def run(scenario: dict[str, Any], folder: Path) -> str:
    """Train as the scenario says, from what lies in `folder`; the digest of the student at the end."""
    torch.set_num_threads(1)
    student, teacher = make(scenario["student"]), make("resnet_cifar:depth=8", seed=1)
    if "prune" in scenario:
        student = prune.prune(student, catalog.load("pruners", "magnitude"), scenario["prune"])
    if "thin" in scenario:
        student = sparse.thin(student, catalog.load("pruners", "unstructured"), scenario["thin"])
    methods = tuple(catalog.load("methods", spec) for spec in scenario.get("methods", ["cross_entropy"]))
    training = distill.Training(
        plan=train.Plan(**scenario["plan"]),
        name="test",
        seed=0,
        student_execution=Execution(**scenario.get("execution", {"channels_last": False})),
        thread_choices=(1,),
        folder=folder,
        hold_zeros="thin" in scenario,
    )
    live: Live | Kept = Live(teacher, Execution(frozen=True))
    if scenario.get("keep"):
        file = answers.AnswerFile(folder / "kept", {}, count=len(data().labels), classes=len(CLASSES), views=2)
        live = Kept(live, file, seconds_per_image=0.0)
    asked = live if distill.needs_teacher(methods) else None
    distill.distill(student, asked, methods, augment.Augmenter(data()), training)
    return network.digest(student)


def die_after(steps: int) -> None:
    """This process keeps every step that it trains, and is killed before one more than so many."""
    train.CHECKPOINT_EVERY_S = -1.0
    left, original = [steps], augment.Augmenter.batch

    def batch(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    augment.Augmenter.batch = batch


def child(name: str, folder: str, last_step: str) -> None:
    """One process: at most `last_step` steps, then killed; prints the digest if it gets to the end."""
    die_after(int(last_step))
    print(run(SCENARIOS[name], Path(folder)), flush=True)


def killed_after_every_step(root: str) -> None:
    """For each scenario a chain of processes that do one step each, forked from one that never computed anything."""
    for module in ("torch_pruning", "torchvision"):
        importlib.import_module(module)  # once, not in every child
    for name in SCENARIOS:
        folder = _new(Path(root) / name)
        print(f"scenario {name}", flush=True)
        for _ in range(STEPS + 3):
            pid = os.fork()
            if pid == 0:
                child(name, str(folder), "1")
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            print("end" if status == 0 else f"signal {os.WTERMSIG(status)}", flush=True)
            if status == 0:
                break


def in_a_process(function: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, function, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    return [*done.stdout.split("\n")[:-1], f"exit {done.returncode}", *([done.stderr] if done.returncode > 0 else [])]


@pytest.fixture(scope="module")
def endings(tmp_path_factory) -> dict[str, list[str]]:
    """What the chains of killed processes said, by scenario."""
    lines = in_a_process("killed_after_every_step", str(tmp_path_factory.mktemp("killed")))
    assert lines[-1] == "exit 0", lines
    text = "\n".join(lines[:-1])
    return {part.split("\n")[0]: part.split("\n")[1:] for part in text.split("scenario ")[1:]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_after_every_step_it_ends_the_same(name: str, endings: dict[str, list[str]], tmp_path: Path) -> None:
    straight = run(SCENARIOS[name], tmp_path)
    *kills, digest, end = [line for line in endings[name] if line]
    # five kills with steps left; a process whose work is finished is killed no more
    assert kills == ["signal 9"] * 5 and end == "end"
    assert digest == straight
    assert straight != network.digest(make(SCENARIOS[name]["student"]))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_fresh_interpreters_end_the_same_too(tmp_path: Path) -> None:
    folder = _new(tmp_path / "killed")
    assert in_a_process("child", "fitnet", str(folder), "4") == ["exit -9"]
    assert {p.name for p in folder.iterdir()} == {"checkpoint-hint.safetensors", "checkpoint-main.safetensors"}
    assert in_a_process("child", "fitnet", str(folder), "9") == [
        run(SCENARIOS["fitnet"], _new(tmp_path / "straight")),
        "exit 0",
    ]


def rewrite(path: Path, change) -> None:
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    change(header, tensors)
    save_file(tensors, path, header)


def nudge(key: str):
    def change(header: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        found = [k for k in tensors if k.startswith(key.partition("*")[0]) and k.endswith(key.partition("*")[2])]
        assert found, sorted(tensors)
        tensors[found[0]].view(-1)[0] += 1

    return change


def header(key: str, value: int):
    return lambda head, tensors: head.update({key: json.dumps(value)})


CONTROLS = {
    "nothing": ("sgd", lambda head, tensors: None, True),
    "weight": ("sgd", nudge("module/student.body.conv1.weight"), False),
    "statistics": ("sgd", nudge("module/student.body.bn1.running_mean"), False),
    "momentum": ("sgd", nudge("optimizer/0/momentum_buffer"), False),
    "step": ("sgd", header("step", 3), False),
    "first moment": ("adamw", nudge("optimizer/0/exp_avg"), False),
    "second moment": ("adamw", nudge("optimizer/*exp_avg_sq"), False),
    "adam's step": ("adamw", nudge("optimizer/0/step"), False),
    "average": ("ema", nudge("average/student.body.conv1.weight"), False),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_each_part_of_a_checkpoint_matters(what: str, tmp_path: Path, monkeypatch) -> None:
    name, change, same = CONTROLS[what]
    straight = run(SCENARIOS[name], _new(tmp_path / "straight"))
    stopped = _stop_after(4, SCENARIOS[name], _new(tmp_path / "stopped"), monkeypatch)
    rewrite(stopped, change)
    assert (run(SCENARIOS[name], tmp_path / "stopped") == straight) == same


def _stop_after(steps: int, scenario: dict[str, Any], folder: Path, monkeypatch) -> Path:
    left, original = iter(range(steps, -1, -1)), augment.Augmenter.batch

    def batch(*arguments, **options):
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(augment.Augmenter, "batch", batch)
        with pytest.raises(train.Interrupted, match=f"step {steps} of {STEPS}"):
            run(scenario, folder)
    return folder / "checkpoint-main.safetensors"


def test_a_finished_run_goes_on_to_the_same_end_without_a_step(tmp_path: Path, monkeypatch) -> None:
    first = run(SCENARIOS["fitnet"], tmp_path)
    monkeypatch.setattr(augment.Augmenter, "batch", lambda *_: pytest.fail("a step was made again"))
    assert run(SCENARIOS["fitnet"], tmp_path) == first


def test_a_checkpoint_holds_tensors_and_a_header_only(tmp_path: Path) -> None:
    run(SCENARIOS["ema"], tmp_path)
    with safe_open(tmp_path / "checkpoint-main.safetensors", "pt") as file:
        assert json.loads(file.metadata()["step"]) == STEPS
        assert {k.partition("/")[0] for k in file.keys()} == {"module", "optimizer", "average"}  # noqa: SIM118


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
