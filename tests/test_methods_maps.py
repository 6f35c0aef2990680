"""Methods on feature maps: published values, loops in NumPy, gradients, invariances, and the bugs that others have.

Rows marked with a repository were made by running its code in float64 on the same inputs; adapters' weights were then
filled by `fill`.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import catalog, distill
from compress.errors import UsageError
from compress.losses import hard_label_loss
from compress.methods import attention, attention_gradient, factor, mgd, nst, reviewkd, vid
from compress.taps import Tap
from compress.types import Batch, Setting, Signals

ON_MAPS = ("attention", "attention:form=paper", "factor", "vid", "nst", "reviewkd", "mgd", "mgd:mask=pixels")


def wave(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    """Closed-form float64 inputs, so that the golden values need no file."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).reshape(shape)


STUDENT = wave((8, 4, 6, 6), 1, 0.37, 0.2)
TEACHER = wave((8, 6, 6, 6), 1.5, 0.53, 0.4)
TEACHER_SMALL = wave((8, 6, 3, 3), 1.5, 0.53, 0.4)
TEACHER_LIKE = wave((8, 4, 6, 6), 1.5, 0.53, 0.4)  # the student's shape
DEEP, TEACHER_DEEP = wave((8, 5, 3, 3), 1, 0.37, 0.2), wave((8, 7, 3, 3), 1.5, 0.53, 0.4)
LABELS = torch.tensor([(3 * i + 1) % 10 for i in range(8)])


def fill(*parameters: Tensor) -> None:
    for i, parameter in enumerate(parameters):
        with torch.no_grad():
            parameter.copy_(wave(tuple(parameter.shape), 0.5, 0.61, 0.1 * (i + 1)))


def facts(loss_of, student: Tensor) -> tuple[float, float, float]:
    """Loss, L2 norm of the gradient, gradient element 3."""
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.norm().item(), gradient.flatten()[3].item()


def agree(got: tuple[float, float, float], loss: float, norm: float, element: float) -> None:
    # the golden numbers carry 12 and 9 digits
    assert got[0] == pytest.approx(loss, rel=1e-11) and got[1:] == pytest.approx((norm, element), rel=5e-9)


def tap(shape: tuple[int, ...], order: int) -> Tap:
    return Tap(path=f"stage{order}", shape=tuple(shape[-3:]), stride=2**order, order=order)


