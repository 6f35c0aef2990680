"""Methods on logits and embeddings: published values, explicit loops, limits, and the bugs that others ship."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress import catalog, distill
from compress.errors import UsageError
from compress.losses import centred, hard_label_loss, soft_label_loss, standardise, unit_rows
from compress.methods import crd, dist, dkd, logits, noisy, pkt, rkd, similarity
from compress.types import Batch, Setting, Signals


def wave(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    """Closed-form float64 inputs, so that the golden values need no file."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).reshape(shape)


STUDENT, TEACHER = wave((8, 10), 3, 0.7, 0.1), wave((8, 10), 4, 1.3, 0.5)
LABELS = torch.tensor([(3 * i + 1) % 10 for i in range(8)])
STUDENT_MAP, TEACHER_MAP = wave((8, 4, 6, 6), 1, 0.37, 0.2), wave((8, 6, 6, 6), 1.5, 0.53, 0.4)
STUDENT_POOLED, TEACHER_POOLED = wave((8, 5), 1, 0.91, 0.3), wave((8, 7), 2, 1.17, 0.6)


def facts(loss_of, student: Tensor) -> tuple[float, float, float]:
    """Loss, L2 norm of the gradient, gradient element 3."""
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.norm().item(), gradient.flatten()[3].item()


def batch(labels: Tensor = LABELS, progress: float = 0.5) -> Batch:
    count = len(labels)
    return Batch(inputs=None, labels=labels, index=np.arange(count), view=np.zeros(count), progress=progress)


def value(spec: str, student: Tensor, teacher: Tensor = TEACHER, labels: Tensor = LABELS, progress=0.5) -> Tensor:
    entry = catalog.load("methods", spec)
    signals = Signals(logits=student), Signals(logits=teacher)
    return entry.module.loss(entry.config, *signals, batch(labels, progress), None)


def setting(**changes) -> Setting:
    given = {"student_pooled": 5, "teacher_pooled": 7, "num_classes": 10, "labels": np.arange(40) % 10}
    return Setting(**{"pairs": (("a", "b"),), "batch_size": 8, **given, **changes})


def refused(spec: str, match: str, **changes) -> None:
    entry = catalog.load("methods", spec)
    distill.check(entry, setting())
    with pytest.raises(UsageError, match=match) as caught:
        distill.check(entry, setting(**changes))
    print(caught.value)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(wave((width, width), 1, 1.7, 0.3)).Q


def dkd_of(alpha: float, beta: float, temperature: float, teacher: Tensor = TEACHER, labels: Tensor = LABELS):
    def loss(student: Tensor) -> Tensor:
        sure, rest = dkd.decoupled(student, teacher, labels, temperature)
        return alpha * sure + beta * rest

    return loss


def rkd_of(distance_weight: float, angle_weight: float, teacher: Tensor = TEACHER_POOLED):
    def loss(student: Tensor) -> Tensor:
        distance, angle = rkd.relations(student, teacher)
        return distance_weight * distance + angle_weight * angle

    return loss


def dist_of(temperature: float, teacher: Tensor = TEACHER):
    return lambda student: torch.stack(dist.correlations(student, teacher, temperature)).sum()


def standardised(loss_of, teacher: Tensor = TEACHER):
    """A loss of (student, teacher) on standardised logits."""
    return lambda student: loss_of(standardise(student), standardise(teacher))


# ---- published values. Made by running the named repositories in float64; they carry 12 and 9 digits.

