"""Distillation methods: published values, and the contract that every entry of `methods/` keeps."""

import dataclasses
import doctest
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import catalog, config
from compress.errors import UsageError
from compress.methods import fitnet, logits
from compress.taps import Tap
from compress.types import Batch, Setting, Signals

NAMES = catalog.names("methods")
PAIRS = (
    (Tap(path="a", shape=(3, 8, 8), stride=1, order=0), Tap(path="x", shape=(6, 8, 8), stride=1, order=0)),
    (Tap(path="b", shape=(4, 4, 4), stride=2, order=1), Tap(path="y", shape=(5, 4, 4), stride=2, order=1)),
)
SETTING = Setting(
    pairs=PAIRS, student_pooled=7, teacher_pooled=9, num_classes=10, labels=np.arange(40) % 10, batch_size=8
)


def wave(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).reshape(shape)


STUDENT, TEACHER = wave((8, 10), 3, 0.7, 0.1), wave((8, 10), 4, 1.3, 0.5)
LABELS = torch.tensor([(3 * i + 1) % 10 for i in range(8)])


def batch(labels: Tensor = LABELS, progress: float = 0.0) -> Batch:
    n = len(labels)
    return Batch(inputs=None, labels=labels, index=np.arange(n), view=np.zeros(n), progress=progress)


def value(entry, student: Tensor, teacher: Tensor, labels: Tensor = LABELS, progress: float = 0.0) -> Tensor:
    signals = Signals(logits=student), Signals(logits=teacher)
    return entry.module.loss(entry.config, *signals, batch(labels, progress), None)


def facts(loss_of, student: Tensor) -> tuple[float, float, float]:
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.norm().item(), gradient.flatten()[3].item()


def weights_of(entry) -> list[str]:
    return [f.name for f in dataclasses.fields(entry.config) if "weight" in f.name]


class Tiny(nn.Module):
    """Delivers every signal that SETTING promises, as functions of its inputs `[B,3,8,8]`."""

    def __init__(self, side: int, seed: int):
        super().__init__()
        shapes = [pair[side].shape for pair in PAIRS]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, shapes[0][0], 3, padding=1)
            self.second = nn.Conv2d(shapes[0][0], shapes[1][0], 3, stride=2, padding=1)
            self.embed = nn.Linear(shapes[1][0], (SETTING.student_pooled, SETTING.teacher_pooled)[side])
            self.head = nn.Linear(self.embed.out_features, SETTING.num_classes)

    def forward(self, inputs: Tensor) -> Signals:
        inputs = inputs.detach().requires_grad_()
        first = self.first(inputs)
        second = self.second(torch.tanh(first))
        pooled = self.embed(second.relu().mean((2, 3)))
        return Signals(logits=3 * self.head(pooled), pooled=pooled, maps={1: first, 2: second}, inputs=inputs)


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapters_of(entry) -> nn.Module | None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = entry.module.adapters(entry.config, SETTING) if hasattr(entry.module, "adapters") else None
    return made.double() if made is not None else None


def teacher_signals(inputs: Tensor, net: Tiny | None = None) -> Signals:
    """As a teacher delivers them: without a graph, but for the inputs."""
    signals = (net or Tiny(1, seed=2).double())(inputs)
    return dataclasses.replace(
        signals, pooled=signals.pooled.detach(), maps={k: v.detach() for k, v in signals.maps.items()}
    )


def total(entry, inputs: Tensor, labels: Tensor = LABELS, *, seed: int = 0, progress: float = 0.25) -> Tensor:
    """The method's loss between two tiny networks."""
    torch.manual_seed(seed)
    student = Tiny(0, seed=1).double()(inputs)
    adapters = adapters_of(entry)
    return entry.module.loss(entry.config, student, teacher_signals(inputs), batch(labels, progress), adapters)


def draws(entry) -> bool:
    """Whether the method draws random numbers."""
    return total(entry, images(), seed=1).item() != total(entry, images(), seed=2).item()