def setting(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> Setting:
    taps = tuple((tap(ours, i), tap(theirs, i)) for i, (ours, theirs) in enumerate(pairs))
    return Setting(
        pairs=taps, student_pooled=5, teacher_pooled=7, num_classes=10, labels=np.arange(40) % 10, batch_size=8
    )


def signals(*maps: Tensor, logits: Tensor | None = None) -> Signals:
    logits = wave((len(maps[0]), 10), 3, 0.7, 0.1).to(maps[0].dtype) if logits is None else logits
    return Signals(logits=logits, maps={2**i: m for i, m in enumerate(maps)})


def batch(labels: Tensor = LABELS, progress: float = 0.5) -> Batch:
    n = len(labels)
    return Batch(inputs=None, labels=labels, index=np.arange(n), view=np.zeros(n), progress=progress)


def make(spec: str, where: Setting, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """(entry, its adapters)"""
    entry = catalog.load("methods", spec)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = entry.module.adapters(entry.config, where) if hasattr(entry.module, "adapters") else None
    return entry, made.to(dtype) if made is not None else None


TWO = setting((STUDENT.shape, TEACHER.shape), (DEEP.shape, TEACHER_DEEP.shape))


# ---- published values


def test_attention_has_the_published_values() -> None:  # HobbitLong/RepDistiller
    agree(
        facts(lambda s: attention.transfer_loss(s, TEACHER), STUDENT), 0.00603155646556, 0.00209554855, 4.66790477e-05
    )
    small = facts(lambda s: attention.transfer_loss(s, TEACHER_SMALL), STUDENT)
    agree(small, 0.000250894419762, 0.00201790697, -3.02606554e-07)


def test_the_papers_attention_has_the_published_values() -> None:
    # yoshitomo-matsubara/torchdistill, mode "paper": without the ½ and the division by the 36 elements
    got = facts(lambda s: 2 * 36 * attention.transfer_loss(s, TEACHER, form="paper"), STUDENT)
    agree(got, 0.465969468295, 0.0809478638, 0.00181330163)


def test_factors_have_the_published_values() -> None:  # Jangho-Kim/Factor-Transfer-pytorch
    agree(facts(lambda s: factor.factor_loss(s, TEACHER_LIKE), STUDENT), 0.0953424550277, 0.00284697445, 2.07867956e-05)


def test_paraphraser_and_translator_are_the_official_ones() -> None:  # Jangho-Kim/Factor-Transfer-pytorch
    entry, nets = make("factor:ce_weight=0,weight=1", setting((STUDENT.shape, TEACHER.shape)))
    for net in nets.values():
        fill(*net.parameters())
    teacher = signals(TEACHER)
    got = facts(lambda s: entry.module.loss(entry.config, signals(s), teacher, batch(), nets), STUDENT)
    agree(got, 0.0662621845454, 0.00961327914, 0.000165064898)
    (stage,) = entry.module.stages(entry.config, TWO)
    reconstruction = stage.loss(entry.config, None, teacher, batch(), nets)
    assert reconstruction.item() == pytest.approx(43.2908931755, rel=1e-11)


def test_vid_has_the_published_values() -> None:  # megvii-research/mdistiller
    entry, nets = make("vid:ce_weight=0", setting((STUDENT.shape, TEACHER.shape)))
    fill(*nets["regressors"].parameters())
    (scale,) = nets["scales"]
    # the references keep the start in float32 or float64; here in float32, 1 part in 10⁷
    assert scale.tolist() == pytest.approx([math.log(math.exp(5 - 1e-5) - 1)] * 6, rel=1e-6)
    fill_scale = torch.full((6,), math.log(math.exp(5 - 1e-5) - 1), dtype=torch.float64)
    scale.data = fill_scale
    teacher = signals(TEACHER)
    got = facts(lambda s: entry.module.loss(entry.config, signals(s), teacher, batch(), nets), STUDENT)
    agree(got, 0.918691847289, 0.000253202081, 1.05655094e-06)
    (gradient,) = torch.autograd.grad(entry.module.loss(entry.config, signals(STUDENT), teacher, batch(), nets), scale)
    assert (gradient.norm().item(), gradient[3].item()) == pytest.approx((0.0313066554, 0.0128158701), rel=5e-9)


def test_nst_has_the_published_values() -> None:  # HobbitLong/RepDistiller
    agree(facts(lambda s: nst.discrepancy(s, TEACHER), STUDENT), 1.25017877371, 0.0104939138, 0.000469883153)
    # more pairs of channels than of positions: the other order of the same sums
    wide, teacher = wave((8, 40, 2, 2), 1, 0.37, 0.2), wave((8, 30, 2, 2), 1.5, 0.53, 0.4)
    agree(facts(lambda s: nst.discrepancy(s, teacher), wide), 0.0236628919149, 0.0143320357, -5.59632415e-05)


def test_reviewkd_has_the_published_values() -> None:  # megvii-research/mdistiller
    got = facts(lambda s: reviewkd.hierarchical_loss(s, TEACHER_LIKE), STUDENT)
    agree(got, 0.903483196685, 0.0420056988, -0.000365803696)
    entry, fusions = make("reviewkd:ce_weight=0", TWO)
    shallow, deep = fusions
    fill(
        shallow["reduce"][0].weight, shallow["expand"][0].weight, shallow["attend"].weight, shallow["attend"].bias,
        deep["reduce"][0].weight, deep["expand"][0].weight,
    )  # fmt: skip
    teacher = signals(TEACHER, TEACHER_DEEP)
    got = facts(lambda s: entry.module.loss(entry.config, signals(s, DEEP), teacher, batch(), fusions), STUDENT)
    agree(got, 2.80257514823, 0.0106408383, -0.000369091645)
    got = facts(lambda d: entry.module.loss(entry.config, signals(STUDENT, d), teacher, batch(), fusions), DEEP)
    agree(got, 2.80257514823, 0.988018493, 0.00301999255)


@pytest.mark.parametrize(
    ("mask", "loss", "norm", "element"),
    [
        ("channels", 0.280539973633, 0.0350062627, -0.000135499062),
        ("pixels", 0.194003539212, 0.0166813905, 4.44555604e-05),
    ],
)
def test_mgd_has_the_published_values(mask: str, loss: float, norm: float, element: float) -> None:  # yzd-v/MGD
    entry, nets = make(f"mgd:ce_weight=0,mask={mask}", setting((STUDENT.shape, TEACHER.shape)))
    fill(*nets.parameters())

    def seeded(student: Tensor) -> Tensor:
        torch.manual_seed(5)  # the reference drew its mask of the same shape from the same seed
        return entry.module.loss(entry.config, signals(student), signals(TEACHER), batch(), nets)

    agree(facts(seeded, STUDENT), loss, norm, element)


# ---- loops in NumPy


def attention_loop(maps: np.ndarray, power: float) -> list[list[float]]:
    rows = []
    for sample in maps:
        _, h, w = sample.shape
        row = [sum(abs(channel[i, j]) ** power for channel in sample) for i in range(h) for j in range(w)]
        length = math.sqrt(sum(v * v for v in row))
        rows.append([v / length for v in row])
    return rows


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_equals_loops(power: float) -> None:
    ours, theirs = (attention_loop(m.numpy(), power) for m in (STUDENT, TEACHER))
    squares = [sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in zip(ours, theirs, strict=True)]
    code = attention.transfer_loss(STUDENT, TEACHER, power)
    assert code.item() == pytest.approx(sum(squares) / (8 * 36), rel=1e-12)
    # β/2 Σ_b ‖·‖ with β = weight / (B · H · W)
    paper = attention.transfer_loss(STUDENT, TEACHER, power, "paper")
    assert paper.item() == pytest.approx(sum(math.sqrt(s) for s in squares) / (8 * 36) / 2, rel=1e-12)


def test_factor_loss_equals_loops() -> None:
    total = 0.0
    for a, b in zip(STUDENT.numpy(), TEACHER_LIKE.numpy(), strict=True):
        one, other = (math.sqrt(sum(v * v for v in x.flatten())) for x in (a, b))
        total += sum(abs(p / one - q / other) for p, q in zip(a.flatten(), b.flatten(), strict=True))
    assert factor.factor_loss(STUDENT, TEACHER_LIKE).item() == pytest.approx(total / STUDENT.numel(), rel=1e-12)


def test_vid_equals_loops() -> None:
    scale = wave((4,), 2, 1, 0.3)
    total = 0.0
    for mean, target in zip(STUDENT.numpy(), TEACHER_LIKE.numpy(), strict=True):
        for c in range(4):
            variance = math.log(1 + math.exp(scale[c])) + 1e-5
            for m, t in zip(mean[c].flatten(), target[c].flatten(), strict=True):
                total += ((t - m) ** 2 / variance + math.log(variance)) / 2
    got = vid.negative_log_likelihood(STUDENT, TEACHER_LIKE, scale).item()
    assert got == pytest.approx(total / STUDENT.numel(), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (3, 12, 1, 2)])
def test_nst_equals_loops(shape: tuple[int, ...]) -> None:
    student, teacher = wave(shape, 1, 0.37, 0.2), wave((3, 5, *shape[2:]), 1.5, 0.53, 0.4)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        values = []
        for x, y in zip(a, b, strict=True):
            for p in x.reshape(len(x), -1):
                for q in y.reshape(len(y), -1):
                    dot = sum(u * v for u, v in zip(p, q, strict=True))
                    values.append((dot / math.sqrt(sum(p * p) * sum(q * q))) ** 2)
        return sum(values) / len(values)

    s, t = student.numpy(), teacher.numpy()
    expected = mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
    assert nst.discrepancy(student, teacher).item() == pytest.approx(expected, rel=1e-11)


def test_hierarchical_loss_equals_loops() -> None:
    student, teacher = wave((2, 3, 8, 8), 1, 0.37, 0.2), wave((2, 3, 8, 8), 1.5, 0.53, 0.4)
    total, weights = 0.0, 0.0
    for level, weight in ((8, 1.0), (4, 0.5), (2, 0.25), (1, 0.125)):
        side, squares = 8 // level, []
        for a, b in zip(student.numpy().reshape(-1, 8, 8), teacher.numpy().reshape(-1, 8, 8), strict=True):
            for i in range(level):
                for j in range(level):
                    window = np.s_[i * side : (i + 1) * side, j * side : (j + 1) * side]
                    squares.append((a[window].mean() - b[window].mean()) ** 2)
        total, weights = total + weight * sum(squares) / len(squares), weights + weight
    assert reviewkd.hierarchical_loss(student, teacher).item() == pytest.approx(total / weights, rel=1e-12)


def convolution_loop(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """`[B,C,H,W]` by `[O,C,k,k]`, zero-padded to the same size."""
    (b, _, h, w), (o, _, k, _) = x.shape, weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((b, o, h, w))
    for n, c, i, j in np.ndindex(out.shape):
        out[n, c, i, j] = (padded[n, :, i : i + k, j : j + k] * weight[c]).sum() + (0 if bias is None else bias[c])
    return out


def normalise_loop(x: np.ndarray) -> np.ndarray:
    """BatchNorm in training, with weight 1 and bias 0."""
    out = np.zeros_like(x)
    for c in range(x.shape[1]):
        out[:, c] = (x[:, c] - x[:, c].mean()) / math.sqrt(((x[:, c] - x[:, c].mean()) ** 2).mean() + 1e-5)
    return out


def test_fusion_equals_loops() -> None:
    own, deeper = wave((2, 3, 4, 4), 1, 0.37, 0.2), wave((2, 5, 2, 2), 1.5, 0.53, 0.4)
    parts = make("reviewkd", setting(((3, 4, 4), (4, 8, 8)), ((5, 2, 2), (6, 2, 2))))[1][0]
    weights = {k: v.detach().numpy() for k, v in parts.state_dict().items()}
    reduced = normalise_loop(convolution_loop(own.numpy(), weights["reduce.0.weight"]))
    other = np.zeros((2, 5, 4, 4))
    for n, c, i, j in np.ndindex(other.shape):
        other[n, c, i, j] = deeper[n, c, i // 2, j // 2]
    stacked = np.concatenate([reduced, other], 1)
    gates = 1 / (1 + np.exp(-convolution_loop(stacked, weights["attend.weight"], weights["attend.bias"])))
    fused = gates[:, :1] * reduced + gates[:, 1:] * other
    grown = np.zeros((2, 5, 8, 8))
    for n, c, i, j in np.ndindex(grown.shape):
        grown[n, c, i, j] = fused[n, c, i // 2, j // 2]
    result = normalise_loop(convolution_loop(grown, weights["expand.0.weight"]))
    got, goes_on = reviewkd.fuse(parts, own, deeper, (8, 8))
    assert goes_on.detach().numpy() == pytest.approx(grown, rel=1e-9, abs=1e-12)
    assert got.detach().numpy() == pytest.approx(result, rel=1e-9, abs=1e-12)


def test_mgd_equals_loops() -> None:
    entry, nets = make("mgd:ce_weight=0,weight=1,masked=0.5", setting(((3, 4, 4), (5, 4, 4))))
    student, teacher = wave((2, 3, 4, 4), 1, 0.37, 0.2), wave((2, 5, 4, 4), 1.5, 0.53, 0.4)
    weights = {k: v.numpy() for k, v in nets.state_dict().items()}
    torch.manual_seed(1)
    got = entry.module.loss(entry.config, signals(student), signals(teacher), batch(torch.tensor([1, 2])), nets)
    torch.manual_seed(1)
    hidden = torch.rand(2, 5, 1, 1).numpy() < 0.5
    assert 0 < hidden.sum() < 10
    aligned = np.where(hidden, 0.0, convolution_loop(student.numpy(), weights["align.weight"], weights["align.bias"]))
    first = np.maximum(convolution_loop(aligned, weights["generator.0.weight"], weights["generator.0.bias"]), 0.0)
    generated = convolution_loop(first, weights["generator.2.weight"], weights["generator.2.bias"])
    assert got.item() == pytest.approx(((generated - teacher.numpy()) ** 2).sum() / 2, rel=1e-12)


# ---- gradients by finite differences


@pytest.mark.parametrize(
    "function",
    [
        lambda s, t: attention.transfer_loss(s, t, 2.0, "code"),
        lambda s, t: attention.transfer_loss(s, t, 2.0, "paper"),
        lambda s, t: attention.transfer_loss(s, t[:, :, :2, :2], 3.0, "code"),
        factor.factor_loss,
        lambda s, t: vid.negative_log_likelihood(s, t, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)),
        nst.discrepancy,
        reviewkd.hierarchical_loss,
        mgd.generation_loss,
    ],
    ids=["attention", "attention paper", "attention pooled", "factor", "vid", "nst", "reviewkd", "mgd"],
)
def test_gradients_agree_with_finite_differences(function) -> None:
    student, teacher = wave((2, 3, 3, 3), 1, 0.37, 0.2).requires_grad_(), wave((2, 3, 3, 3), 1.5, 0.53, 0.4)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher), student)


@pytest.mark.parametrize("spec", ["factor", "vid", "reviewkd", "mgd:masked=0"])
def test_gradients_through_the_adapters_agree_with_finite_differences(spec: str) -> None:
    where = setting(((3, 4, 4), (2, 4, 4)), ((2, 2, 2), (3, 2, 2)))
    entry, nets = make(f"{spec}{',' if ':' in spec else ':'}weight=1", where)
    maps = [wave((2, *ours.shape), 1, 0.37, 0.2).requires_grad_() for ours, _ in where.pairs]
    teacher = signals(*(wave((2, *theirs.shape), 1.5, 0.53, 0.4) for _, theirs in where.pairs))
    labels = torch.tensor([1, -1])
    assert torch.autograd.gradcheck(
        lambda *m: entry.module.loss(entry.config, signals(*m), teacher, batch(labels), nets), maps
    )
    vectors = {name: p for name, p in nets.named_parameters() if p.dim() == 1}
    trained = next(p for name, p in vectors.items() if not name.startswith(("paraphraser", "decoder")))
    assert torch.autograd.gradcheck(
        lambda _: entry.module.loss(entry.config, signals(*maps), teacher, batch(labels), nets), trained
    )


# ---- invariances


PAIRWISE = {
    "attention": attention.transfer_loss,
    "attention paper": lambda s, t: attention.transfer_loss(s, t, form="paper"),
    "factor": factor.factor_loss,
    "vid": lambda s, t: vid.negative_log_likelihood(s, t, torch.zeros(4, dtype=torch.float64)),
    "nst": nst.discrepancy,
    "reviewkd": reviewkd.hierarchical_loss,
    "mgd": mgd.generation_loss,
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_losses_are_means_over_the_batch(name: str) -> None:
    once = PAIRWISE[name](STUDENT, TEACHER_LIKE).item()
    twice = PAIRWISE[name](torch.cat([STUDENT] * 2), torch.cat([TEACHER_LIKE] * 2)).item()
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert [twice, PAIRWISE[name](STUDENT[order], TEACHER_LIKE[order]).item()] == pytest.approx([once] * 2, rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - {"vid"}))
def test_equal_maps_have_no_loss_and_no_gradient(name: str) -> None:
    loss, norm, _ = facts(lambda s: PAIRWISE[name](s, STUDENT), STUDENT)
    assert loss == pytest.approx(0, abs=1e-15) and norm < 1e-15  # a root at 0 would give NaN


@pytest.mark.parametrize("name", ["attention", "attention paper", "factor", "nst"])
def test_the_size_of_a_map_does_not_matter(name: str) -> None:
    sizes = wave((8, 1, 1, 1), 1, 1, 0).abs() + 0.1
    once = PAIRWISE[name](STUDENT, TEACHER_LIKE).item()
    assert PAIRWISE[name](7 * STUDENT, TEACHER_LIKE * sizes).item() == pytest.approx(once, rel=1e-11)


@pytest.mark.parametrize("name", ["attention", "attention paper", "nst"])
def test_the_order_of_channels_does_not_matter_where_it_has_no_meaning(name: str) -> None:
    once = PAIRWISE[name](STUDENT, TEACHER).item()
    permuted = PAIRWISE[name](STUDENT[:, [2, 0, 3, 1]], TEACHER[:, [5, 3, 4, 0, 1, 2]]).item()
    assert permuted == pytest.approx(once, rel=1e-12)


def test_factor_transfer_compares_channel_with_channel() -> None:
    # HobbitLong/RepDistiller collapses the channels to an attention map, which sees neither their order nor a sign
    def collapsed(s: Tensor, t: Tensor) -> float:
        ours, theirs = (nn.functional.normalize(x.square().mean(1).flatten(1)) for x in (s, t))
        return (ours - theirs).abs().mean().item()

    assert collapsed(STUDENT, TEACHER) == pytest.approx(0.0689358693782, rel=1e-11)  # its published value
    got = factor.factor_loss(STUDENT, TEACHER_LIKE).item()
    assert got == pytest.approx(0.0953424550277, rel=1e-11) and abs(collapsed(STUDENT, TEACHER_LIKE) / got - 1) > 0.1
    swapped = STUDENT[:, [1, 0, 2, 3]]
    assert collapsed(swapped, TEACHER_LIKE) == pytest.approx(collapsed(STUDENT, TEACHER_LIKE), rel=1e-12)
    # twelve digits are the same for the collapsed form
    assert abs(factor.factor_loss(swapped, TEACHER_LIKE).item() / got - 1) > 1e-4
    assert abs(factor.factor_loss(-STUDENT, TEACHER_LIKE).item() / got - 1) > 1e-4


# ---- inputs that break other code


def extreme(kind: str, shape: tuple[int, ...]) -> Tensor:
    return {
        "dead": torch.zeros(shape),
        "huge": torch.where(wave(shape, 1, 0.9, 0.1) > 0, 1e4, -1e4).float(),
        "duplicated": wave((1, *shape[1:]), 1, 0.37, 0.2).float().expand(shape).clone(),
        "usual": wave(shape, 1, 0.37, 0.2).float(),
    }[kind]


@pytest.mark.parametrize("spec", ON_MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("dead", "usual"), ("usual", "dead"), ("dead", "dead"), ("huge", "usual"), ("usual", "huge"), ("huge", "huge"),
     ("duplicated", "duplicated"), ("duplicated", "usual")],
)  # fmt: skip
def test_loss_and_gradients_stay_finite(spec: str, dtype: torch.dtype, ours: str, theirs: str) -> None:
    entry, nets = make(spec, TWO, torch.float32)
    maps = [extreme(ours, (8, *s.shape)).to(dtype).requires_grad_() for s, _ in TWO.pairs]
    logits = extreme("huge", (8, 10)).to(dtype).requires_grad_()
    teacher = signals(*(extreme(theirs, (8, *t.shape)).to(dtype) for _, t in TWO.pairs), logits=-logits.detach())
    torch.manual_seed(0)
    loss = entry.module.loss(entry.config, signals(*maps, logits=logits), teacher, batch(), nets)
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    trained = [logits, *maps, *(nets.parameters() if nets is not None else ())]
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    if ours == "dead" and nets is None:  # no direction to go: not 1e12 of it either
        assert all(m.grad is not None and not m.grad.any() for m in maps)


