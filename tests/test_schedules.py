"""Assistants, generations, the refinery and peers: who is taught by whom, with which seed, and what ships."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import chain, distill, mutual, network, pipeline, plan, recipe, schedules, train, training_steps
from compress.augment import Augmenter
from compress.catalog import load
from compress.errors import UsageError
from compress.execution import Execution
from compress.store import Step, Store
from compress.teacher import Live
from compress.types import Dataset, Splits

TINY = "mlp:depth=1,hidden=16"


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(recipe.Recipe(), Store(tmp_path_factory.mktemp("store")))


def job(splits: Splits, **values: object) -> plan.Job:
    return plan.make(recipe.from_values({"student": TINY, "teacher": TINY, "kd": "kd", "epochs": 1, **values}), splits)


class Calls:
    """The trainings that a schedule asks for, without doing them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[dict[str, Any]] = []
        monkeypatch.setattr(training_steps, "train_step", self.step)

    def step(self, job, store, name, net, teachers, methods, plan, *, seed, **rest) -> Step:
        self.made.append(
            {
                "name": name,
                "net": net.contract.spec.partition(",")[0],
                "teachers": [step.key for step in teachers],
                "methods": [method.label for method in methods],
                "seed": seed,
                "weights": network.digest(net),
            }
        )
        return Step(folder=Path(name), key=name, facts={}, reused=False)


TEACHER = (Step(folder=Path("t"), key="the teacher", facts={}, reused=False),)


def test_each_assistant_is_taught_by_the_one_before(splits, tmp_path, monkeypatch) -> None:
    calls = Calls(monkeypatch)
    made = job(splits, assistant="mlp:depth=3;mlp:depth=2", kd="kd:temperature=2")
    found = list(schedules.students(made, Store(tmp_path), TEACHER))
    assert [one.stage for one in found] == ["assistant-1", "assistant-2", "distilled"]
    assert [one.parent for one in found] == ["teacher", "assistant-1", "assistant-2"]
    assert [call["teachers"] for call in calls.made] == [["the teacher"], ["assistant-1"], ["assistant-2"]]
    assert [call["net"] for call in calls.made] == ["mlp:depth=3", "mlp:depth=2", "mlp:depth=1"]
    assert all(call["methods"] == ["kd:temperature=2"] for call in calls.made)
    assert [one.candidate for one in found] == [False, False, True]


def test_generations_are_new_networks_taught_by_the_last_one_alone_without_labels(
    splits, tmp_path, monkeypatch
) -> None:
    calls = Calls(monkeypatch)
    found = list(schedules.students(job(splits, generations=3), Store(tmp_path), TEACHER))
    assert [one.stage for one in found] == ["distilled", "generation-1", "generation-2", "generation-3"]
    assert [call["teachers"] for call in calls.made] == [
        ["the teacher"], ["distilled"], ["generation-1"], ["generation-2"],
    ]  # fmt: skip
    assert len({call["weights"] for call in calls.made}) == len({call["seed"] for call in calls.made}) == 4
    assert all(call["methods"] == ["kd:temperature=1,ce_weight=0,kd_weight=1"] for call in calls.made[1:])
    assert len({call["net"] for call in calls.made}) == 1 and all(one.candidate for one in found)


def test_generations_do_not_look_for_the_modules_of_the_first_teacher(splits, tmp_path, monkeypatch) -> None:
    pairings = []
    monkeypatch.setattr(
        training_steps, "train_step", lambda job, store, name, *rest, **options: (
            pairings.append(job.recipe.pairing), Step(folder=Path(name), key=name, facts={}, reused=False)
        )[1],
    )  # fmt: skip
    list(schedules.students(job(splits, generations=1, pairing="body.a=body.b"), Store(tmp_path), TEACHER))
    assert pairings == [("body.a=body.b",), ("stride",)]


def test_who_stops_asking_stops_the_training(splits, tmp_path, monkeypatch) -> None:
    calls = Calls(monkeypatch)
    lazy: Iterator = schedules.students(job(splits, generations=9), Store(tmp_path), TEACHER)
    next(lazy), next(lazy)
    assert [call["name"] for call in calls.made] == ["distilled", "generation-1"]