DKD = "megvii-research/mdistiller"
STANDARD = "sunshangquan/logit-standardization-KD"
ZOO = "HobbitLong/RepDistiller"
GOLDEN = {
    f"{DKD} α=1 β=8 T=4": (dkd_of(1, 8, 4), STUDENT, 45.6046651689, 3.09948075, 0.607676327),
    f"{DKD} α=1 β=1 T=4": (dkd_of(1, 1, 4), STUDENT, 6.21690463203, 0.407209226, 0.080960667),
    f"{DKD} α=1 β=½ T=1": (dkd_of(1, 0.5, 1), STUDENT, 1.66645302364, 0.153354129, 0.0293657231),
    f"{DKD} α=1 β=0 T=4": (dkd_of(1, 0, 4), STUDENT, 0.590081698179, 0.123898793, 0.00571557272),
    f"{DKD} α=0 β=1 T=4": (dkd_of(0, 1, 4), STUDENT, 5.62682293385, 0.387014268, 0.0752450943),
    f"{STANDARD} KD T=2": (
        standardised(lambda s, t: soft_label_loss(s, t, 2)),
        *(STUDENT, 0.870217183079, 0.045635235, 0.00605273577),
    ),
    f"{STANDARD} DKD α=1 β=8 T=2": (
        standardised(lambda s, t: dkd_of(1, 8, 2, t)(s)),
        *(STUDENT, 7.06497425694, 0.396720442, 0.0512780858),
    ),
    "hunto/DIST_KD β=γ=1 T=1": (dist_of(1), STUDENT, 1.91900721453, 0.176356671, 0.0574416513),
    "hunto/DIST_KD β=γ=1 T=4": (dist_of(4), STUDENT, 31.8722067203, 1.379484, 0.336074398),
    f"{ZOO} SP": (
        lambda s: similarity.similarity_loss(s, TEACHER_MAP),
        *(STUDENT_MAP, 0.245335329322, 0.00166102488, -4.49409697e-05),
    ),
    f"{ZOO} RKD 25/50": (rkd_of(25, 50), STUDENT_POOLED, 3.47691540149, 2.34161129, 0.189393439),
    f"{ZOO} RKD distance": (rkd_of(1, 0), STUDENT_POOLED, 0.0354423084674, 0.0360911917, 0.00358792627),
    f"{ZOO} RKD angle": (rkd_of(0, 1), STUDENT_POOLED, 0.0518171537962, 0.0320346532, 0.00199390564),
    # the authors' own code, run apart, gave the same numbers
    "lenscloth/RKD distance": (rkd_of(1, 0), STUDENT_POOLED, 0.0354423084674, 0.0360911917, 0.00358792627),
    "lenscloth/RKD angle": (rkd_of(0, 1), STUDENT_POOLED, 0.0518171537962, 0.0320346532, 0.00199390564),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_loss_and_gradient_have_the_published_values(name: str) -> None:
    loss_of, student, loss, norm, element = GOLDEN[name]
    got = facts(loss_of, student)
    assert got[0] == pytest.approx(loss, rel=1e-11) and got[1:] == pytest.approx((norm, element), rel=5e-9)


def test_pkt_has_the_published_values() -> None:
    # HobbitLong/RepDistiller adds 1e-7 to each length, which moves this small difference of logarithms by 1e-6
    got = facts(lambda s: pkt.neighbour_loss(s, TEACHER_POOLED), STUDENT_POOLED)
    assert got == pytest.approx((0.0149474898306, 0.0206579307, 0.00363594033), rel=2e-6)


def test_noise_of_nobody_has_the_published_value_of_regression() -> None:
    got = facts(lambda s: value("noisy:alpha=0", s), STUDENT)
    assert got[0] == pytest.approx(64.0574377989, rel=1e-11)
    assert got[1:] == pytest.approx((4.00179453, 0.778987188), rel=5e-9)


# ---- the formulas once more, as loops over plain numbers


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def correlation(a: list[float], b: list[float]) -> float:
    a, b = ([v - sum(x) / len(x) for v in x] for x in (a, b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_standardised_distillation_equals_a_loop() -> None:
    total = 0.0
    for rows in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        p = []
        for row in rows:
            mean = sum(row) / 10
            deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / 9)
            p.append(softmax([(v - mean) / (1e-7 + deviation) / 3 for v in row]))
        total += 9 * kl(p[1], p[0]) / 8
    got = value("kd:standardise=true,temperature=3,kd_weight=1,ce_weight=0", STUDENT).item()
    assert got == pytest.approx(total, rel=1e-11)


def test_dkd_equals_a_loop() -> None:
    sure, rest = 0.0, 0.0
    for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), LABELS.tolist(), strict=True):
        p, q = ([v / 3 for v in row] for row in (t, s))
        sure += kl(*([softmax(r)[y], 1 - softmax(r)[y]] for r in (p, q))) * 9 / 8
        rest += kl(*(softmax(r[:y] + r[y + 1 :]) for r in (p, q))) * 9 / 8
    got = value("dkd:temperature=3,alpha_weight=2,beta_weight=5,ce_weight=3", STUDENT).item()
    assert got == pytest.approx(2 * sure + 5 * rest + 3 * hard_label_loss(STUDENT, LABELS).item(), rel=1e-11)


def test_dist_equals_a_loop() -> None:
    s, t = ([softmax([v / 2 for v in row]) for row in z.tolist()] for z in (STUDENT, TEACHER))
    inter = 1 - sum(correlation(a, b) for a, b in zip(s, t, strict=True)) / 8
    intra = 1 - sum(correlation([r[k] for r in s], [r[k] for r in t]) for k in range(10)) / 10
    got = value("dist:temperature=2,inter_weight=3,intra_weight=5,ce_weight=0", STUDENT).item()
    assert got == pytest.approx(4 * (3 * inter + 5 * intra), rel=1e-6)  # the code's 1e-8 beside the denominator


def loop_of_relations(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    count, distances, angles = len(student), [], []
    for e in (student.tolist(), teacher.tolist()):
        d = [[math.dist(a, b) for b in e] for a in e]
        positive = [v for row in d for v in row if v > 0]
        mean = sum(positive) / len(positive)
        distances.append([v / mean for row in d for v in row])
        cosines = []
        for i in range(count):
            for j in range(count):
                for k in range(count):
                    to_j, to_k = ([a - b for a, b in zip(e[n], e[i], strict=True)] for n in (j, k))
                    cosines.append(cosine(to_j, to_k) if d[i][j] and d[i][k] else 0.0)
        angles.append(cosines)
    return tuple(sum(map(huber, *x)) / len(x[0]) for x in (distances, angles))  # type: ignore[return-value]


@pytest.mark.parametrize("width", [3, 12, 300])
def test_rkd_equals_a_loop_whatever_the_width(width: int) -> None:
    # above 8 the embeddings are written in a basis of their span
    student, teacher = wave((8, width), 2, 1.03, 0.2) + 5, wave((8, 11), 1, 0.61, 0.9)
    got = [v.item() for v in rkd.relations(student, teacher)]
    assert got == pytest.approx(loop_of_relations(student, teacher), rel=1e-10)


def test_similarity_equals_a_loop() -> None:
    rows = []
    for maps in (STUDENT_MAP, TEACHER_MAP):
        flat = maps.flatten(1).tolist()
        gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in flat] for a in flat]
        rows.append([v / math.sqrt(sum(x * x for x in row)) for row in gram for v in row])
    expected = sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 64
    got = similarity.similarity_loss(STUDENT_MAP, TEACHER_MAP).item()
    assert got == pytest.approx(expected, rel=1e-12)