def test_a_bfloat16_map_is_judged_in_float32() -> None:
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    for function in (attention.transfer_loss, nst.discrepancy):
        exact = function(student.double(), teacher.double()).item()
        # float32 rounds to 6e-8; bfloat16 arithmetic would be off by 4e-3
        assert function(student, teacher).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("spec", ["attention_gradient", "attention", "crd"])
def test_what_gives_logits_only_is_refused_before_training(spec: str) -> None:
    with pytest.raises(UsageError, match=f"{spec}.*an ONNX file gives nothing else") as caught:
        distill.check(catalog.load("methods", spec), dataclasses.replace(TWO, only_logits="an ONNX file"))
    assert caught.value.hint


@pytest.mark.parametrize("spec", [*ON_MAPS, "attention_gradient"])
def test_networks_without_maps_are_refused_before_training(spec: str) -> None:
    entry = catalog.load("methods", spec)
    nothing = dataclasses.replace(setting(), teacher_pooled=0)
    with pytest.raises(UsageError, match=spec.partition(":")[0]) as caught:
        distill.check(entry, nothing)
    assert caught.value.hint
    distill.check(entry, TWO)


@pytest.mark.parametrize("spec", ON_MAPS)
def test_pairs_of_any_shape_are_taken(spec: str) -> None:
    # sizes that differ, in both directions, are not square or do not divide; one pair only; equal channels
    for pairs in (
        [((3, 8, 8), (4, 4, 4)), ((5, 2, 2), (6, 4, 4))],
        [((3, 6, 4), (4, 5, 3))],
        [((4, 7, 7), (4, 3, 3)), ((4, 4, 4), (4, 4, 4)), ((2, 2, 2), (2, 2, 2))],
    ):
        where = setting(*pairs)
        entry, nets = make(spec, where)
        maps = [wave((4, *s.shape), 1, 0.37, 0.2).requires_grad_() for s, _ in where.pairs]
        teacher = signals(*(wave((4, *t.shape), 1.5, 0.53, 0.4) for _, t in where.pairs))
        loss = entry.module.loss(entry.config, signals(*maps), teacher, batch(LABELS[:4]), nets)
        loss.backward()
        assert torch.isfinite(loss) and maps[-1].grad is not None and maps[-1].grad.abs().sum() > 0