@pytest.mark.parametrize(
    ("correct", "refine", "stages", "kept"),
    [
        ([5, 7, 6, 9], False, 4, "generation-3"),
        ([5, 7, 6, 9], True, 3, "generation-1"),
        ([5, 5, 9, 9], True, 2, "distilled"),
        ([5, 5, 5, 5], False, 4, "distilled"),
    ],
)
def test_the_best_generation_on_select_is_kept_and_the_refinery_ends_in_time(
    splits, tmp_path, monkeypatch, correct, refine, stages, kept
) -> None:
    Calls(monkeypatch)
    results = iter(correct)

    def exported(job, store, stage, step, **options) -> chain.Link:
        artifact = dataclasses.make_dataclass("A", ["stage"])(stage)
        assert options["baseline"].artifact.stage == options["parent"]
        return chain.Link(
            artifact=artifact, parent=options["parent"], what="", step=step, select={"correct": next(results)}
        )

    monkeypatch.setattr(chain, "_exported", exported)
    averaged: list[list[str]] = []
    monkeypatch.setattr(
        chain, "_ensemble", lambda job, store, members, best: averaged.append([m.artifact.stage for m in members])
    )
    teacher = chain.Link(
        artifact=dataclasses.make_dataclass("A", ["stage"])("teacher"), parent="", what="", step=TEACHER[0]
    )
    made = job(splits, generations=3, refine=refine)
    links = [link for link in chain._students(made, Store(tmp_path), teacher, TEACHER) if link]
    wanted = [f"generation-{number}" for number in range(1, stages)]
    assert averaged == ([wanted] if len(wanted) > 1 else [])
    assert len(links) == stages
    assert [link.artifact.stage for link in links if link.kept] == [kept]
    assert all(kept in link.reason for link in links if not link.kept)


def test_a_refinery_without_generations_is_explained() -> None:
    with pytest.raises(UsageError, match="generations") as caught:
        recipe.Recipe(refine=True)
    print(caught.value)