def test_pkt_equals_a_loop() -> None:
    p = []
    for e in (STUDENT_POOLED.tolist(), TEACHER_POOLED.tolist()):
        kernel = [[(cosine(a, b) + 1) / 2 for b in e] for a in e]
        p.append([v / sum(row) for row in kernel for v in row])
    expected = sum(t * math.log((t + 1e-7) / (s + 1e-7)) for s, t in zip(*p, strict=True)) / 64
    assert pkt.neighbour_loss(STUDENT_POOLED, TEACHER_POOLED).item() == pytest.approx(expected, rel=1e-11)


# ---- gradients


@pytest.mark.parametrize(
    ("loss_of", "student"),
    [
        (standardised(lambda s, t: soft_label_loss(s, t, 2), TEACHER[:3]), STUDENT[:3]),
        (dkd_of(1, 3, 2, TEACHER[:3], LABELS[:3]), STUDENT[:3]),
        (standardised(lambda s, t: dkd_of(1, 3, 2, t, LABELS[:3])(s), TEACHER[:3]), STUDENT[:3]),
        (dist_of(2, TEACHER[:4]), STUDENT[:4]),
        (rkd_of(1, 1), STUDENT_POOLED),
        (rkd_of(1, 1, TEACHER_POOLED[:4]), wave((4, 9), 1, 0.7, 0.2)),
        (lambda s: similarity.similarity_loss(s, TEACHER_MAP[:3]), STUDENT_MAP[:3, :, :2, :2]),
        (lambda s: pkt.neighbour_loss(s, TEACHER_POOLED), STUDENT_POOLED),
        (lambda s: crd.contrastive_loss(s, torch.tensor(0.7, dtype=torch.float64), 0.3), STUDENT[:3]),
    ],
    ids=["kd", "dkd", "dkd-standardised", "dist", "rkd", "rkd-wide", "similarity", "pkt", "crd"],
)
def test_gradients_agree_with_finite_differences(loss_of, student: Tensor) -> None:
    assert torch.autograd.gradcheck(loss_of, student.clone().requires_grad_())


# ---- logits that are extreme, constant or of half precision

ON_LOGITS = {
    "kd": standardised(lambda s, t: soft_label_loss(s, t, 2)),
    "dkd": dkd_of(1, 8, 4),
    "dkd T=½": dkd_of(1, 8, 0.5),
    "dkd standardised": standardised(lambda s, t: dkd_of(1, 8, 2, t)(s)),
    "dist": dist_of(4),
    "dist T=½": dist_of(0.5),
}


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_losses_stay_finite_and_right_at_extreme_logits(name: str, scale: float) -> None:
    sure = (torch.where(STUDENT > 0, 1.0, -1.0) * scale).double()
    got, exact = facts(ON_LOGITS[name], sure.float()), facts(ON_LOGITS[name], sure)
    assert all(map(math.isfinite, got))
    assert got[:2] == pytest.approx(exact[:2], rel=1e-4, abs=1e-5)  # float32 against float64


@pytest.mark.parametrize("spec", ["kd", "kd:standardise=true", "dkd", "dkd:standardise=true", "dist", "noisy"])
def test_half_precision_is_widened_before_anything_else(spec: str) -> None:
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    losses = []
    for s, t in ((student, teacher), (student.double(), teacher.double())):
        torch.manual_seed(0)
        losses.append(value(spec + (":sigma=0" if spec == "noisy" else ""), s, t))
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)  # bfloat16 arithmetic would be off by 1e-2


@pytest.mark.parametrize("spec", ["kd:standardise=true", "dkd:standardise=true", "dist", "dist:temperature=1"])
@pytest.mark.parametrize("offset", [0.0, 0.1, 77.7])
def test_constant_logits_have_no_gradient_of_their_rounding(spec: str, offset: float) -> None:
    # 0.1 ten times has a mean that differs from 0.1: the formulas would divide by that difference
    student = torch.full((8, 10), offset, requires_grad=True)
    loss = value(f"{spec}{',' if ':' in spec else ':'}ce_weight=0", student, TEACHER.float())
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and gradient.abs().max() == 0


def test_centred_rows_keep_what_is_more_than_rounding() -> None:
    rows = torch.tensor([[1.0, 1.0 + 1e-4], [1.0, 1.0 + 1e-7]])
    assert (centred(rows) != 0).tolist() == [[True, True], [False, False]]


def test_unit_rows_of_zeros_are_zeros_without_a_gradient() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    unit = unit_rows(x)
    unit.sum().backward()
    assert unit[0].tolist() == pytest.approx([0.6, -0.8]) and unit[1:].abs().max() == 0
    assert x.grad is not None and x.grad[1:].abs().max() == 0 and x.grad[0].abs().max() > 0


# ---- logit standardisation