@pytest.mark.parametrize("spec", ["attention", "attention:form=paper", "nst"])
def test_all_pairs_count(spec: str) -> None:
    entry, _ = make(f"{spec}{',' if ':' in spec else ':'}ce_weight=0", TWO)
    pairs = [(STUDENT, TEACHER), (DEEP, TEACHER_DEEP)]
    single = [entry.module.loss(entry.config, signals(s), signals(t), batch(), None).item() for s, t in pairs]
    both = entry.module.loss(entry.config, signals(STUDENT, DEEP), signals(TEACHER, TEACHER_DEEP), batch(), None)
    assert both.item() == pytest.approx(sum(single), rel=1e-12) and min(single) > 0.01 * both.item()


# ---- factor transfer's stages


def test_the_paraphraser_is_trained_alone_and_then_frozen() -> None:
    entry, nets = make("factor", TWO)
    (stage,) = entry.module.stages(entry.config, TWO)
    assert (stage.student, stage.share, stage.pairs) == (False, 0.1, TWO.pairs[-1:])
    assert [layer.out_channels for layer in nets["paraphraser"][::2]] == [7, 4, 4]  # m = round(0.5 · 7)
    assert [layer.out_channels for layer in nets["translator"][::2]] == [5, 4, 4]
    stage.loss(entry.config, None, signals(TEACHER_DEEP), batch(), nets).backward()
    moved = {name for name, p in nets.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.partition(".")[0] for name in moved} == {"paraphraser", "decoder"} and len(moved) == 12
    nets.zero_grad(set_to_none=True)
    teacher = signals(TEACHER, TEACHER_DEEP)
    entry.module.loss(entry.config, signals(STUDENT, DEEP), teacher, batch(), nets).backward()
    moved = {name.partition(".")[0] for name, p in nets.named_parameters() if p.grad is not None}
    assert moved == {"translator"}