def noise(n: int = 48) -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    images = (rng.integers(0, 150, (n, 8, 8, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset(
        name="noise", split="train", images=images, labels=labels, class_names=("a", "b", "c"), mean=(0.5,),
        std=(0.25,), may_flip=False, digest="",
    )  # fmt: skip


def peers(count: int = 2, spec: str = "mlp:depth=1,hidden=16") -> tuple[network.Network, ...]:
    torch.set_num_threads(1)
    return tuple(
        network.build(spec, class_names=("a", "b", "c"), input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,), seed=seed)
        for seed in range(count)
    )


def learn(
    networks, folder: Path, methods: tuple[str, ...] = ("cross_entropy",), epochs: float = 3, lr: float = 0.05,
    teacher: Live | None = None, device: str = "cpu",
):  # fmt: skip
    plain = Execution(channels_last=False)
    training = distill.Training(
        plan=train.Plan(epochs=epochs, batch_size=16, learning_rate=lr, weight_decay=0.0), name="peers", seed=0,
        student_execution=plain, thread_choices=(1,), folder=folder, device=device,
    )  # fmt: skip
    entries = tuple(load("methods", spec) for spec in methods)
    return mutual.learn(networks, (plain,) * len(networks), teacher, entries, Augmenter(noise()), training)


def test_the_mutual_loss_is_the_papers_and_nothing_flows_into_a_peer() -> None:
    logits = [torch.randn(8, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    total = mutual.mutual_loss(logits[0], logits[1:])
    p = [torch.softmax(z, 1).detach().numpy() for z in logits]
    wanted = sum((p[k] * np.log(p[k] / p[0])).sum(1).mean() for k in (1, 2)) / 2
    assert total.item() == pytest.approx(wanted, rel=1e-12)
    total.backward()
    assert logits[0].grad is not None and logits[1].grad is None and logits[2].grad is None


def test_peers_learn_together_from_one_forward_each(tmp_path, monkeypatch) -> None:
    networks = peers(3)
    before = [network.digest(net) for net in networks]
    passes: list[int] = []
    for number, net in enumerate(networks):
        net.register_forward_hook(lambda *_, number=number: passes.append(number))
    facts = learn(networks, tmp_path, epochs=1)
    probes = 3  # each network is probed once, in eval mode
    assert facts["phases"]["main"]["steps"] == 3 and len(passes) == probes + 3 * 3
    assert all(network.digest(net) != old for net, old in zip(networks, before, strict=True))
    assert all(not net.training for net in networks)


def test_one_step_of_a_peer_is_that_of_its_own_objective(tmp_path) -> None:
    """The sum of all objectives, with constants for the others, must not change what one network learns."""
    together, alone = peers(2), peers(2)
    learn(together, tmp_path, epochs=1 / 3)
    augmenter, labels = Augmenter(noise()), noise().labels
    from compress import sampling

    index = sampling.epoch_order(0, 0, 48)[:16]
    batch = augmenter.batch(index, sampling.views(0, 0, index))
    own, other = (net.train()(batch.inputs) for net in alone)
    target = torch.from_numpy(labels[index])
    loss = torch.nn.functional.cross_entropy(own, target) + mutual.mutual_loss(own, [other])
    loss.backward()
    # the rate of cross-entropy is divided by the size of the objective, and a first step is at 2 % of the peak
    plan_ = train.Plan(epochs=1 / 3, batch_size=16, learning_rate=0.05 / 2, weight_decay=0.0)
    rate = train.learning_rate_at(plan_, 0.0) * (1 + plan_.momentum)  # Nesterov's first step
    for after, start in zip(together[0].parameters(), alone[0].parameters(), strict=True):
        assert torch.allclose(after, start - rate * start.grad, atol=1e-7)


def test_peers_share_the_rate_that_their_kind_wants() -> None:
    trees, others = peers(2, "soft_tree"), peers(1)
    assert mutual.common_rate_factor(trees) == 20 and mutual.common_rate_factor(others) == 1
    with pytest.raises(UsageError, match="learning rate") as caught:
        mutual.common_rate_factor(trees + others)
    print(caught.value)


def test_methods_with_stages_are_refused_for_peers(tmp_path) -> None:
    nets = peers(2, "resnet_cifar:depth=8,stem=8,channels=8")
    bound = distill.bind(
        (load("methods", "fitnet"),),
        distill.setting_of(
            *(mutual.taps.probe(net, (1, 8, 8)) for net in nets), noise(), 16
        ),
        0,
    )  # fmt: skip
    with pytest.raises(UsageError, match="`fitnet`.*stages") as caught:
        mutual.refuse_stages(bound)
    print(caught.value)


@pytest.mark.slow
def test_the_whole_chain_with_assistant_peer_and_generations(splits, tmp_path) -> None:
    common = {
        "student": TINY, "teacher": "mlp:depth=2,hidden=64", "kd": "kd", "epochs": 2, "teacher_epochs": 2,
        "runtimes": "ort_cpu", "out": str(tmp_path),
    }  # fmt: skip
    store = Store(tmp_path / "store")
    chosen = recipe.from_values({**common, "assistant": "mlp:depth=1,hidden=32", "generations": 2, "name": "chain"})
    result = pipeline.run(chosen, store=store)
    stages = {artifact["stage"]: artifact for artifact in result.document["artifacts"]}
    assert list(stages) == ["teacher", "assistant-1", "distilled", "generation-1", "generation-2", "ensemble"]
    assert stages["ensemble"]["macs"] == 2 * stages["generation-1"]["macs"] and not stages["ensemble"]["file"]
    assert stages["ensemble"]["parity"]["max_difference_of_spread"] < 1e-5
    counted = {row["stage"]: row for row in result.document["accuracy"]}
    assert counted["ensemble"]["n"] == 359
    decided = {stage["name"]: stage for stage in result.document["stages"]}
    kept = [name for name, stage in decided.items() if stage["decision"] == "kept" and stage["parent"]]
    assert decided["ensemble"]["parent"] == kept[-1] and decided["ensemble"]["decision"] == "dropped"
    assert decided["generation-2"]["select"]["parent_correct"] == decided["generation-1"]["select"]["correct"]
    shipped = {a["file"] for a in result.document["artifacts"] if a["file"]}
    assert shipped == {"teacher.onnx", "student.onnx"}
    assert pipeline.run(chosen, store=store).reused
    together = pipeline.run(recipe.from_values({**common, "peer": TINY, "name": "peers"}), store=store)
    assert {a["stage"] for a in together.document["artifacts"]} == {"teacher", "peer-1", "distilled"}
    assert pipeline.dry_run(recipe.from_values({**common, "peer": TINY, "name": "more"}), store=store)
