"""The trainer around the methods: adapters that learn, penalties that count, and what is refused before anything is."""

import copy
from pathlib import Path

import pytest
import torch
from test_schedules import learn, noise, peers

from compress import catalog, distill, network, plan, recipe, rehearsal, train
from compress.augment import Augmenter
from compress.errors import UsageError
from compress.execution import Execution
from compress.store import Store
from compress.teacher import Live
from compress.types import Splits

STUDENT, TEACHER = "resnet_cifar:depth=8,channels=8,stem=8", "resnet_cifar:depth=8,channels=16,stem=8"
WITH_ADAPTERS = [n for n in catalog.names("methods") if hasattr(catalog.load("methods", n).module, "adapters")]


def made(spec: str, seed: int) -> network.Network:
    shape = {"class_names": ("a", "b", "c"), "input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}
    return network.build(spec, **shape, seed=seed)


def watched(monkeypatch) -> list[tuple[torch.nn.Module, dict]]:
    """Each set of adapters that the trainer makes, with a copy of how it began."""
    seen, original = [], distill.adapters_of

    def adapters_of(bound):
        found = original(bound)
        seen.append((found, copy.deepcopy(dict(found.named_parameters()))))
        return found

    monkeypatch.setattr(distill, "adapters_of", adapters_of)
    return seen


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_the_trainer_moves_every_parameter_of_the_adapters(name: str, tmp_path: Path, monkeypatch) -> None:
    """The optimizer is made of the student and the adapters: a regressor that stays as it began only looks trained."""
    torch.set_num_threads(1)
    seen = watched(monkeypatch)
    training = distill.Training(
        plan=train.Plan(epochs=2, batch_size=16, learning_rate=0.05), name="test", seed=0,
        student_execution=Execution(channels_last=False), thread_choices=(1,), folder=tmp_path,
    )  # fmt: skip
    student = made(STUDENT, 0)
    keys = list(student.state_dict())
    teacher = Live(made(TEACHER, 1).eval(), Execution(frozen=True))
    distill.distill(student, teacher, (catalog.load("methods", name),), Augmenter(noise()), training)
    [(adapters, before)] = seen
    assert before and [k for k, v in adapters.named_parameters() if torch.equal(v, before[k])] == []
    assert list(student.state_dict()) == keys, "adapters are not part of the student"


def test_peers_move_their_adapters_too(tmp_path: Path, monkeypatch) -> None:
    torch.set_num_threads(1)
    seen = watched(monkeypatch)
    networks = (made(STUDENT, 0), made(STUDENT, 1))
    learn(networks, tmp_path, ("similarity", "vid"), teacher=Live(made(TEACHER, 2).eval(), Execution(frozen=True)))
    for adapters, before in seen:
        assert before and [k for k, v in adapters.named_parameters() if torch.equal(v, before[k])] == []
    assert len(seen) == 2


def test_trees_that_learn_together_keep_their_penalty(tmp_path: Path) -> None:
    """Frosst and Hinton's penalty is part of the objective however the tree is trained: its averages move."""
    trees = peers(2, "soft_tree:depth=3")
    learn(trees, tmp_path, epochs=1)
    assert all(tree.body.branches.abs().sum() > 0 for tree in trees)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(recipe.Recipe(), Store(tmp_path_factory.mktemp("store")))


ENSEMBLE = {"teacher": [STUDENT, TEACHER]}
LONELY = "`shufflenet` cannot be trained with one image a step"
STAGED = ["fitnet:hint_share=0.9", "factor:paraphraser_share=0.2"]


@pytest.mark.parametrize(
    ("values", "said", "hint"),
    [
        ({**ENSEMBLE, "kd": "attention"}, "`attention` reads more than logits, and an ensemble of teachers", "--kd kd"),
        ({**ENSEMBLE, "kd": "attention_gradient"}, "`attention_gradient` reads more than logits", "one network"),
        ({"kd": STAGED}, "fitnet's hint 0.9, factor's", "less than 1"),
        ({"kd": "fitnet:stride=64"}, "no stage of stride 64", "take one of these"),
        ({"student": "shufflenet", "batch_size": 1}, LONELY, "batch_size=2"),
        ({"teacher": "shufflenet", "batch_size": 1}, LONELY, "batch_size=2"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_trains(splits, tmp_path, values, said, hint) -> None:
    common = {"student": STUDENT, "teacher": TEACHER, "kd": "kd", "epochs": 1}
    with pytest.raises(UsageError) as caught:
        rehearsal.try_networks(plan.make(recipe.from_values({**common, **values}), splits), Store(tmp_path))
    print(caught.value)
    assert said in caught.value.message and hint in caught.value.hint


def test_a_net_that_can_learn_from_single_images_may(splits, tmp_path) -> None:
    values = {"student": "mlp:depth=1,hidden=16", "teacher": "mlp:depth=1,hidden=16", "kd": "kd", "batch_size": 1}
    rehearsal.try_networks(plan.make(recipe.from_values(values), splits), Store(tmp_path))


def test_networks_without_a_stage_in_common_are_warned_of(splits, tmp_path, capsys) -> None:
    values = {"student": STUDENT, "teacher": "vgg8", "kd": "similarity"}
    job = plan.make(recipe.from_values(values), splits)
    rehearsal.try_networks(job, Store(tmp_path))
    assert "same stride" not in capsys.readouterr().err
    (ours, theirs), warned = (made("resnet_cifar:depth=8", 0), made("mlp:depth=1,hidden=16", 1)), rehearsal._uncommon
    probed = [rehearsal.taps.probe(net, (1, 8, 8)) for net in (ours, theirs)]
    assert warned(((probed[0].stages[0], probed[0].stages[-1]),)) and not warned(()), "a pair of two strides"
