"""Transfer sets: classes left out, images without labels, and the bias that gives a missing class its chance back."""

import dataclasses
import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress import bias, network, pipeline, plan, recipe, rehearsal
from compress.errors import InputRejected, UsageError
from compress.store import Store
from compress.transfer import read_unlabelled, transfer_set
from compress.types import Splits


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(recipe.Recipe(), Store(tmp_path_factory.mktemp("store")))


def test_a_class_that_is_left_out_is_gone_from_the_transfer_set_only(splits: Splits) -> None:
    made = transfer_set(splits.train, ("3",), None)
    assert 3 not in made.labels and set(made.labels) == set(range(10)) - {3}
    assert len(made.labels) == (splits.train.labels != 3).sum() and made.class_names == splits.train.class_names
    assert made.digest != splits.train.digest and made.mean == splits.train.mean and 3 in splits.train.labels
    kept = splits.train.images[splits.train.labels != 3]
    assert np.array_equal(made.images, kept)


def test_images_without_labels_come_after_and_have_minus_one(splits: Splits) -> None:
    more = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    made = transfer_set(splits.train, (), more)
    assert (made.labels[-7:] == -1).all() and np.array_equal(made.images[-7:], more)
    assert np.array_equal(made.labels[:-7], splits.train.labels)
    only = transfer_set(splits.train, splits.train.class_names, more)
    assert len(only.labels) == 7


def test_bad_transfer_sets_are_explained(splits: Splits) -> None:
    with pytest.raises(UsageError, match="--transfer-lacks") as caught:
        transfer_set(splits.train, ("thre",), None)
    print(caught.value)
    with pytest.raises(InputRejected, match="lacks every class") as refused:
        transfer_set(splits.train, splits.train.class_names, None)
    print(refused.value)


def test_every_image_below_a_folder_is_read_in_the_datas_size_and_colours(splits: Splits, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (8, 8)), ("deep/er/b.jpg", (20, 12, 3)), ("deep/c.bmp", (8, 8, 3))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "in" / name)
    shown: list[tuple[int, int]] = []
    found = read_unlabelled(tmp_path / "in", splits.train, tmp_path / "cache", lambda *counts: shown.append(counts))
    assert found.shape == (3, 8, 8, 1) and found.dtype == np.uint8 and shown[-1] == (3, 3)
    assert np.array_equal(found[0, ..., 0], np.asarray(Image.open(tmp_path / "in" / "a.png")))
    again = read_unlabelled(tmp_path / "in", splits.train, tmp_path / "cache", lambda *_: pytest.fail("decoded twice"))
    assert np.array_equal(again, found)
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputRejected, match="torn.png") as caught:
        read_unlabelled(tmp_path / "in", splits.train, tmp_path / "cache", lambda *_: None)
    print(caught.value)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputRejected, match=folder.name):
            read_unlabelled(folder, splits.train, tmp_path / "cache", lambda *_: None)


def brute_force(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> int:
    best = 0
    for shift in np.linspace(-40, 40, 4001):
        raised = logits.copy()
        raised[:, classes] += shift
        best = max(best, int((raised.argmax(1) == labels).sum()))
    return best


@pytest.mark.parametrize("classes", [[3], [0, 7]])
@pytest.mark.parametrize("seed", range(4))
def test_the_shift_gives_as_many_right_answers_as_any(classes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 200)
    logits = rng.normal(0, 2, (200, 10)) + 3 * np.eye(10)[labels]
    logits[:, classes] -= 4.0
    shift, before, after = bias.best_shift(logits, labels, np.array(classes))
    raised = logits.copy()
    raised[:, classes] += shift
    assert after == (raised.argmax(1) == labels).sum() == brute_force(logits, labels, np.array(classes))
    assert before == (logits.argmax(1) == labels).sum() < after and shift == pytest.approx(4, abs=2.5)
    assert doctest.testmod(bias).failed == 0


def make(spec: str) -> network.Network:
    return network.build(
        spec, class_names=tuple("0123456789"), input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,), seed=0
    ).eval()


@pytest.mark.parametrize("spec", ["mobilenet:width=0.25", "resnet_cifar:depth=8", "mlp"])
def test_a_shifted_network_differs_in_these_logits_alone(spec: str) -> None:
    net, classes = make(spec), np.array([3, 5])
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        difference = bias.shifted(net, classes, 1.5)(images) - net(images)
    expected = torch.zeros(10)
    expected[[3, 5]] = 1.5
    assert torch.allclose(difference, expected.expand(4, 10), atol=1e-5)


def test_a_student_without_a_bias_is_refused_before_any_training(splits: Splits) -> None:
    with pytest.raises(UsageError, match="`soft_tree`.*bias") as caught:
        bias.layer_of(make("soft_tree"))
    print(caught.value)


