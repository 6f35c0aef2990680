"""The shared losses: published values, limits, invariances, and finite gradients where logits are extreme."""

import math

import pytest
import torch
from torch import Tensor

from compress.losses import hard_label_loss, pool_to_smaller, soft_label_loss


def wave(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    """Closed-form float64 inputs, so that the golden values need no file."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).reshape(shape)


STUDENT, TEACHER = wave((8, 10), 3, 0.7, 0.1), wave((8, 10), 4, 1.3, 0.5)
LABELS = torch.tensor([(3 * i + 1) % 10 for i in range(8)])


def facts(loss_of, student: Tensor) -> tuple[float, float, float]:
    """Loss, L2 norm of the gradient, gradient element 3."""
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.norm().item(), gradient.flatten()[3].item()


# made by running the KD of HobbitLong/RepDistiller (T² · KL, batchmean) in float64
@pytest.mark.parametrize(
    ("temperature", "loss", "norm", "element"),
    [
        (1, 2.62565053744, 0.224317705, 0.0312181145),
        (2, 4.29457636968, 0.30941215, 0.0509117399),
        (4, 5.58331412698, 0.365294439, 0.065109856),
        (20, 6.32749593945, 0.39655039, 0.0757322586),
    ],
)
def test_soft_label_loss_has_the_published_values(temperature, loss, norm, element) -> None:
    got = facts(lambda s: soft_label_loss(s, TEACHER, temperature), STUDENT)
    # the golden numbers carry 12 and 9 digits; a mean over classes is off by a factor of 10
    assert got[0] == pytest.approx(loss, rel=1e-11) and got[1:] == pytest.approx((norm, element), rel=5e-9)


def test_hard_label_loss_has_the_published_values() -> None:
    got = facts(lambda s: hard_label_loss(s, LABELS), STUDENT)
    assert got[0] == pytest.approx(3.69146298939, rel=1e-11)
    assert got[1:] == pytest.approx((0.363109562, 0.0312436491), rel=5e-9)


def test_soft_label_loss_equals_a_loop_over_samples_and_classes() -> None:
    total = 0.0
    for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        p = [math.exp(v / 3) / sum(math.exp(u / 3) for u in t) for v in t]
        q = [math.exp(v / 3) / sum(math.exp(u / 3) for u in s) for v in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert soft_label_loss(STUDENT, TEACHER, 3).item() == pytest.approx(9 * total / 8, rel=1e-12)


def test_classes_that_nobody_believes_in_change_nothing() -> None:
    # a mean over classes (the default of KLDivLoss) would halve the loss here
    nobody = torch.full((8, 10), -1e4, dtype=torch.float64)
    more = soft_label_loss(torch.cat([STUDENT, nobody], 1), torch.cat([TEACHER, nobody], 1), 4)
    assert more.item() == pytest.approx(soft_label_loss(STUDENT, TEACHER, 4).item(), rel=1e-12)


def test_losses_do_not_depend_on_the_batch_size() -> None:
    twice = soft_label_loss(torch.cat([STUDENT] * 2), torch.cat([TEACHER] * 2), 4)
    assert twice.item() == pytest.approx(soft_label_loss(STUDENT, TEACHER, 4).item(), rel=1e-12)
    hard = hard_label_loss(torch.cat([STUDENT] * 2), torch.cat([LABELS] * 2))
    assert hard.item() == pytest.approx(hard_label_loss(STUDENT, LABELS).item(), rel=1e-12)


def test_high_temperature_is_regression_on_centred_logits() -> None:
    difference = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    limit = difference.square().sum(1).mean().item() / (2 * 10)
    gaps = [abs(soft_label_loss(STUDENT, TEACHER, t).item() - limit) for t in (20, 200, 2000)]
    # the next term of the expansion falls like 1/T
    assert gaps[2] < 1e-3 * limit and 8 < gaps[0] / gaps[1] < 25 and 8 < gaps[1] / gaps[2] < 12


def test_shift_of_logits_changes_nothing_and_equality_is_zero() -> None:
    shifts = wave((8, 1), 5, 1, 0)
    shifted = soft_label_loss(STUDENT + shifts, TEACHER - 3 * shifts, 2).item()
    assert shifted == pytest.approx(soft_label_loss(STUDENT, TEACHER, 2).item(), rel=1e-10)
    loss, norm, _ = facts(lambda s: soft_label_loss(s, STUDENT, 2), STUDENT)
    assert loss == pytest.approx(0, abs=1e-15) and norm < 1e-15


def test_kl_has_the_teacher_as_its_reference() -> None:
    # the reverse KL would give another number: here the forward one is infinite-like, the reverse log 2
    student, teacher = torch.tensor([[50.0, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    assert soft_label_loss(student, teacher, 1).item() == pytest.approx(25 - math.log(2), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1, 4, 20])
@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_losses_stay_finite_and_right_at_extreme_logits(temperature: float, scale: float) -> None:
    signs = torch.where(STUDENT > 0, 1.0, -1.0) * scale
    others = torch.where(TEACHER > 0, 1.0, -1.0) * scale
    got = facts(lambda s: soft_label_loss(s, others.float(), temperature), signs.float())
    exact = facts(lambda s: soft_label_loss(s, others, temperature), signs)
    assert all(map(math.isfinite, got))
    assert got[:2] == pytest.approx(exact[:2], rel=1e-4, abs=1e-6)  # float32 against float64: a few units of 6e-8 · T
    assert all(map(math.isfinite, facts(lambda s: hard_label_loss(s, LABELS), signs.float())))


def test_unlabelled_samples_are_left_out() -> None:
    labels = LABELS.clone()
    labels[::2] = -1
    expected = facts(lambda s: hard_label_loss(s, LABELS[1::2]), STUDENT[1::2])
    got = facts(lambda s: hard_label_loss(s, labels), STUDENT)
    assert got[:2] == pytest.approx(expected[:2], rel=1e-12) and got[2] == 0.0


def test_batch_without_labels_gives_zero_and_no_gradient() -> None:
    assert facts(lambda s: hard_label_loss(s, torch.full((8,), -1)), STUDENT) == (0.0, 0.0, 0.0)


def test_gradients_agree_with_finite_differences() -> None:
    student = STUDENT[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_label_loss(s, TEACHER[:3], 2.5), student)
    assert torch.autograd.gradcheck(lambda s: hard_label_loss(s, torch.tensor([1, -1, 4])), student)


def test_the_larger_map_is_pooled_and_equal_sizes_are_left_alone() -> None:
    small, large = torch.rand(2, 3, 2, 2), torch.rand(2, 5, 4, 4)
    a, b = pool_to_smaller(small, large)
    assert a is small and torch.allclose(b[..., 0, 0], large[..., :2, :2].mean((2, 3)))
    b, a = pool_to_smaller(large, small)
    assert a is small and b.shape == (2, 5, 2, 2)
    assert all(x is y for x, y in zip(pool_to_smaller(large, large), (large, large), strict=True))