def test_the_first_stage_learns_to_reconstruct() -> None:
    entry, nets = make("factor:rate=0.25", setting(((8, 4, 4), (16, 4, 4))), torch.float32)
    generator = torch.Generator().manual_seed(1)
    sources, mixing = (torch.randn(*shape, generator=generator) for shape in ((32, 2, 16), (16, 2)))
    maps = (mixing @ sources).relu().unflatten(2, (4, 4))  # 16 channels that two would do for
    # Adam: by the plain SGD of a training this takes some hundred steps
    optimizer = torch.optim.Adam(nets.parameters(), lr=0.01)
    (stage,) = entry.module.stages(entry.config, TWO)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = stage.loss(entry.config, None, signals(maps), batch(), nets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # what the best constant reaches: the median is 0
    assert losses[-1] < 0.5 * maps.abs().mean().item()


# ---- VID's variances


def test_vids_variances_reach_the_optimizer() -> None:
    # megvii-research/mdistiller keeps them in a plain list, out of reach of parameters()
    entry, nets = make("vid:ce_weight=0", TWO)
    scales = [name for name, _ in nets.named_parameters() if name.startswith("scales")]
    assert len(scales) == 2 and len(list(nets["regressors"].parameters())) == 6
    optimizer = torch.optim.Adam(nets["scales"].parameters(), lr=0.3)
    student, teacher = signals(STUDENT, DEEP), signals(TEACHER, TEACHER_DEEP)
    for _ in range(300):
        optimizer.zero_grad()
        entry.module.loss(entry.config, student, teacher, batch(), nets).backward()
        optimizer.step()
    with torch.no_grad():
        for ours, theirs, regressor, scale in zip(
            (STUDENT, DEEP), (TEACHER, TEACHER_DEEP), nets["regressors"], nets["scales"], strict=True
        ):
            errors = (regressor(ours) - theirs).square().mean((0, 2, 3))  # what the likelihood is best with
            assert (nn.functional.softplus(scale) + 1e-5).tolist() == pytest.approx(errors.tolist(), rel=1e-3)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 1e3])