@pytest.mark.slow
def test_a_student_that_never_saw_a_class_learns_it_from_its_teacher(tmp_path: Path) -> None:
    """Hinton's experiment on digits: without a 3 in the transfer set, and with the bias of 3 corrected."""
    common = {
        "student": "mlp:depth=1,hidden=100", "teacher": "mlp:depth=1,hidden=400", "epochs": 15, "teacher_epochs": 15,
        "learning_rate": 0.1,
        "runtimes": "ort_cpu", "kd": "kd:temperature=8,ce_weight=0,kd_weight=1", "transfer_lacks": "3",
        "out": str(tmp_path), "name": "without-3",
    }  # fmt: skip
    result = pipeline.run(recipe.from_values(common), store=Store(tmp_path / "store"))
    stages = [s["name"] for s in result.document["stages"]]
    assert stages == ["teacher", "distilled", "corrected"]
    correct = {row["stage"]: row["correct"] for row in result.document["accuracy"]}
    threes = int((plan.load_data(recipe.Recipe(), Store(tmp_path / "store")).report.labels == 3).sum())
    # who never answers 3 gets none of these right
    assert correct["corrected"] > 359 - threes + 5, correct
    facts = result.document["stages"][2]
    assert "raised by" in facts["what"], facts


def refused(splits: Splits, tmp_path: Path, **values: object) -> UsageError:
    """What a run with this recipe says before it trains anything."""
    common = {"student": "resnet_cifar:depth=8,stem=8,channels=8", "teacher": "resnet20", "epochs": 1, "name": "no"}
    job = plan.make(recipe.from_values({**common, **values}), splits)
    with pytest.raises(UsageError) as caught:
        rehearsal.try_networks(job, Store(tmp_path))
    print(caught.value)
    return caught.value


@pytest.mark.parametrize("kd", ["cross_entropy", "attention", "rkd", "crd;vid", "kd:kd_weight=0"])
def test_images_without_labels_want_a_method_that_teaches_answers(kd: str, splits: Splits, tmp_path: Path) -> None:
    unlabelled = transfer_set(splits.train, splits.train.class_names, splits.train.images[:40])
    error = refused(dataclasses.replace(splits, transfer=unlabelled), tmp_path, kd=kd)
    assert "labels alone" in error.message and "--kd kd" in error.hint


def test_mixtures_want_a_method_that_teaches_answers(splits: Splits, tmp_path: Path) -> None:
    assert "mixed" in refused(splits, tmp_path, kd="attention", mixup=1.0).message
    assert "crd" in refused(splits, tmp_path, kd="kd;crd", mixup=0.5).message
    for kd, share in (("attention", 0.5), ("attention;kd", 1.0), ("dist", 1.0), ("fitnet", 1.0)):
        common = {"student": "resnet_cifar:depth=8", "teacher": "resnet20", "kd": kd, "mixup": share}
        rehearsal.try_networks(plan.make(recipe.from_values(common), splits), Store(tmp_path))


@pytest.mark.parametrize("kd", ["logits", "noisy"])
def test_regression_on_a_mean_of_probabilities_is_refused(kd: str, splits: Splits, tmp_path: Path) -> None:
    error = refused(splits, tmp_path, kd=kd, teacher="resnet20;resnet32")
    assert "probabilities" in error.message and "ensemble=logits" in error.hint


@pytest.mark.parametrize("values", [{"keep_answers": False}, {"mixup": 0.5}])
def test_views_are_endless_where_no_answers_are_kept(values: dict[str, object], splits: Splits) -> None:
    assert plan.make(recipe.from_values(values), splits).recipe.views == 2**31
    assert plan.make(recipe.Recipe(), splits).recipe.views <= plan.MOST_VIEWS


def folder_without_threes(splits: Splits, root: Path) -> Path:
    """Digits as a folder whose train split has no 3."""
    for name, part in (("train", splits.train), ("val", splits.select), ("test", splits.report)):
        for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            if name == "train" and (label == 3 or i % 4):
                continue
            path = root / name / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    return root


def test_a_folder_whose_train_split_lacks_a_class_wants_a_teacher_that_knows_it(splits: Splits, tmp_path: Path) -> None:
    root, store = folder_without_threes(splits, tmp_path / "d"), Store(tmp_path / "store")
    chosen = recipe.from_values({"data": str(root), "transfer_lacks": "3", "student": "mlp", "teacher": "mlp"})
    found = plan.load_data(chosen, store)
    assert found.train.class_names == splits.train.class_names and 3 not in found.train.labels
    with pytest.raises(InputRejected, match="a teacher that is trained here") as caught:
        plan.make(chosen, found)
    print(caught.value)
    network.save(make("mlp"), tmp_path / "net")
    weights = str(tmp_path / "net" / "weights.safetensors")
    known = dataclasses.replace(chosen, teacher_checkpoint=(weights,))
    assert plan.make(known, found).transfer.class_names == splits.train.class_names
    blind = dataclasses.replace(found, select=dataclasses.replace(found.select, labels=found.train.labels))
    with pytest.raises(InputRejected, match="select has none") as caught:
        plan.make(known, blind)
    print(caught.value)