# the golden numbers carry 12 and 9 digits
def test_logit_regression_has_the_published_values() -> None:
    got = facts(lambda s: value(catalog.load("methods", "logits"), s, TEACHER), STUDENT)
    assert got[0] == pytest.approx(64.0574377989, rel=1e-11)
    assert got[1:] == pytest.approx((4.00179453, 0.778987188), rel=5e-9)


def test_kd_is_the_weighted_sum_of_the_published_terms() -> None:
    entry = catalog.load("methods", "kd:temperature=4,ce_weight=0.1,kd_weight=0.9")
    assert catalog.load("methods", "kd").config == entry.config
    expected = 0.1 * 3.69146298939 + 0.9 * 5.58331412698
    assert value(entry, STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-11)


def test_hint_loss_is_half_of_the_published_mean() -> None:
    student, teacher = wave((8, 4, 6, 6), 1, 0.37, 0.2), wave((8, 4, 6, 6), 1.5, 0.53, 0.4)
    loss, norm, element = facts(lambda s: fitnet.hint_loss(s, teacher), student)
    assert 2 * loss == pytest.approx(1.61983909074, rel=1e-11)
    assert (2 * norm, 2 * element) == pytest.approx((0.0749962752, -0.000701276199), rel=5e-9)


def test_centred_regression_does_not_see_a_shift() -> None:
    shifted = STUDENT + wave((8, 1), 9, 1, 0)
    centred = logits.regression(shifted, TEACHER, center=True)
    assert centred.item() == pytest.approx(logits.regression(STUDENT, TEACHER, center=True).item(), rel=1e-10)
    assert logits.regression(shifted, TEACHER).item() > 1.01 * logits.regression(STUDENT, TEACHER).item()


def test_the_weight_of_fitnets_soft_labels_falls_linearly() -> None:
    entry = catalog.load("methods", "fitnet:ce_weight=0,kd_weight_first=4,kd_weight_last=1,temperature=3")
    losses = [value(entry, STUDENT, TEACHER, progress=p).item() for p in (0.0, 0.5, 1.0)]
    unit = losses[2]
    assert losses == pytest.approx([4 * unit, 2.5 * unit, unit], rel=1e-12) and unit > 1


def test_fitnets_hint_is_the_middle_pair_or_the_one_asked_for() -> None:
    def stride(spec: str, count: int) -> int:
        pairs = tuple((dataclasses.replace(s, stride=2**i), t) for i, (s, t) in enumerate([PAIRS[0]] * count))
        return fitnet.guided_pair(catalog.load("methods", spec).config, pairs)[0].stride

    assert [stride("fitnet", n) for n in (1, 2, 3, 4)] == [1, 2, 2, 4]
    assert stride("fitnet:stride=8", 4) == 8
    with pytest.raises(UsageError, match="stride 16.*they share 1, 2, 4") as caught:
        stride("fitnet:stride=16", 3)
    print(caught.value)
    assert fitnet.stages(catalog.load("methods", "fitnet:hint_share=0").config, SETTING) == ()


@pytest.mark.parametrize("name", NAMES)
def test_entry_explains_itself_and_its_example_is_true(name: str) -> None:
    module = catalog.load("methods", name).module
    text = module.__doc__
    assert "L = " in text or "L_" in text, "the formula is missing"
    assert "Source:" in text or not module.NEEDS, "the paper is missing"
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_knobs_are_frozen_and_bounded(name: str) -> None:
    entry = catalog.load("methods", name)
    for field in dataclasses.fields(entry.config):
        assert field.metadata["help"], field.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(entry.config, field.name, field.default)
        if isinstance(field.default, float):
            assert math.isfinite(field.metadata["low"]) and math.isfinite(field.metadata["high"]), field.name
            with pytest.raises(UsageError, match=field.name):
                catalog.load("methods", f"{name}:{field.name}={field.metadata['high'] * 2 + 1}")
    assert catalog.load("methods", entry.spec).config == entry.config
    assert set(entry.module.NEEDS) <= {"teacher", "maps", "pooled", "inputs"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [LABELS, torch.full((8,), -1)], ids=["labelled", "unlabelled"])