def test_vid_starts_with_the_variance_asked_for(variance: float) -> None:
    _, nets = make(f"vid:variance={variance}", TWO)
    for scale in nets["scales"]:
        got = nn.functional.softplus(scale) + vid.SMALLEST_VARIANCE
        assert got.tolist() == pytest.approx([variance] * len(scale), rel=1e-4)  # made in float32, from a difference


# ---- NST


@pytest.mark.parametrize(("channels", "positions"), [(2, 9), (40, 2)])
def test_both_orders_of_nsts_sums_are_the_same(channels: int, positions: int) -> None:
    a, b = wave((3, channels, positions), 1, 0.37, 0.2), wave((3, channels, positions), 1.5, 0.53, 0.4)
    assert nst.mean_kernel(a, b).item() == pytest.approx((a @ b.mT).square().mean().item(), rel=1e-12)


def test_nst_is_the_distance_of_the_mean_patterns() -> None:
    # with k(a,b) = (a·b)² the mean embedding is the mean of a aᵀ
    ours, theirs = (nst.patterns(m) for m in (STUDENT, TEACHER))
    means = [(x.mT @ x) / x.shape[1] for x in (ours, theirs)]
    expected = (means[0] - means[1]).square().sum((1, 2)).mean()
    assert nst.discrepancy(STUDENT, TEACHER).item() == pytest.approx(expected.item(), rel=1e-11)


# ---- ReviewKD


@pytest.mark.parametrize(
    ("size", "levels"), [(8, (8, 4, 2, 1)), (4, (4, 2, 1)), (3, (3, 2, 1)), (2, (2, 1)), (1, (1,))]
)
def test_levels_as_large_as_the_map_are_left_out(size: int, levels: tuple[int, ...]) -> None:
    ones = torch.ones(1, 1, size, size, dtype=torch.float64)
    assert reviewkd.hierarchical_loss(ones, 0 * ones).item() == pytest.approx(1.0)  # a mean whatever the levels
    if size == 2:
        checkers = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]], dtype=torch.float64)
        assert reviewkd.hierarchical_loss(checkers, 0 * checkers).item() == pytest.approx(1 / 1.5)
    weights = [0.5**i for i in range(len(levels))]
    corner = torch.zeros_like(ones)
    corner[..., 0, 0] = 1.0
    pooled = [nn.functional.adaptive_avg_pool2d(corner, n).square().mean().item() for n in levels]
    expected = sum(w * p for w, p in zip(weights, pooled, strict=True)) / sum(weights)
    assert reviewkd.hierarchical_loss(corner, 0 * ones).item() == pytest.approx(expected, rel=1e-12)


def test_the_review_warms_up() -> None:
    def at(spec: str, progress: float) -> float:
        entry, nets = make(spec, TWO)
        teacher = signals(TEACHER, TEACHER_DEEP)
        return entry.module.loss(entry.config, signals(STUDENT, DEEP), teacher, batch(progress=progress), nets).item()

    spec = "reviewkd:ce_weight=0,warmup=0.2"
    full = at(spec, 0.2)
    assert [at(spec, p) for p in (0.0, 0.05, 0.1, 0.9)] == pytest.approx([0, full / 4, full / 2, full], rel=1e-12)
    assert at("reviewkd:ce_weight=0,warmup=0", 0.0) == pytest.approx(full, rel=1e-12)
    assert catalog.load("methods", "reviewkd").config.warmup == pytest.approx(20 / 240)


