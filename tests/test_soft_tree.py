"""The soft decision tree: its arithmetic against loops over paths, its penalty, its file, and that it reads digits."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress import augment, catalog, export, network, plan, prune, taps, train
from compress.errors import CompressError
from compress.methods import soft_tree as method
from compress.nets import soft_tree as tree
from compress.recipe import Recipe
from compress.store import Store
from compress.types import Batch, Signals, Splits


def wave(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).reshape(shape)


def make(spec: str = "soft_tree:depth=3", shape: tuple[int, int, int] = (1, 4, 4), classes: int = 5) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.4,) * shape[0], "std": (0.3,) * shape[0]}
    names = tuple(f"class {i}" for i in range(classes))
    return network.build(spec, class_names=names, input_shape=shape, **statistics, seed=0)


def body(spec: str = "soft_tree:depth=3", shape: tuple[int, int, int] = (1, 4, 4), classes: int = 5) -> tree.SoftTree:
    """A tree in float64 whose filters are large enough for decided and undecided nodes."""
    made = make(spec, shape, classes).body.double()
    with torch.no_grad():
        made.filters.weight.mul_(4)
    return made.train()


def images(count: int = 6, shape: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    return wave((count, *shape), 1.5, 0.83, 0.2)


# an independent version: one image at a time, paths as texts of turns
def turns_to(leaf: int, depth: int) -> list[int]:
    return [leaf >> (depth - 1 - level) & 1 for level in range(depth)]


def node_at(turns: list[int]) -> int:
    node = 0
    for turn in turns:
        node = 2 * node + 1 + turn
    return node


def probability(logits: list[float], turns: list[int]) -> float:
    """Of the node that `turns` lead to from the root."""
    total = 1.0
    for level, turn in enumerate(turns):
        right = 1 / (1 + math.exp(-logits[node_at(turns[:level])]))
        total *= right if turn else 1 - right
    return total


def all_turns(depth: int) -> Iterator[list[int]]:
    return (turns_to(leaf, depth) for leaf in range(2**depth))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_probability_of_every_node_is_the_product_along_its_path(depth: int) -> None:
    logits = wave((5, 2**depth - 1), 3, 0.7, 0.1)
    levels = tree.log_reach(logits)
    assert len(levels) == depth + 1
    for row, sample in enumerate(logits.tolist()):
        for level, reach in enumerate(levels):
            expected = [probability(sample, turns) for turns in all_turns(level)]
            assert reach[row].exp().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("depth", range(1, 11))
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_the_probabilities_of_each_level_sum_to_one(depth: int, size: float) -> None:
    logits = wave((4, 2**depth - 1), size, 0.7, 0.1)
    for level in tree.log_reach(logits):
        assert level.exp().sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-12)
        assert level.isfinite().all()


def test_the_loss_is_the_expected_cross_entropy_over_the_leaves() -> None:
    net, x, teacher = body(), images(), wave((6, 5), 3, 1.3, 0.5)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    nodes, leaves = net.node_logits(x).tolist(), [softmax(row) for row in net.leaves.tolist()]
    soft, hard = [], []
    for sample, answers, label in zip(nodes, teacher.tolist(), labels.tolist(), strict=True):
        paths = [probability(sample, turns) for turns in all_turns(3)]
        targets = softmax([a / 2 for a in answers])
        of_leaves = [-sum(t * math.log(q) for t, q in zip(targets, leaf, strict=True)) for leaf in leaves]
        soft.append(sum(p * c for p, c in zip(paths, of_leaves, strict=True)))
        if label >= 0:
            hard.append(sum(p * -math.log(leaf[label]) for p, leaf in zip(paths, leaves, strict=True)))
    m = net(x)
    assert method.soft_label_term(m, teacher, 2).item() == pytest.approx(sum(soft) / 6, rel=1e-12)
    assert method.hard_label_term(m, labels).item() == pytest.approx(sum(hard) / 5, rel=1e-12)
    entry = catalog.load("methods", "soft_tree:temperature=2,ce_weight=0.3,kd_weight=0.6")
    batch = Batch(inputs=None, labels=labels, index=np.arange(6), view=np.zeros(6), progress=0.0)
    total = entry.module.loss(entry.config, Signals(logits=m), Signals(logits=teacher), batch, None)
    assert total.item() == pytest.approx(0.3 * sum(hard) / 5 + 0.6 * sum(soft) / 6, rel=1e-12)


@pytest.mark.parametrize("spec", ["soft_tree:depth=1", "soft_tree:depth=4", "soft_tree:depth=4,beta=3"])
def test_the_answer_is_the_leaf_with_the_most_probable_path(spec: str) -> None:
    net, x = body(spec).eval(), images(20)
    depth, beta = net.leaves.shape[0].bit_length() - 1, 3 if "beta" in spec else 1
    chosen = []
    for image, answer in zip(x, net(x), strict=True):
        weights, bias = net.filters.weight.tolist(), net.filters.bias.tolist()
        pixels = image.flatten().tolist()
        logits = [
            beta * (sum(a * b for a, b in zip(w, pixels, strict=True)) + c) for w, c in zip(weights, bias, strict=True)
        ]
        paths = [probability(logits, turns) for turns in all_turns(depth)]
        chosen.append(paths.index(max(paths)))
        expected = [math.log(q) for q in softmax(net.leaves[chosen[-1]].tolist())]
        assert answer.tolist() == pytest.approx(expected, rel=1e-12)
    assert len(set(chosen)) > 1


def test_the_most_probable_leaf_need_not_be_where_each_turn_leads() -> None:
    # left with 0.51, but there all is undecided; right everything is sure
    logits = torch.tensor([[-0.04, 0.1, 9.0]])
    assert tree.most_probable_leaf(logits).item() == 3


@pytest.mark.parametrize("size", [0.0, 60.0, 1e4])
def test_most_probable_leaf_agrees_with_the_logarithms_at_any_size(size: float) -> None:
    logits = wave((50, 1023), size, 0.7, 0.1).float()
    leaf, paths = tree.most_probable_leaf(logits), tree.log_reach(logits)[-1]
    # float32 sums of logarithms of this size round by size · 1e-7 at each of ten levels
    assert (paths.gather(1, leaf[:, None])[:, 0] >= paths.max(1).values - max(1.0, size) * 1e-5).all()


def test_gradients_agree_with_finite_differences() -> None:
    logits, leaves = wave((3, 7), 2, 0.7, 0.1).requires_grad_(), wave((8, 4), 1, 1.1, 0.3).requires_grad_()

    def answers(logits: Tensor, leaves: Tensor) -> Tensor:
        return tree.log_reach(logits)[-1].exp() @ F.log_softmax(leaves, 1)

    assert torch.autograd.gradcheck(answers, (logits, leaves))
    branches = wave((7, 2), 0.2, 0.9, 0.2).abs().requires_grad_()
    assert torch.autograd.gradcheck(tree.imbalance, branches)
    m = answers(logits, leaves).detach().requires_grad_()
    teacher, labels = wave((3, 4), 3, 1.3, 0.5), torch.tensor([1, -1, 3])
    assert torch.autograd.gradcheck(lambda m: method.soft_label_term(m, teacher, 2.5), m)
    assert torch.autograd.gradcheck(lambda m: method.hard_label_term(m, labels), m)


# the penalty
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_the_penalty_is_least_where_every_node_splits_in_halves(depth: int) -> None:
    nodes = 2**depth - 1
    shares = torch.cat([torch.full((2**d, 2), 0.5 ** (d + 1)) for d in range(depth)]).double().requires_grad_()
    least = tree.imbalance(shares)
    assert least.item() == pytest.approx(depth * math.log(2), rel=1e-5)  # SMALLEST_SHARE is seen in deep nodes
    (gradient,) = torch.autograd.grad(least, shares)
    assert gradient.abs().max() < 1e-5
    for node in {0, nodes // 2, nodes - 1}:
        for shift in (-0.3, 0.01, 0.4):
            other = shares.detach().clone()
            other[node] *= torch.tensor([1 + shift, 1 - shift]).double()
            assert tree.imbalance(other) > least


def test_the_penalty_is_the_papers_formula_over_a_window_that_grows_with_depth() -> None:
    net, left, right = body("soft_tree:depth=3,balance=0.7"), [0.0] * 7, [0.0] * 7
    for step in range(4):
        x = images() + step
        m = net(x)
        expected = 0.0
        for node in range(7):
            depth = int(math.log2(node + 1))
            turns = turns_to(node + 1 - 2**depth, depth)
            reach = [(probability(s, turns), 1 / (1 + math.exp(-s[node]))) for s in net.node_logits(x).tolist()]
            news = 0.5**depth
            right[node] = (1 - news) * right[node] + news * sum(p * q for p, q in reach) / len(reach)
            left[node] = (1 - news) * left[node] + news * sum(p * (1 - q) for p, q in reach) / len(reach)
            a = right[node] / (left[node] + right[node])
            expected -= 0.7 * 0.5**depth * (math.log(a) + math.log(1 - a)) / 2
        penalty = net.penalty()
        # SMALLEST_SHARE, 1e-8, against shares of a few percent
        assert penalty.item() == pytest.approx(expected, rel=1e-5), step
        with torch.no_grad():
            net.filters.weight.mul_(0.9)
    assert m.requires_grad


def test_every_inner_node_is_balanced_the_deepest_included() -> None:
    # kimhc6028/soft-decision-tree leaves out the nodes above the leaves
    net = body("soft_tree:depth=3")
    net(images())
    (gradient,) = torch.autograd.grad(net.penalty(), net.filters.bias)
    assert gradient.shape == (7,) and (gradient.abs() > 1e-6).all()


def test_the_gradient_of_the_penalty_is_that_of_the_current_batch_at_full_size() -> None:
    net = body("soft_tree:depth=3,balance=0.5")
    net(images() + 1)
    net.penalty()
    net(images())
    penalty = net.penalty()
    (got,) = torch.autograd.grad(penalty, net.filters.bias)
    averages = net.branches.clone().requires_grad_()
    (slope,) = torch.autograd.grad(0.5 * tree.imbalance(averages), averages)
    levels = tree.log_reach(net.node_logits(images()))
    current = torch.cat(levels[1:], 1).exp().mean(0).view(-1, 2)
    (expected,) = torch.autograd.grad((slope * current).sum(), net.filters.bias)
    assert torch.allclose(got, expected, rtol=1e-10, atol=0)


def test_the_gradient_of_the_penalty_balances() -> None:
    net = body("soft_tree:depth=4,balance=1")
    with torch.no_grad():
        net.filters.bias.add_(3)  # nearly all go right
    optimizer, penalties = torch.optim.SGD([net.filters.bias], lr=0.3), []
    for _ in range(200):
        net(images(32))
        penalty = net.penalty()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    least = 4 * math.log(2)
    assert penalties[0] > 1.5 * least and penalties[-1] < 1.1 * least


def test_averages_move_once_for_a_forward_that_is_asked_about() -> None:
    net = body()
    net(images())
    before = net.branches.clone()
    net(images())
    assert torch.equal(net.branches, before), "a forward alone must leave no trace"
    first = net.penalty()
    after = net.branches.clone()
    assert not torch.equal(after, before)
    again = net.penalty()
    assert torch.equal(net.branches, after) and torch.equal(first, again)
    net.eval()(images())
    assert torch.equal(net.branches, after)


def test_there_is_no_penalty_without_a_training_forward() -> None:
    net = body()
    for prepare in (lambda: None, lambda: net.eval()(images()), lambda: (net.train()(images()), net.eval())):
        prepare()
        with pytest.raises(CompressError, match="there was none") as caught:
            net.penalty()
    print(caught.value)


def test_nodes_that_nobody_reaches_count_as_balanced() -> None:
    net = body("soft_tree:depth=2,balance=1")
    with torch.no_grad():
        net.filters.weight.zero_()
        net.filters.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))  # all go right at the root
    net(images())
    penalty = net.penalty()
    one_way = -math.log(tree.SMALLEST_SHARE) / 2  # of the root; its own level weighs 1, the next 1/2 a node
    assert penalty.item() == pytest.approx(one_way + math.log(2), rel=1e-6)
    penalty.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def steps(net: tree.SoftTree, first: int, count: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(first, first + count):
        m = net(images() + 0.1 * step)
        loss = method.hard_label_term(m, torch.arange(6) % 5) + net.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_goes_on_bit_for_bit_from_a_saved_state() -> None:
    straight, resumed, fresh = body(), body(), body()
    steps(straight, 0, 6)
    steps(resumed, 0, 3)
    fresh.load_state_dict(resumed.state_dict())
    steps(fresh, 3, 3)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in straight.state_dict().items())
    assert "branches" in straight.state_dict()


def test_a_tree_in_training_can_be_copied_and_saved(tmp_path) -> None:
    net = make().train()
    net(torch.rand(3, 1, 4, 4))
    net.body.penalty()
    twin = copy.deepcopy(net)
    assert twin.body.training and torch.equal(twin.body.branches, net.body.branches)
    network.save(net, tmp_path)
    loaded = network.load(tmp_path)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(loaded(x), net.eval()(x)) and network.digest(loaded) == network.digest(net)


# extremes
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_stay_finite(size: float, dtype: torch.dtype) -> None:
    net = make("soft_tree:depth=10").body.to(dtype).train()
    with torch.no_grad():
        net.filters.weight.copy_(torch.sign(net.filters.weight) * size)
        net.leaves.copy_(torch.sign(net.leaves) * size)
    x = torch.cat([images(3), images(3)]).to(dtype)  # duplicated rows
    m = net(x)
    loss = method.soft_label_term(m, wave((6, 5), size, 1.3, 0.5).to(dtype), 1) + net.penalty()
    loss.backward()
    assert m.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert torch.isfinite(net.eval()(x)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_method_takes_extreme_answers(dtype: torch.dtype) -> None:
    answers = (wave((8, 10), 1, 0.7, 0.1).sign() * 1e4).to(dtype).requires_grad_()
    teacher = (wave((8, 10), 1, 1.3, 0.5).sign() * 1e4).to(dtype)
    loss = method.soft_label_term(answers, teacher, 4) + method.hard_label_term(answers, torch.arange(8))
    (gradient,) = torch.autograd.grad(loss, answers)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_under_autocast_the_sums_of_logarithms_keep_their_digits() -> None:
    net = make("soft_tree:depth=5").body.train()
    with torch.no_grad():
        net.leaves.mul_(10)
        net.filters.weight.zero_()  # so that bfloat16 does not move the paths
        expected = net(images().float())
        with torch.autocast("cpu", torch.bfloat16):
            got = net(images().float())
    # bfloat16's own rounding is 4e-3
    assert got.dtype == torch.float32 and torch.allclose(got, expected, rtol=1e-4)


# the method beside the tree
def test_a_trees_answers_are_left_alone_and_others_are_normalised() -> None:
    m = body()(images())
    assert (m.logsumexp(1) < 0).all() and torch.equal(method.mean_log_probabilities(m), m)
    logits, labels = wave((8, 10), 3, 0.7, 0.1), torch.arange(8)
    assert (logits.logsumexp(1) > 0).all()
    cross_entropy = F.cross_entropy(logits, labels).item()
    assert method.hard_label_term(logits, labels).item() == pytest.approx(cross_entropy, rel=1e-12)


def test_without_labels_the_hard_term_is_zero() -> None:
    m = body()(images()).detach().requires_grad_()
    term = method.hard_label_term(m, torch.full((6,), -1))
    (gradient,) = torch.autograd.grad(term, m)
    assert term.item() == 0 and not gradient.any()


# the rest of the toolchain
def test_a_tree_has_no_stages_and_no_embedding_but_a_cost() -> None:
    net = make("soft_tree:depth=5", (3, 8, 8), classes=7)
    probed = taps.probe(net, (3, 8, 8))
    assert (probed.stages, probed.classifier, probed.pooled_dim) == ((), "", 0)
    assert network.count_macs(net) == 31 * 3 * 8 * 8


@pytest.mark.parametrize("depth", [1, 5, 7])
def test_pruning_is_refused(depth: int) -> None:
    with pytest.raises(CompressError) as caught:
        prune.prune(make(f"soft_tree:depth={depth}", (1, 8, 8)), catalog.load("pruners", "magnitude"), 0.5)
    print(caught.value)


def test_the_picture_shows_filters_leaves_and_the_paths_of_the_answers() -> None:
    net, x = body("soft_tree:depth=4", (2, 4, 4)).eval(), images(30, (2, 4, 4))
    picture = tree.picture(net, x)
    assert picture.filters.shape == (15, 2, 4, 4) and picture.leaves.shape == (16, 5)
    assert torch.allclose(picture.leaves.sum(1), torch.ones(16).double())
    assert picture.paths.shape == (30, 5) and not picture.paths[:, 0].any()
    parents, children = picture.paths[:, :-1], picture.paths[:, 1:]
    assert torch.equal((children - 1) // 2, parents)
    assert torch.allclose(picture.leaves[picture.paths[:, -1] - 15].log(), net(x))
    # a filter as it is drawn answers as the node does
    turned_right = (x[:, None] * picture.filters[None]).sum((2, 3, 4)) + net.filters.bias
    assert torch.allclose(turned_right, net.node_logits(x))
    for leaf in range(16):
        expected = [node_at(turns_to(leaf, 4)[:level]) for level in range(5)]
        assert tree.path_to(torch.tensor([leaf]), 4).tolist() == [expected]


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    torch.set_num_threads(1)
    return plan.load_data(Recipe(), Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def reader(splits: Splits, tmp_path_factory) -> network.Network:
    """A tree of depth 5 that learned digits from their labels."""
    split = splits.train
    net = network.build(
        "soft_tree", class_names=split.class_names, input_shape=split.input_shape,
        mean=split.mean, std=split.std, seed=1,
    )  # fmt: skip
    train.fit(
        "test", net, lambda b: method.hard_label_term(net(b.inputs), b.labels) + net.body.penalty(),
        augment.Augmenter(split), train.Plan(epochs=40, batch_size=32, learning_rate=1.0), seed=1, threads=1,
        thread_choices=(1,), checkpoint=tmp_path_factory.mktemp("tree") / "checkpoint",
    )  # fmt: skip
    return net.eval()


def test_a_tree_learns_to_read_digits(reader: network.Network, splits: Splits) -> None:
    logits = train.predict(reader, splits.select.images)
    # chance is 10 %; seeds reach 80 to 92 %
    assert (logits.argmax(1) == splits.select.labels).mean() > 0.8
    used = np.unique(logits.round(4), axis=0)
    assert len(used) >= 12, "most leaves answer no image"


def answers(path, pixels: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)})[0]


@pytest.fixture(scope="module")
def exported(reader: network.Network, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.export_onnx(reader, path, recipe_digest="abc")
    return path


def test_the_exported_tree_answers_as_the_network(reader: network.Network, exported, splits: Splits) -> None:
    pixels = splits.train.images
    facts = export.compare(train.predict(reader, pixels), answers(exported, pixels))
    assert facts["max_difference_of_spread"] < 1e-6 and facts["top1_agreement_fraction"] == 1
    for count in (1, 2, 5):
        assert np.allclose(answers(exported, pixels[:count]), train.predict(reader, pixels[:count]), atol=1e-5)
    kinds = {node.op_type for node in onnx.load(exported).graph.node}
    assert {"MatMul", "ArgMax", "Gather"} <= kinds
    assert not kinds & {"Log", "LogSoftmax", "Conv"}, "the leaves' logarithms are constants"


@pytest.mark.parametrize("depth", [1, 10])
def test_trees_of_every_depth_are_exported(depth: int, tmp_path) -> None:
    net = make(f"soft_tree:depth={depth}", (3, 8, 8)).eval()
    export.export_onnx(net, tmp_path / "model.onnx", recipe_digest="abc")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    assert np.allclose(answers(tmp_path / "model.onnx", pixels), train.predict(net, pixels), atol=1e-5)


def test_eight_bits_are_enough_for_a_tree(exported, splits: Splits, tmp_path) -> None:
    entry = catalog.load("quantizers", "int8")
    (tmp_path / "scratch").mkdir()
    quantized = tmp_path / "model.onnx"
    entry.module.apply(entry.config, exported, quantized, splits.calibrate.images, tmp_path / "scratch")
    expected, got = answers(exported, splits.train.images), answers(quantized, splits.train.images)
    # logarithms of paths, which are infinite in 8 bits, left chance: 10 %
    assert (expected.argmax(1) == got.argmax(1)).mean() > 0.95