def test_loss_is_a_finite_scalar_with_a_finite_gradient(name: str, labels: Tensor) -> None:
    entry = catalog.load("methods", name)
    student = Tiny(0, seed=1).double()
    loss = entry.module.loss(
        entry.config, student(images()), teacher_signals(images()), batch(labels, 0.3), adapters_of(entry)
    )
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    learns_without_labels = "teacher" in entry.module.NEEDS
    assert any(g.abs().sum() > 0 for g in gradients) == (learns_without_labels or bool((labels >= 0).all()))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_flows_into_the_teacher(name: str) -> None:
    entry = catalog.load("methods", name)
    teacher = Tiny(1, seed=2).double().requires_grad_(False)
    student = Tiny(0, seed=1).double()(images())
    loss = entry.module.loss(
        entry.config, student, teacher_signals(images(), teacher), batch(LABELS, 0.3), adapters_of(entry)
    )
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_loss_does_not_depend_on_the_order_of_the_batch(name: str) -> None:
    entry = catalog.load("methods", name)
    if draws(entry):
        pytest.skip("draws a number for each sample")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert total(entry, images()[order], LABELS[order]).item() == pytest.approx(total(entry, images()).item())


@pytest.mark.parametrize("name", [n for n in NAMES if set(catalog.load("methods", n).module.NEEDS) <= {"teacher"}])
def test_loss_on_logits_does_not_depend_on_the_batch_size(name: str) -> None:
    entry = catalog.load("methods", name)
    if draws(entry):
        pytest.skip("draws a number for each sample")
    once = value(entry, STUDENT, TEACHER).item()
    assert value(entry, *(torch.cat([x] * 2) for x in (STUDENT, TEACHER, LABELS))).item() == pytest.approx(once)


@pytest.mark.parametrize("name", NAMES)
def test_weights_scale_their_terms_and_zero_is_absent(name: str) -> None:
    entry = catalog.load("methods", name)
    names = weights_of(entry)

    def at(**values: float) -> float:
        built = dataclasses.replace(entry.config, **{**dict.fromkeys(names, 0.0), **values})
        return total(dataclasses.replace(entry, config=built), images()).item()

    assert names and at() == 0.0
    single = [at(**{knob: 1.0}) for knob in names]
    assert all(v > 0 for v in single)
    assert at(**{knob: 2.0 for knob in names}) == pytest.approx(2 * sum(single), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(catalog.load("methods", n).module, "adapters")])
def test_every_parameter_of_the_adapters_is_trained(name: str) -> None:
    entry = catalog.load("methods", name)
    adapters = adapters_of(entry)
    assert adapters is not None
    before = {k: v.clone() for k, v in adapters.named_parameters()}
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    student, teacher = Tiny(0, seed=1).double()(images()), teacher_signals(images())
    stages = entry.module.stages(entry.config, SETTING) if hasattr(entry.module, "stages") else ()
    assert 0 <= sum(s.share for s in stages) < 1
    for stage in stages:
        s = dataclasses.replace(student, maps={p.stride: student.maps[p.stride] for p, _ in stage.pairs})
        t = dataclasses.replace(teacher, maps={p.stride: teacher.maps[p.stride] for _, p in stage.pairs})
        stage.loss(entry.config, s if stage.student else None, t, batch(), adapters).backward(retain_graph=True)
    entry.module.loss(entry.config, student, teacher, batch(LABELS, 0.5), adapters).backward()
    optimizer.step()
    assert before
    for key, parameter in adapters.named_parameters():
        assert parameter.grad is not None and not torch.equal(parameter, before[key]), key


def test_plugin_method_needs_one_file(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        '"""Mine."""\nNEEDS = ()\n\ndef loss(config, student, teacher, batch, adapters):\n'
        "    return student.logits.square().mean()\n"
    )
    files = (tmp_path / "mine.py",)
    assert "mine" in catalog.names("methods", files) and "mine" not in catalog.names("methods")
    entry = catalog.load("methods", "mine", files)
    assert isinstance(entry.module, ModuleType) and entry.config == config.NoKnobs()
    assert value(entry, STUDENT, TEACHER).item() == pytest.approx(STUDENT.square().mean().item())