def test_deep_maps_are_reviewed_at_every_shallower_level() -> None:
    entry, fusions = make("reviewkd", TWO)
    deep = DEEP.clone().requires_grad_()
    results = reviewkd.review(fusions, [STUDENT, deep], [(6, 6), (3, 3)])
    assert [tuple(r.shape) for r in results] == [TEACHER.shape, TEACHER_DEEP.shape]
    for result, theirs in zip(results, (TEACHER, TEACHER_DEEP), strict=True):
        (gradient,) = torch.autograd.grad(reviewkd.hierarchical_loss(result, theirs), deep, retain_graph=True)
        assert gradient.abs().max() > 1e-6
    shallow = STUDENT.clone().requires_grad_()
    results = reviewkd.review(fusions, [shallow, DEEP], [(6, 6), (3, 3)])
    assert torch.autograd.grad(results[1].sum(), shallow, allow_unused=True) == (None,)  # never shallow → deep


def test_fused_maps_have_the_width_of_the_deepest_and_at_most_the_limit() -> None:
    for spec, width in (("reviewkd", 5), ("reviewkd:channels=2", 2)):
        fusions = make(spec, TWO)[1]
        assert [f["reduce"][0].out_channels for f in fusions] == [width] * 2
        assert "attend" in fusions[0] and "attend" not in fusions[1]
    huge = setting(((8, 2, 2), (4, 2, 2)), ((900, 1, 1), (4, 1, 1)))
    assert make("reviewkd", huge)[1][0]["reduce"][0].out_channels == 512


# ---- MGD's masks


@pytest.mark.parametrize(("kind", "shape"), [("channels", (500, 20, 1, 1)), ("pixels", (500, 1, 5, 4))])
def test_masks_hide_the_share_asked_for(kind: str, shape: tuple[int, ...]) -> None:
    maps = torch.ones(500, 20, 5, 4, dtype=torch.float64)
    torch.manual_seed(0)
    mask, another = (mgd.random_mask(maps, 0.15, kind) for _ in range(2))
    assert mask.shape == shape and set(mask.unique().tolist()) == {0.0, 1.0}
    error = 4 * math.sqrt(0.15 * 0.85 / mask.numel())
    assert (mask == 0).double().mean().item() == pytest.approx(0.15, abs=error)
    assert not torch.equal(mask, another)  # fresh at every step
    torch.manual_seed(0)
    assert torch.equal(mask, mgd.random_mask(maps, 0.15, kind))
    # one draw for a sample or one for the batch would not vary like this
    assert (mask == 0).double().flatten(1).mean(1).std().item() == pytest.approx(math.sqrt(0.15 * 0.85 / 20), rel=0.15)
    assert mgd.random_mask(maps, 0.0, kind).all()


def test_maps_of_equal_width_are_not_aligned() -> None:
    assert isinstance(make("mgd", setting(((4, 6, 6), (4, 6, 6))))[1]["align"], nn.Identity)
    assert isinstance(make("mgd", setting(((4, 6, 6), (6, 6, 6))))[1]["align"], nn.Conv2d)


# ---- gradient-based attention


