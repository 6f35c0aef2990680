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
from compress.types import Batch, Signals

NAMES = catalog.names("methods")
PAIRS = [
    (Tap(path="a", shape=(3, 8, 8), stride=1, order=0), Tap(path="x", shape=(6, 8, 8), stride=1, order=0)),
    (Tap(path="b", shape=(4, 4, 4), stride=2, order=1), Tap(path="y", shape=(5, 4, 4), stride=2, order=1)),
]


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


def random_maps(seed: int = 0) -> tuple[Signals, Signals]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return (
        Signals(logits=draw(8, 10), pooled=draw(8, 7), maps={s.stride: draw(8, *s.shape) for s, _ in PAIRS}),
        Signals(logits=draw(8, 10), pooled=draw(8, 9), maps={t.stride: draw(8, *t.shape) for _, t in PAIRS}),
    )


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
        pairs = [(dataclasses.replace(s, stride=2**i), t) for i, (s, t) in enumerate([PAIRS[0]] * count)]
        return fitnet.guided_pair(catalog.load("methods", spec).config, pairs)[0].stride

    assert [stride("fitnet", n) for n in (1, 2, 3, 4)] == [1, 2, 2, 4]
    assert stride("fitnet:stride=8", 4) == 8
    with pytest.raises(UsageError, match="stride 16.*they share 1, 2, 4") as caught:
        stride("fitnet:stride=16", 3)
    print(caught.value)
    assert fitnet.stages(catalog.load("methods", "fitnet:hint_share=0").config, PAIRS) == ()


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
    assert set(entry.module.NEEDS) <= {"teacher", "maps", "pooled"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [LABELS, torch.full((8,), -1)], ids=["labelled", "unlabelled"])
def test_loss_is_a_finite_scalar_with_a_finite_gradient(name: str, labels: Tensor) -> None:
    entry = catalog.load("methods", name)
    torch.manual_seed(0)
    adapters = entry.module.adapters(entry.config, PAIRS) if hasattr(entry.module, "adapters") else None
    student, teacher = random_maps()
    student.logits.requires_grad_()
    loss = entry.module.loss(entry.config, student, teacher, batch(labels, 0.3), adapters)
    assert loss.shape == () and torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, student.logits)
    assert torch.isfinite(gradient).all()
    learns_without_labels = "teacher" in entry.module.NEEDS
    assert bool(gradient.abs().sum() > 0) == (learns_without_labels or bool((labels >= 0).all()))


@pytest.mark.parametrize("name", NAMES)
def test_loss_does_not_depend_on_the_batch_size_or_order(name: str) -> None:
    entry = catalog.load("methods", name)
    once = value(entry, STUDENT, TEACHER).item()
    assert value(entry, *(torch.cat([x] * 2) for x in (STUDENT, TEACHER, LABELS))).item() == pytest.approx(once)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert value(entry, STUDENT[order], TEACHER[order], LABELS[order]).item() == pytest.approx(once)


@pytest.mark.parametrize("name", NAMES)
def test_weights_scale_their_terms_and_zero_is_absent(name: str) -> None:
    entry = catalog.load("methods", name)
    names = weights_of(entry)

    def at(**values: float) -> float:
        built = dataclasses.replace(entry.config, **{**dict.fromkeys(names, 0.0), **values})
        return value(dataclasses.replace(entry, config=built), STUDENT, TEACHER, progress=0.25).item()

    assert names and at() == 0.0
    single = [at(**{knob: 1.0}) for knob in names]
    assert all(v > 0 for v in single)
    assert at(**{knob: 2.0 for knob in names}) == pytest.approx(2 * sum(single), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(catalog.load("methods", n).module, "adapters")])
def test_every_parameter_of_the_adapters_is_trained(name: str) -> None:
    entry = catalog.load("methods", name)
    torch.manual_seed(0)
    adapters: nn.Module = entry.module.adapters(entry.config, PAIRS)
    before = {k: v.clone() for k, v in adapters.named_parameters()}
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    student, teacher = random_maps()
    stages = entry.module.stages(entry.config, PAIRS)
    assert stages and 0 < sum(s.share for s in stages) < 1
    for stage in stages:
        s = dataclasses.replace(student, maps={p.stride: student.maps[p.stride] for p, _ in stage.pairs})
        t = dataclasses.replace(teacher, maps={p.stride: teacher.maps[p.stride] for _, p in stage.pairs})
        stage.loss(entry.config, s, t, batch(), adapters).backward()
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