def test_standardised_methods_do_not_see_the_scale_and_shift_of_either_side() -> None:
    scales, shifts = 1 + wave((8, 1), 0.9, 1, 0) ** 2, wave((8, 1), 5, 1, 0.4)
    for spec in ("kd:standardise=true,ce_weight=0", "dkd:standardise=true,ce_weight=0"):
        plain = value(spec, STUDENT).item()
        assert value(spec, scales * STUDENT + shifts).item() == pytest.approx(plain, rel=1e-6)  # the 1e-7 beside std
        assert value(spec, STUDENT, 7 * TEACHER - shifts).item() == pytest.approx(plain, rel=1e-6)
        assert value(spec, -STUDENT).item() != pytest.approx(plain, rel=1e-2)  # a negative scale it sees


def test_standardised_gradient_flows_through_mean_and_deviation() -> None:
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value("kd:standardise=true,ce_weight=0", student), student)
    # moving along a shift or a scale changes nothing; with a constant deviation the second product would not vanish
    assert gradient.sum(1).abs().max() < 1e-15
    assert (gradient * STUDENT).sum(1).abs().max() < 1e-6 * gradient.abs().max()


def test_two_classes_are_refused_where_they_teach_nothing() -> None:
    refused("kd:standardise=true", "two classes", num_classes=2)
    refused("dkd", "undefined for 2 classes", num_classes=2)
    entry = catalog.load("methods", "kd")
    distill.check(entry, setting(num_classes=2))


# ---- several teachers


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_soft_targets_of_several_teachers_are_the_mean_at_the_methods_temperature(name: str) -> None:
    entry = catalog.load("methods", name)
    members = torch.stack([TEACHER, -TEACHER.roll(1, 1)])
    probabilities = (members / entry.config.temperature).softmax(2).mean(0)
    several = Signals(logits=members.softmax(2).mean(0).log(), members=members)
    got = entry.module.loss(entry.config, Signals(logits=STUDENT), several, batch(), None).item()
    assert got == pytest.approx(value(name, STUDENT, probabilities.log() * entry.config.temperature).item(), rel=1e-10)
    assert got != pytest.approx(value(name, STUDENT, several.logits).item(), rel=1e-3)


# ---- decoupled distillation


@pytest.mark.parametrize("temperature", [1, 4])
def test_the_parts_of_dkd_make_up_plain_distillation(temperature: float) -> None:
    for s, t, y in zip(STUDENT[:, None], TEACHER[:, None], LABELS[:, None], strict=True):
        sure, rest = dkd.decoupled(s, t, y, temperature)
        others = 1 - (t / temperature).softmax(1)[0, y]
        whole = soft_label_loss(s, t, temperature).item()
        assert (sure + others * rest).item() == pytest.approx(whole, rel=1e-12)