def smooth_logits(inputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A network that can be differentiated any number of times: `[B,1,2,3]` → `[B,4]`."""
    return torch.tanh(inputs.flatten(1) @ first) @ second


def leaf(count: int = 5) -> Tensor:
    return wave((count, 1, 2, 3), 1, 0.9, 0.3).requires_grad_()


WEIGHTS = wave((6, 5), 1, 0.7, 0.2), wave((5, 4), 1, 1.1, 0.4)
CLASSES = torch.tensor([0, 3, 1, 2, 3])


def test_gradient_distance_equals_loops_for_a_linear_network() -> None:
    ours, theirs = wave((6, 4), 1, 0.7, 0.2).numpy(), wave((6, 4), 2, 1.3, 0.5).numpy()
    total = 0.0
    for x, y in zip(leaf().detach().flatten(1).numpy(), CLASSES.tolist(), strict=True):
        gradients = []
        for weight in (ours, theirs):
            z = [sum(x[i] * weight[i, k] for i in range(6)) for k in range(4)]
            p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
            gradients.append([sum(weight[i, k] * (p[k] - (k == y)) for k in range(4)) for i in range(6)])
        total += math.sqrt(sum((a - b) ** 2 for a, b in zip(*gradients, strict=True)))
    sides = []
    for weight in (ours, theirs):
        inputs = leaf()
        logits = inputs.flatten(1) @ torch.from_numpy(weight)
        sides.append(Signals(logits=logits, inputs=inputs))
    config = attention_gradient.Config(ce_weight=0.0, weight=3.0)
    got = attention_gradient.loss(config, *sides, batch(CLASSES), None)
    assert got.item() == pytest.approx(3 * total / 5 / 2, rel=1e-12)  # β/2 · mean over samples of the norm


def gradient_penalty(first: Tensor, second: Tensor) -> Tensor:
    inputs = leaf()
    logits = smooth_logits(inputs, first, second)
    ours = attention_gradient.input_gradient(logits, inputs, CLASSES, differentiable=True)
    return attention_gradient.distance(ours, wave(tuple(inputs.shape), 0.5, 1.9, 0.1))


def test_second_and_third_derivatives_agree_with_finite_differences() -> None:
    weights = [w.clone().requires_grad_() for w in WEIGHTS]
    assert torch.autograd.gradcheck(gradient_penalty, weights)  # the loss holds one derivative already
    assert torch.autograd.gradgradcheck(gradient_penalty, weights)


def test_a_samples_gradient_does_not_depend_on_the_batch() -> None:
    def gradient(count: int) -> Tensor:
        inputs = leaf(count)
        return attention_gradient.input_gradient(smooth_logits(inputs, *WEIGHTS), inputs, CLASSES[:count])

    # a mean over the batch would make it five times smaller
    assert gradient(5)[:1].flatten().tolist() == pytest.approx(gradient(1).flatten().tolist(), rel=1e-12)


def gradient_signals(first: Tensor, second: Tensor, inputs: Tensor | None = None) -> Signals:
    inputs = leaf() if inputs is None else inputs
    return Signals(logits=smooth_logits(inputs, first, second), inputs=inputs)


def test_the_teachers_gradient_is_a_constant() -> None:
    teacher_weights = [wave(tuple(w.shape), 2, 0.8, 0.6).requires_grad_() for w in WEIGHTS]
    student_weights = [w.clone().requires_grad_() for w in WEIGHTS]
    teacher = gradient_signals(*teacher_weights)
    loss = attention_gradient.loss(
        attention_gradient.Config(), gradient_signals(*student_weights), teacher, batch(CLASSES), None
    )
    loss.backward()
    assert all(w.grad is None for w in teacher_weights) and teacher.inputs.grad is None
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in student_weights)


def test_a_second_method_may_read_the_same_logits() -> None:
    student_weights = [w.clone().requires_grad_() for w in WEIGHTS]
    student, teacher = gradient_signals(*student_weights), gradient_signals(*WEIGHTS)
    specs = ("attention_gradient", "kd", "attention_gradient")
    entries = [catalog.load("methods", spec) for spec in specs]
    torch.stack([e.module.loss(e.config, student, teacher, batch(CLASSES), None) for e in entries]).sum().backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in student_weights)


def test_equal_networks_have_equal_gradients_and_no_pull() -> None:
    weights = [w.clone().requires_grad_() for w in WEIGHTS]
    config = attention_gradient.Config(ce_weight=0.0)
    loss = attention_gradient.loss(config, gradient_signals(*weights), gradient_signals(*WEIGHTS), batch(CLASSES), None)
    loss.backward()
    assert loss.item() == 0.0 and all(w.grad is not None and not w.grad.any() for w in weights)  # not NaN


def test_unlabelled_samples_take_the_teachers_answer() -> None:
    config = attention_gradient.Config(ce_weight=0.0)
    other = tuple(wave(tuple(w.shape), 2, 0.8, 0.6) for w in WEIGHTS)
    answers = gradient_signals(*other).logits.argmax(1)
    labels = torch.where(torch.tensor([True, False, True, False, False]), CLASSES, -1)

    def at(labels: Tensor) -> float:
        return attention_gradient.loss(
            config, gradient_signals(*WEIGHTS), gradient_signals(*other), batch(labels), None
        ).item()

    assert at(labels) == at(torch.where(labels >= 0, labels, answers))
    assert at(torch.full((5,), -1)) == at(answers) and at(answers) != at(CLASSES)


def test_descent_brings_the_gradients_together() -> None:
    weights = [w.clone().requires_grad_() for w in WEIGHTS]
    teacher = tuple(wave(tuple(w.shape), 1, 0.8, 0.6) for w in WEIGHTS)
    optimizer = torch.optim.Adam(weights, lr=0.02)
    config = attention_gradient.Config(ce_weight=0.0, weight=1.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = attention_gradient.loss(
            config, gradient_signals(*weights), gradient_signals(*teacher), batch(CLASSES), None
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradient_attention_stays_finite(dtype: torch.dtype, scale: float) -> None:
    weights = [(w * math.sqrt(scale)).to(dtype).requires_grad_() for w in WEIGHTS]
    teacher = [(-w * math.sqrt(scale)).to(dtype) for w in WEIGHTS]
    sides = [gradient_signals(*w, inputs=leaf().detach().to(dtype).requires_grad_()) for w in (weights, teacher)]
    loss = attention_gradient.loss(attention_gradient.Config(), *sides, batch(CLASSES), None)
    loss.backward()
    assert torch.isfinite(loss) and all(w.grad is not None and torch.isfinite(w.grad).all() for w in weights)


def test_convolutions_pooling_and_batchnorm_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    inputs = torch.rand(8, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    student = Signals(logits=net(inputs), inputs=inputs)
    other = torch.rand(8, 3, 8, 8, requires_grad=True)
    teacher = Signals(logits=other.flatten(1) @ torch.randn(192, 10), inputs=other)
    attention_gradient.loss(attention_gradient.Config(ce_weight=0.0), student, teacher, batch(), None).backward()
    # the last bias moves no gradient of the inputs but through the softmax; all others count
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in net.parameters())


def test_the_learning_rate_falls_where_the_objective_is_larger() -> None:
    def scale(**knobs: float) -> float:
        return attention_gradient.scale(attention_gradient.Config(**knobs))

    assert scale() == pytest.approx(2.0) and scale(weight=1.0) == pytest.approx(21.0) and scale(weight=0.0) == 1.0


# ---- the hard labels


@pytest.mark.parametrize("spec", ON_MAPS)
def test_without_its_own_term_every_method_is_cross_entropy(spec: str) -> None:
    entry, nets = make(f"{spec}{',' if ':' in spec else ':'}weight=0", TWO)
    assert entry.config.ce_weight == 1.0
    labels = torch.where(torch.arange(8) % 2 == 0, LABELS, -1)
    student, teacher = signals(STUDENT, DEEP), signals(TEACHER, TEACHER_DEEP)
    got = entry.module.loss(entry.config, student, teacher, batch(labels), nets)
    assert got.item() == pytest.approx(hard_label_loss(student.logits, labels).item(), rel=1e-12)
