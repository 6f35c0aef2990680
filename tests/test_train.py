"""The loop: schedules, parameter groups and batches; it learns; it stops when the numbers break or a signal comes."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from compress import augment, network, plan, train
from compress.errors import InputRejected, TrainingDiverged
from compress.execution import Execution
from compress.losses import hard_label_loss
from compress.recipe import Recipe
from compress.store import Store
from compress.train import Interrupted, Plan
from compress.types import Batch, Dataset, Splits

TINY = "resnet_cifar:depth=8,stem=8,channels=8"


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    torch.set_num_threads(1)
    return plan.load_data(Recipe(), Store(tmp_path_factory.mktemp("store")))


def make(split: Dataset, seed: int = 0) -> network.Network:
    return network.build(
        TINY,
        class_names=split.class_names,
        input_shape=split.input_shape,
        mean=split.mean,
        std=split.std,
        seed=seed,
    )


def fit(net: nn.Module, split: Dataset, plan_: Plan, folder: Path, loss_of=None, seed: int = 0, **options):
    return train.fit(
        "test",
        net,
        loss_of or (lambda batch: hard_label_loss(net(batch.inputs), batch.labels)),
        augment.Augmenter(split),
        plan_,
        seed=seed,
        threads=1,
        checkpoint=folder / "checkpoint.safetensors",
        **{"thread_choices": (1,), **options},
    )


def part(split: Dataset, count: int) -> Dataset:
    return Dataset(**{**vars(split), "images": split.images[:count], "labels": split.labels[:count]})


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)


def test_a_step_leaves_nothing_behind_in_torch(splits: Splits, tmp_path: Path, monkeypatch) -> None:
    """`torch.manual_seed` formats the stack for each kind of device that has not been started, and keeps it."""
    kept = []
    monkeypatch.setattr("traceback.format_stack", lambda *_: kept.append("stack") or [])
    net = make(splits.train)
    if not kept:
        pytest.skip("this torch keeps no stacks")
    kept.clear()
    fit(net, part(splits.train, 64), Plan(epochs=2, batch_size=32), tmp_path)
    assert not kept


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_lie_as_the_execution_says_whatever_their_channels(channels: int, channels_last: bool) -> None:
    images = torch.arange(2.0 * channels * 12).reshape(2, 4, 3, channels).permute(0, 3, 1, 2)
    arranged = Execution(channels_last=channels_last).arrange(images)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grown = torch.nn.functional.conv2d(arranged, torch.ones(2, channels, 1, 1))
    assert torch.equal(arranged, images) and arranged.is_contiguous(memory_format=layout)
    # what a layer makes of it lies so too
    assert grown.is_contiguous(memory_format=layout) and grown.stride(1) == (1 if channels_last else 12)


def test_it_learns_digits(splits: Splits, tmp_path: Path) -> None:
    net = make(splits.train)
    facts = fit(net, splits.train, Plan(epochs=5, batch_size=32, learning_rate=0.2), tmp_path)
    logits = train.predict(net, splits.select.images)
    right = (logits.argmax(1) == splits.select.labels).mean()
    # some 96 % are usual after five epochs; chance is 10 %
    assert right > 0.9
    steps = len(splits.train.labels) // 32 * 5
    assert facts["steps"] == steps and facts["curve"]["step"][-1] == steps
    assert np.mean(facts["curve"]["loss"][-20:]) < 0.5 < 2 < facts["curve"]["loss"][0]
    assert logits.dtype == np.float32 and facts["threads"] == 1 and facts["images_per_second"] > 0


def test_predict_sees_every_image_once_whatever_the_batch(splits: Splits) -> None:
    net = make(splits.train)
    images = splits.select.images[:13]
    whole = train.predict(net.train(), images)
    assert whole.shape == (13, 10) and not net.training
    for size in (1, 5, 13):
        # one image at a time takes other kernels: a few units of float32 rounding
        assert np.allclose(train.predict(net, images, batch_size=size), whole, atol=1e-5)


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.1), ("onecycle", 0.3)])
def test_the_rate_rises_and_falls(schedule: str, warmup: float) -> None:
    plan_ = Plan(epochs=1, learning_rate=0.2, schedule=schedule)
    at = {p: train.learning_rate_at(plan_, p) for p in (0, warmup / 2, warmup, (1 + warmup) / 2, 1)}
    expected = (0.2 * 0.02, 0.2 * 0.51, 0.2, 0.1, 0.0)
    assert list(at.values()) == pytest.approx(expected, abs=1e-12)


def test_the_rate_is_the_plans_whatever_the_batch() -> None:
    for batch_size in (8, 32, 128):
        assert train.learning_rate_at(Plan(epochs=1, schedule="constant", batch_size=batch_size), 0.5) == 0.1


@pytest.mark.parametrize(
    ("epochs", "batch_size", "images", "steps"),
    [
        (2, 10, 100, (20, 10)),
        (2, 10, 109, (20, 10)),
        (0.25, 10, 100, (2, 10)),
        (3, 64, 10, (3, 1)),
        (0.01, 4, 8, (1, 2)),
    ],
)
def test_steps_are_whole_batches(epochs, batch_size, images, steps) -> None:
    assert Plan(epochs=epochs, batch_size=batch_size).steps(images) == steps


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(37, 10, [10] * 6), (7, 10, [7] * 2)])
def test_the_incomplete_batch_is_left_out_and_no_sample_comes_twice(count, batch_size, sizes, splits, tmp_path) -> None:
    net = make(splits.train)
    seen: list[Batch] = []

    def loss_of(batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return hard_label_loss(net(batch.inputs), batch.labels)

    split = part(splits.train, count)
    fit(net, split, Plan(epochs=2, batch_size=batch_size), tmp_path, loss_of)
    assert [len(b.index) for b in seen] == sizes
    epochs = [np.concatenate([b.index for b in half]) for half in (seen[: len(sizes) // 2], seen[len(sizes) // 2 :])]
    assert all(len(set(e.tolist())) == len(e) for e in epochs)
    assert not np.array_equal(*epochs), "every epoch has an order of its own"
    assert [b.progress for b in seen] == pytest.approx([i / len(sizes) for i in range(len(sizes))])
    assert all(np.array_equal(b.labels.numpy(), split.labels[b.index.astype(int)]) for b in seen)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_matrices_and_kernels_decay(optimizer: str, splits: Splits) -> None:
    net = make(splits.train)
    net.body.bn1.weight.requires_grad_(False)
    made = train.make_optimizer(Plan(epochs=1, optimizer=optimizer, weight_decay=0.25), net)
    decayed, free = made.param_groups
    assert decayed["weight_decay"] == 0.25 and free["weight_decay"] == 0.0
    ids = {id(p) for p in decayed["params"]}, {id(p) for p in free["params"]}
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert id(module.weight) in ids[0]
        if isinstance(module, nn.BatchNorm2d) and module is not net.body.bn1:
            assert {id(module.weight), id(module.bias)} <= ids[1]
    assert id(net.body.linear.bias) in ids[1] and id(net.body.bn1.weight) not in ids[0] | ids[1]
    assert sum(map(len, ids)) == len(list(net.parameters())) - 1


def test_one_step_is_the_textbooks(splits: Splits, tmp_path: Path) -> None:
    net, rate = make(splits.train), 0.1
    weight, vector = net.body.conv1.weight, net.body.bn1.weight
    before = weight.detach().clone(), vector.detach().clone()
    gradients: list[torch.Tensor] = []

    def loss_of(batch: Batch) -> torch.Tensor:
        loss = hard_label_loss(net(batch.inputs), batch.labels)
        gradients.extend(torch.autograd.grad(loss, (weight, vector), retain_graph=True))
        return loss

    fit(
        net,
        part(splits.train, 8),
        Plan(epochs=1, batch_size=8, schedule="constant", weight_decay=0.5),
        tmp_path,
        loss_of,
    )
    # Nesterov's first step is (1 + momentum) times the gradient; decay acts on the kernel only
    for old, new, gradient, decay in zip(before, (weight, vector), gradients, (0.5, 0), strict=True):
        assert torch.allclose(new, old - rate * 1.9 * (gradient + decay * old), atol=1e-6)


def test_the_average_is_what_comes_out(splits: Splits, tmp_path: Path) -> None:
    net = make(splits.train)
    split, seen = part(splits.train, 24), []

    def loss_of(batch: Batch) -> torch.Tensor:
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return hard_label_loss(net(batch.inputs), batch.labels)

    fit(net, split, Plan(epochs=1, batch_size=8, ema=0.75), tmp_path, loss_of)
    last = tensors(tmp_path / "checkpoint.safetensors")["module/body.conv1.weight"]
    steps = [s["body.conv1.weight"] for s in seen] + [last]
    expected = steps[0]
    for step, value in enumerate(steps[1:]):
        decay = min(0.75, (1 + step) / (10 + step))  # a young average forgets faster
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(net.body.conv1.weight, expected, atol=1e-6)
    assert not torch.allclose(net.body.conv1.weight, last, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_breaks_stops_the_run_and_keeps_what_was_good(bad, splits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", -1.0)
    net = make(splits.train)
    losses = iter([1.0, 1.0, bad])

    def loss_of(batch: Batch) -> torch.Tensor:
        return hard_label_loss(net(batch.inputs), batch.labels) * next(losses)

    with pytest.raises(TrainingDiverged, match="at step 2") as caught:
        fit(net, part(splits.train, 80), Plan(epochs=1, batch_size=8), tmp_path, loss_of)
    print(caught.value)
    assert str(bad) in caught.value.message and "learning_rate=0.025" in caught.value.hint
    kept = tensors(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(v).all() for v in kept.values())
    facts = fit(net, part(splits.train, 80), Plan(epochs=1, batch_size=8), tmp_path)  # from step 2 to the end
    assert facts["steps"] == 10 and all(torch.isfinite(v).all() for v in net.state_dict().values())


@pytest.mark.parametrize("step", [2, 9])
def test_weights_that_break_under_a_finite_loss_are_never_kept(step, splits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", -1.0)
    net, count = make(splits.train), iter(range(100))

    def loss_of(batch: Batch) -> torch.Tensor:
        loss = hard_label_loss(net(batch.inputs), batch.labels)
        if next(count) == step:  # √0 has no finite slope: the loss is fine, its gradient is not
            return loss + (net.body.linear.bias * 0).sum().sqrt()
        return loss

    with pytest.raises(TrainingDiverged, match="linear.bias") as caught:
        fit(net, part(splits.train, 80), Plan(epochs=1, batch_size=8), tmp_path, loss_of)
    print(caught.value)
    assert all(torch.isfinite(v).all() for v in tensors(tmp_path / "checkpoint.safetensors").values())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [3, 9])
def test_a_signal_finishes_the_step_and_keeps_it(number, code, step, splits, tmp_path) -> None:
    net, count = make(splits.train), iter(range(100))
    before = signal.getsignal(number)

    def loss_of(batch: Batch) -> torch.Tensor:
        if next(count) == step:
            os.kill(os.getpid(), number)
        return hard_label_loss(net(batch.inputs), batch.labels)

    plan_, split = Plan(epochs=1, batch_size=8), part(splits.train, 80)
    with pytest.raises(Interrupted, match=f"stopped at step {step + 1} of 10 of test") as caught:
        fit(net, split, plan_, tmp_path, loss_of)
    print(caught.value)
    assert caught.value.exit_code == code and "the same command goes on" in caught.value.hint
    assert signal.getsignal(number) is before
    fit(net, split, plan_, tmp_path)
    straight = make(splits.train)
    (tmp_path / "straight").mkdir()
    fit(straight, split, plan_, tmp_path / "straight")
    assert network.digest(net) == network.digest(straight)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed = {"cut": data[:-9], "empty": b"", "page": b"<html>" * 50, "foreign": None}[how]
    if changed is None:
        from safetensors.torch import save

        changed = save({"w": torch.zeros(1)})
    path.write_bytes(changed)


@pytest.mark.parametrize("how", ["cut", "empty", "page", "foreign"])
def test_a_damaged_checkpoint_is_named(how: str, splits: Splits, tmp_path: Path) -> None:
    plan_, split = Plan(epochs=1, batch_size=8), part(splits.train, 16)
    fit(make(splits.train), split, plan_, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    damage(path, how)
    with pytest.raises(InputRejected, match="damaged") as caught:
        fit(make(splits.train), split, plan_, tmp_path)
    print(caught.value)
    assert str(path) in caught.value.message and "delete it" in caught.value.hint


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    return now


def window(watch: train._RateWatch, clock: list[float], seconds: float) -> str:
    answers = []
    for _ in range(train.SLOW_WINDOW_STEPS):
        clock[0] += seconds
        answers.append(watch.due())
    return "".join(answers)


def test_a_rate_that_fell_is_noticed_once_it_lasts(clock: list[float]) -> None:
    watch = train._RateWatch()
    answers = [window(watch, clock, s) for s in (1, 1, 3, 1, 3, 3)]
    assert not any(answers[:5]) and "less than half" in answers[5]


def test_steps_that_crawl_are_noticed_after_a_few_of_them(clock: list[float]) -> None:
    watch = train._RateWatch()
    assert not window(watch, clock, 1)
    answers = []
    for _ in range(2 * train.FEWEST_STEPS):
        clock[0] += 50
        answers.append(watch.due())
    assert not any(answers[:-1]) and "less than half" in answers[-1]


def test_a_choice_that_was_made_under_pressure_is_looked_at_again(clock: list[float]) -> None:
    watch = train._RateWatch()
    count = int(train.LOOK_AGAIN_S / train.SLOW_WINDOW_STEPS) + 2
    assert not any(window(watch, clock, 1) for _ in range(count))
    watch.reset(away_from_first=True)
    assert any(window(watch, clock, 1) == "looked again" for _ in range(count))


def test_a_new_choice_of_threads_leaves_no_trace(splits: Splits, tmp_path: Path, monkeypatch) -> None:
    due = iter([""] * 4 + ["slow"] + [""] * 100)
    straight, probing, passes = make(splits.train), make(splits.train), []
    (tmp_path / "a").mkdir()
    plan_, split = Plan(epochs=1, batch_size=8), part(splits.train, 80)
    fit(straight, split, plan_, tmp_path / "a")
    monkeypatch.setattr(train._RateWatch, "due", lambda self: next(due))

    def loss_of(batch: Batch) -> torch.Tensor:
        passes.append(batch.progress)
        return hard_label_loss(probing(batch.inputs), batch.labels)

    fit(probing, split, plan_, tmp_path, loss_of, thread_choices=(1, 1))
    assert len(passes) == 14 and passes.count(0.4) == 5, "four passes to probe, on the batch of the fifth step"
    assert network.digest(probing) == network.digest(straight)


def test_dropout_is_a_function_of_the_step(splits: Splits, tmp_path: Path) -> None:
    digests = []
    for run in range(2):
        torch.manual_seed(run)  # whatever the global stream holds before
        net = network.build(
            "mobilenet:width=0.25,dropout=0.5", class_names=splits.train.class_names, mean=splits.train.mean,
            std=splits.train.std, input_shape=(1, 8, 8), seed=0,
        )  # fmt: skip
        (tmp_path / str(run)).mkdir()
        fit(net, part(splits.train, 32), Plan(epochs=1, batch_size=8), tmp_path / str(run))
        digests.append(network.digest(net))
    assert digests[0] == digests[1]


def test_the_seed_chooses_order_and_views(splits: Splits, tmp_path: Path) -> None:
    digests = set()
    for seed in (0, 0, 1):
        net = make(splits.train)
        folder = tmp_path / f"{seed}{len(digests)}"
        folder.mkdir()
        fit(net, part(splits.train, 32), Plan(epochs=1, batch_size=8), folder, seed=seed)
        digests.add(network.digest(net))
    assert len(digests) == 2


def test_mixed_batches_have_no_labels(splits: Splits, tmp_path: Path) -> None:
    split, seen = part(splits.train, 32), []

    def loss_of(batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return net(batch.inputs).square().mean()

    net = make(split)
    fit(net, split, Plan(epochs=2, batch_size=16, mixup=1.0), tmp_path, loss_of)
    assert all((batch.labels == -1).all() for batch in seen) and len(seen) == 4
    augmenter = augment.Augmenter(split)
    own = [augmenter.batch(batch.index, batch.view).inputs for batch in seen]
    assert all(not torch.allclose(a, batch.inputs) for a, batch in zip(own, seen, strict=True))