def reference_dkd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The target's part as peers compute it: the logarithm of a softmax's sums."""
    p, q = ((z.softmax(1).gather(1, labels[:, None])) for z in (teacher, student))
    return F.kl_div(torch.cat([q, 1 - q], 1).log(), torch.cat([p, 1 - p], 1), reduction="batchmean")


def test_dkd_survives_sure_networks_where_the_logarithm_of_a_softmax_does_not() -> None:
    # regression: megvii-research/mdistiller gives NaN at logits of ±120, T=1, in float32
    student, teacher = (120 * z.sign().float() for z in (STUDENT, TEACHER))
    assert not math.isfinite(reference_dkd(student, teacher, LABELS))
    got = [part.item() for part in dkd.decoupled(student, teacher, LABELS, 1)]
    exact = [part.item() for part in dkd.decoupled(student.double(), teacher.double(), LABELS, 1)]
    assert got == pytest.approx(exact, rel=1e-5) and min(got) > 1


def test_classes_that_nobody_believes_in_change_nothing_in_dkd() -> None:
    nobody = torch.full((8, 10), -1e4, dtype=torch.float64)
    more = dkd_of(1, 8, 4, torch.cat([TEACHER, nobody], 1))(torch.cat([STUDENT, nobody], 1))
    assert more.item() == pytest.approx(dkd_of(1, 8, 4)(STUDENT).item(), rel=1e-12)


def test_dkd_does_not_see_a_shift_and_is_zero_at_equality() -> None:
    shifts = wave((8, 1), 5, 1, 0)
    shifted = dkd_of(1, 8, 4, TEACHER - 2 * shifts)(STUDENT + shifts).item()
    assert shifted == pytest.approx(dkd_of(1, 8, 4)(STUDENT).item(), rel=1e-10)
    loss, norm, _ = facts(dkd_of(1, 8, 4, STUDENT), STUDENT)
    assert abs(loss) < 1e-13 and norm < 1e-13


def test_dkd_warms_up_linearly_and_its_labels_do_not() -> None:
    at = [value("dkd:warmup_share=0.4", STUDENT, progress=p).item() for p in (0, 0.1, 0.3, 0.4, 0.9)]
    hard, full = at[0], at[-1] - at[0]
    assert hard == pytest.approx(hard_label_loss(STUDENT, LABELS).item()) and full > 1
    assert [v - hard for v in at] == pytest.approx([0, full / 4, 3 * full / 4, full, full], rel=1e-12, abs=1e-12)
    assert value("dkd:warmup_share=0", STUDENT, progress=0.0).item() == pytest.approx(at[-1])
    assert catalog.load("methods", "dkd").config.warmup_share == 20 / 240


def test_dkd_takes_the_teachers_first_class_where_there_is_no_label() -> None:
    some = torch.where(torch.arange(8) % 2 == 0, LABELS, -1)
    filled = torch.where(torch.arange(8) % 2 == 0, LABELS, TEACHER.argmax(1))
    assert (filled != LABELS).any()
    got = value("dkd:ce_weight=0", STUDENT, labels=some).item()
    assert got == pytest.approx(value("dkd:ce_weight=0", STUDENT, labels=filled).item(), rel=1e-12)
    assert got != pytest.approx(value("dkd:ce_weight=0", STUDENT).item(), rel=1e-3)


# ---- DIST


def test_dist_lies_in_its_bounds_and_is_zero_at_equality() -> None:
    assert [v.item() for v in dist.correlations(STUDENT, STUDENT, 4)] == pytest.approx([0, 0], abs=1e-5)  # 16e-8/‖p‖²
    worst = [v.item() for v in dist.correlations(STUDENT, -STUDENT, 1)]
    assert all(1 < v <= 2 for v in worst)


def test_pearson_sees_neither_scale_nor_shift() -> None:
    a, b = STUDENT, TEACHER
    plain = dist.pearson(a, b)
    assert torch.allclose(dist.pearson(3 * a + 7, b - 5), plain, rtol=1e-8, atol=0)
    assert torch.allclose(dist.pearson(-a, b), -plain, rtol=1e-12, atol=0)


def test_dist_needs_a_batch_to_correlate_over() -> None:
    refused("dist", "1 images", batch_size=1)
    refused("dist", "2 images", batch_size=2)
    entry = catalog.load("methods", "dist:intra_weight=0")
    distill.check(entry, setting(batch_size=1))
    assert math.isfinite(value("dist", STUDENT[:1], TEACHER[:1], LABELS[:1]).item())


# ---- relational distillation


def test_rkd_does_not_see_rotation_translation_and_scale() -> None:
    plain = [v.item() for v in rkd.relations(STUDENT_POOLED, TEACHER_POOLED)]
    moved = 3 * STUDENT_POOLED @ rotation(5) - 11
    assert [v.item() for v in rkd.relations(moved, TEACHER_POOLED)] == pytest.approx(plain, rel=1e-9)
    padded = torch.cat([STUDENT_POOLED, torch.zeros(8, 40, dtype=torch.float64)], 1) @ rotation(45)
    assert [v.item() for v in rkd.relations(padded, TEACHER_POOLED)] == pytest.approx(plain, rel=1e-9)
    bent = STUDENT_POOLED * torch.arange(1, 6)
    assert all(abs(v.item() / p - 1) > 0.01 for v, p in zip(rkd.relations(bent, TEACHER_POOLED), plain, strict=True))


def test_rkd_does_not_depend_on_the_order_of_the_batch() -> None:
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    turned = [v.item() for v in rkd.relations(STUDENT_POOLED[order], TEACHER_POOLED[order])]
    assert turned == pytest.approx([v.item() for v in rkd.relations(STUDENT_POOLED, TEACHER_POOLED)], rel=1e-12)


def test_rkd_in_groups_of_anchors_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = facts(rkd_of(25, 50), STUDENT_POOLED)
    monkeypatch.setattr(rkd, "TRIPLES_AT_ONCE", 3 * 64)  # 3, 3 and 2 anchors
    assert facts(rkd_of(25, 50), STUDENT_POOLED) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("width", [4, 40])
def test_rkd_is_accurate_in_float32_where_dot_products_cancel(width: int) -> None:
    student = (wave((8, width), 0.1, 1.9, 0.2) + 1000).float()
    got = [v.item() for v in rkd.relations(student, TEACHER_POOLED.float())]
    exact = [v.item() for v in rkd.relations(student.double(), TEACHER_POOLED)]
    # differences of float32 numbers this near are exact, and so is taking a middle off; 1e-7 was seen
    assert got == pytest.approx(exact, rel=1e-6)
    squares = student.square().sum(1)
    by_products = (squares[:, None] + squares - 2 * student @ student.T).clamp(min=1e-12).sqrt()
    off = (by_products / torch.cdist(student.double(), student.double()) - 1)[~torch.eye(8, dtype=torch.bool)]
    assert off.abs().max() > 0.5


@pytest.mark.parametrize("width", [4, 40])
def test_rkd_of_repeated_samples_has_an_ordinary_gradient(width: int) -> None:
    # regression: the usual 1e-12 beside the length of a difference makes a gradient of 1e11 of a repeated row
    student = wave((8, width), 1, 1.9, 0.2).float()
    teacher = TEACHER_POOLED.float()
    ordinary = facts(rkd_of(25, 50, teacher), student)
    twice = student[[0, 1, 2, 3, 4, 5, 6, 6]]
    nearly = twice.clone()
    nearly[7] = torch.nextafter(twice[7], torch.tensor(9.0))  # the same but for rounding
    for repeated in (twice, nearly):
        got = facts(rkd_of(25, 50, teacher), repeated)
        assert all(map(math.isfinite, got)) and got[1] < 10 * ordinary[1]
    for same in (torch.zeros(8, width), torch.full((8, width), 0.1)):
        loss, norm, _ = facts(rkd_of(25, 50, teacher), same)
        assert math.isfinite(loss) and norm == 0


def test_rkd_counts_only_positive_distances() -> None:
    apart = torch.tensor([[0.0], [0.0], [1.0], [3.0]]).double()
    distances = rkd.relative_distances(*rkd.coordinates(apart))
    mean = (1 + 3 + 1 + 3 + 2) / 5  # of six pairs one has distance 0
    assert distances[0].tolist() == pytest.approx([0, 0, 1 / mean, 3 / mean])


def test_methods_that_compare_samples_need_some_and_an_embedding() -> None:
    refused("rkd", "2 have no relation", batch_size=2)
    refused("similarity", "compares images", batch_size=1)
    refused("pkt", "compares images", batch_size=1)
    refused("similarity", "maps to pair", pairs=())
    for name in ("rkd", "pkt", "crd"):
        refused(name, "last linear layer", student_pooled=0)
        refused(name, "last linear layer", teacher_pooled=0)
    entry = catalog.load("methods", "rkd")
    distill.check(entry, setting(batch_size=3))


# ---- similarities


def test_similarity_and_pkt_do_not_see_a_rotation_nor_the_scale() -> None:
    flat = STUDENT_MAP.flatten(1)
    turned = (-3 * flat @ rotation(144)).reshape(STUDENT_MAP.shape)
    plain = similarity.similarity_loss(STUDENT_MAP, TEACHER_MAP).item()
    assert similarity.similarity_loss(turned, TEACHER_MAP).item() == pytest.approx(plain, rel=1e-9)
    plain = pkt.neighbour_loss(STUDENT_POOLED, TEACHER_POOLED).item()
    scales = 1 + wave((8, 1), 0.9, 1, 0) ** 2
    turned = scales * (STUDENT_POOLED @ rotation(5))  # a cosine does not see each row's own scale either
    assert pkt.neighbour_loss(turned, TEACHER_POOLED).item() == pytest.approx(plain, rel=1e-9)


def test_similarity_reads_the_last_pair_of_maps() -> None:
    entry = catalog.load("methods", "similarity:ce_weight=0,weight=2")
    student = Signals(logits=STUDENT, maps={4: STUDENT_MAP * 0 + 1, 8: STUDENT_MAP})
    teacher = Signals(logits=TEACHER, maps={2: TEACHER_MAP * 0 + 1, 8: TEACHER_MAP})
    got = entry.module.loss(entry.config, student, teacher, batch(), None).item()
    assert got == pytest.approx(2 * 0.245335329322, rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dead", [slice(0, 8), slice(2, 5)], ids=["all", "some"])
def test_dead_embeddings_and_maps_have_a_finite_ordinary_gradient(dead: slice, dtype: torch.dtype) -> None:
    for loss_of, student, teacher in (
        (pkt.neighbour_loss, STUDENT_POOLED, TEACHER_POOLED),
        (similarity.similarity_loss, STUDENT_MAP, TEACHER_MAP),
        (lambda s, t: torch.stack(rkd.relations(s, t)).sum(), STUDENT_POOLED, TEACHER_POOLED),
    ):
        ordinary = facts(lambda s: loss_of(s, teacher), student)[1]  # noqa: B023 (called at once)
        student, teacher = student.to(dtype), teacher.to(dtype)
        student[dead] = 0
        for theirs in (teacher, torch.zeros_like(teacher)):
            loss, norm, _ = facts(lambda s: loss_of(s, theirs), student)  # noqa: B023
            assert math.isfinite(loss) and norm < 30 * ordinary


def test_pkt_of_a_dead_student_is_a_number_where_the_usual_code_gives_none() -> None:
    # regression: HobbitLong/RepDistiller takes the square root of a zero sum, and its gradient is NaN
    student = torch.zeros(8, 5, requires_grad=True)
    length = student.square().sum(1, keepdim=True).sqrt()
    usual = student / (length + 1e-7)
    (gradient,) = torch.autograd.grad((usual @ usual.T).sum(), student)
    assert gradient.isnan().any()
    loss, norm, _ = facts(lambda s: pkt.neighbour_loss(s, TEACHER_POOLED.float()), torch.zeros(8, 5))
    assert math.isfinite(loss) and loss > 0 and norm == 0


def test_neighbours_of_opposite_embeddings_are_not_negative() -> None:
    # rounding takes their cosine below −1: without a bound the logarithm's argument goes below 0 in the end
    for seed in range(50):
        one = torch.randn(1, 500, generator=torch.Generator().manual_seed(seed))
        opposite = torch.cat([one, -3.7 * one])
        assert pkt.neighbours(opposite).min() >= 0
        got = facts(lambda s: pkt.neighbour_loss(s, TEACHER_POOLED[:2].float()), opposite)
        assert all(map(math.isfinite, got))


# ---- noisy teachers

MANY = wave((20000, 10), 3, 0.7, 0.1) + 5  # no logit is 0: a ratio shows its noise


def test_a_share_alpha_of_the_samples_is_perturbed_and_the_others_are_kept() -> None:
    # regression: SforAiDl/KD_Lib perturbs the whole batch or none; chengshengchan's code turns the others into 0
    torch.manual_seed(0)
    changed = noisy.perturbed(MANY, 0.3, 0.2) != MANY
    assert torch.equal(changed.any(1), changed.all(1))
    four_errors = 4 * math.sqrt(0.3 * 0.7 / len(MANY))
    assert changed.any(1).double().mean().item() == pytest.approx(0.3, abs=four_errors)


def test_noise_is_relative_has_deviation_sigma_and_differs_by_class_sample_and_step() -> None:
    torch.manual_seed(0)
    first, second = noisy.perturbed(MANY, 1, 0.2) / MANY - 1, noisy.perturbed(MANY, 1, 0.2) / MANY - 1
    count = first.numel()
    assert first.mean().item() == pytest.approx(0, abs=4 * 0.2 / math.sqrt(count))
    # regression: KD_Lib takes sigma for a variance; its deviation here would be 0.45
    assert first.std().item() == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(2 * count))
    between_classes = torch.corrcoef(first.T)[~torch.eye(10, dtype=torch.bool)]
    assert between_classes.abs().max() < 5 / math.sqrt(len(MANY))  # the largest of 45; one draw a sample gives 1
    for other in (second, first.roll(1, 0)):
        together = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]
        assert abs(together) < 4 / math.sqrt(count)


@pytest.mark.parametrize("where", ["teacher", "student"])
def test_the_mean_loss_is_regression_with_a_regulariser(where: str) -> None:
    config = catalog.load("methods", f"noisy:alpha=0.4,sigma=0.5,where={where}").config
    signals = Signals(logits=STUDENT), Signals(logits=TEACHER)
    torch.manual_seed(1)
    losses = torch.stack([noisy.loss(config, *signals, batch(), None) for _ in range(3000)])
    noised = TEACHER if where == "teacher" else STUDENT
    regulariser = 0.5**2 * 0.4 / (2 * 8) * noised.square().sum().item()
    expected = logits.regression(STUDENT, TEACHER).item() + regulariser
    error = losses.std().item() / math.sqrt(len(losses))
    assert losses.mean().item() == pytest.approx(expected, abs=4 * error) and regulariser > 20 * error


@pytest.mark.parametrize("where", ["teacher", "student"])
def test_without_noise_it_is_plain_regression_to_the_bit(where: str) -> None:
    plain = facts(lambda s: logits.regression(s, TEACHER), STUDENT)
    assert facts(lambda s: value(f"noisy:alpha=0,where={where}", s), STUDENT) == plain
    assert facts(lambda s: value(f"noisy:sigma=0,where={where}", s), STUDENT) == plain


def test_noise_is_a_function_of_torchs_seed() -> None:
    def at(seed: int) -> float:
        torch.manual_seed(seed)
        return value("noisy", STUDENT).item()

    assert at(1) == at(1) != at(2)


def test_the_students_noise_scales_its_gradient() -> None:
    torch.manual_seed(3)
    student = STUDENT.clone().requires_grad_()
    noised = noisy.perturbed(student, 1, 0.5)
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(value("noisy:alpha=1,sigma=0.5,where=student", student), student)
    assert torch.allclose(gradient, (noised - TEACHER) / 8 * noised / STUDENT, rtol=1e-10)


# ---- contrastive distillation

SPEC = "crd:negatives=4,width=6,ce_weight=0,weight=1,temperature=0.5,momentum=0.25"
SMALL = setting(labels=np.array([0, 0, 1, 1, 2, 2, 2, -1, -1, 0]))


def contrast_of(spec: str = SPEC, made_for: Setting = SMALL) -> tuple[crd.Config, crd.Contrast]:
    entry = catalog.load("methods", spec)
    torch.manual_seed(0)
    return entry.config, crd.adapters(entry.config, made_for).double()  # type: ignore[return-value]


def step(config, adapters, index: list[int], seed: int, *, graph: bool = True) -> Tensor:
    torch.manual_seed(seed)
    student = STUDENT_POOLED[: len(index)].clone().requires_grad_(graph)
    return crd.contrast(config, student, TEACHER_POOLED[: len(index)], torch.tensor(index), adapters)


def loop_of_contrast(config, adapters, index: list[int], drawn: np.ndarray, z: list[float] | None):
    """The published noise-contrastive loss in plain numbers: (loss, Z of both sides, both memories after the step)."""
    heads = (adapters.student_head, adapters.teacher_head)
    sides = []
    for head, pooled in zip(heads, (STUDENT_POOLED, TEACHER_POOLED), strict=True):
        weight, bias = (p.detach().numpy() for p in (head.weight, head.bias))
        rows = [weight @ e + bias for e in pooled[: len(index)].numpy()]
        sides.append([row / math.sqrt(sum(v * v for v in row)) for row in rows])
    memories = [adapters.student_memory.numpy().copy(), adapters.teacher_memory.numpy().copy()]
    count, negatives, total, found = len(memories[0]), drawn.shape[1], 0.0, []
    for side in (0, 1):
        other = memories[1 - side]
        e = [
            [math.exp(float(sides[side][b] @ other[n]) / config.temperature) for n in (i, *drawn[b])]
            for b, i in enumerate(index)
        ]
        constant = z[side] if z else sum(map(sum, e)) / (len(index) * (1 + negatives)) * count
        found.append(constant)
        noise = negatives / count
        for row in e:
            total -= math.log(row[0] / constant / (row[0] / constant + noise)) / len(index)
            total -= sum(math.log(noise / (v / constant + noise)) for v in row[1:]) / len(index)
    for side in (0, 1):
        for b, i in enumerate(index):
            mixed = config.momentum * memories[side][i] + (1 - config.momentum) * sides[side][b]
            memories[side][i] = mixed / math.sqrt(sum(v * v for v in mixed))
    return total, found, memories


def test_crd_equals_the_published_loss_in_a_loop_over_two_steps() -> None:
    config, adapters = contrast_of()
    z = None
    for seed, index in ((1, [0, 3, 8, 5]), (2, [4, 3, 9, 7])):
        torch.manual_seed(seed)
        drawn = crd.draw_negatives(adapters.blocks, torch.tensor(index), 4).numpy()
        expected, z, memories = loop_of_contrast(config, adapters, index, drawn, z)
        assert step(config, adapters, index, seed).item() == pytest.approx(expected, rel=1e-10)
        assert adapters.log_z.exp().tolist() == pytest.approx(z, rel=1e-12)  # Z stays from the first step
        for memory, after in zip((adapters.student_memory, adapters.teacher_memory), memories, strict=True):
            assert torch.allclose(memory, torch.from_numpy(after), rtol=1e-12)


def test_crd_differentiates_by_the_memory_as_it_was() -> None:
    config, adapters = contrast_of()
    index = torch.tensor([0, 3, 8, 5])

    def loss_of(student: Tensor) -> Tensor:
        torch.manual_seed(1)
        return crd.contrast(config, student, TEACHER_POOLED[:4], index, copy.deepcopy(adapters))

    adapters.log_z.fill_(1.3)  # a Z of the batch's own is no constant to a finite difference
    adapters.z_is_fixed.fill_(True)
    assert torch.autograd.gradcheck(loss_of, STUDENT_POOLED[:4].clone().requires_grad_())


def test_negatives_are_of_other_classes_and_all_alike_likely() -> None:
    labels = SMALL.labels
    blocks = torch.from_numpy(np.stack(crd.by_class(labels)))
    torch.manual_seed(0)
    drawn = crd.draw_negatives(blocks, torch.arange(len(labels)), 7000)
    for i, row in enumerate(drawn):
        allowed = [j for j in range(len(labels)) if j != i and (labels[j] != labels[i] or labels[i] < 0)]
        counts = torch.bincount(row, minlength=len(labels))
        assert counts.nonzero().flatten().tolist() == allowed
        share = 7000 / len(allowed)
        assert (counts[allowed] - share).abs().max() < 5 * math.sqrt(share)


def test_there_are_no_more_negatives_than_the_largest_class_leaves() -> None:
    config, adapters = contrast_of("crd")
    assert config.negatives == 16384 and adapters.negatives == 7
    assert crd.available_negatives(np.full(5, -1)) == 4
    refused("crd", "all of these are of one", labels=np.zeros(9, np.int64))


def test_evaluating_without_a_gradient_leaves_no_trace() -> None:
    config, adapters = contrast_of()
    before = copy.deepcopy(adapters.state_dict())
    with torch.no_grad():
        losses = {step(config, adapters, [0, 3, 8], 1).item() for _ in range(2)}
    losses.add(step(config, adapters, [0, 3, 8], 1, graph=False).item())
    assert len(losses) == 1 and all(torch.equal(v, before[k]) for k, v in adapters.state_dict().items())
    assert step(config, adapters, [0, 3, 8], 1).item() in losses  # the same loss, and now the memory has learnt
    after = adapters.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {
        "student_memory", "teacher_memory", "log_z", "z_is_fixed",
    }  # fmt: skip
    for memory in ("student_memory", "teacher_memory"):
        moved = (after[memory] != before[memory]).any(1).nonzero().flatten().tolist()
        assert moved == [0, 3, 8] and torch.allclose(after[memory].norm(dim=1), torch.ones(10).double())


def test_a_checkpoint_holds_all_that_the_next_step_needs() -> None:
    config, adapters = contrast_of()
    step(config, adapters, [0, 3, 8, 5], 1)
    torch.manual_seed(99)
    again = crd.Contrast(config, SMALL).double()
    again.load_state_dict(adapters.state_dict())
    heads = {f"{side}_head.{part}" for side in ("student", "teacher") for part in ("weight", "bias")}
    assert set(adapters.state_dict()) == heads | {"student_memory", "teacher_memory", "log_z", "z_is_fixed"}
    assert step(config, again, [1, 2, 3], 2).item() == step(config, adapters, [1, 2, 3], 2).item()


def test_crd_stays_finite_with_dead_embeddings_low_temperature_and_half_precision() -> None:
    config, adapters = contrast_of("crd:temperature=0.005,width=6")
    adapters = adapters.float()
    index = torch.arange(8)
    for student in (torch.zeros(8, 5), 1e4 * STUDENT_POOLED.float(), STUDENT_POOLED.bfloat16()):
        for head in (adapters.student_head, adapters.teacher_head):
            torch.nn.init.zeros_(head.bias)
        teacher = torch.zeros(8, 7, dtype=student.dtype)
        got = facts(lambda s: crd.contrast(config, s, teacher, index, copy.deepcopy(adapters)), student)  # noqa: B023
        assert all(map(math.isfinite, got))


def test_crd_finds_the_images_by_their_index() -> None:
    config, adapters = contrast_of()
    twin = copy.deepcopy(adapters)
    signals = Signals(logits=STUDENT[:3], pooled=STUDENT_POOLED[:3]), Signals(logits=None, pooled=TEACHER_POOLED[:3])
    at = dataclasses.replace(batch(LABELS[:3]), index=np.array([9, 2, 4], np.uint64))
    torch.manual_seed(5)
    got = crd.loss(config, *signals, at, adapters).item()
    assert got == pytest.approx(step(config, twin, [9, 2, 4], 5).item(), rel=1e-12)
