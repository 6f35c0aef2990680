"""Pruning: what goes can go, in rounded widths, and the important channels stay; what cannot be pruned says so.

The proof for every network, criterion and ratio is one equation: channels removed = channels masked.
"""

import copy
import functools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from compress import batchnorm, catalog, coupling, cutting, fuse, network, prune
from compress.errors import CompressError
from compress.types import Samples

# one of each module of `nets/` at least, where it has layers of eight channels and more
NETS = {
    "mobilenet": (3, 16, 16),
    "resnet20": (3, 16, 16),
    "resnet8x4": (3, 16, 16),
    "shufflenet": (3, 16, 16),
    "lenet": (1, 28, 28),
    "mlp:hidden=64": (1, 8, 8),
    "nin:width=0.25": (3, 16, 16),
    "vgg8:width=0.25": (3, 16, 16),
    "torchvision:resnet18": (3, 16, 16),
    "mobilenet_v1:width=0.25": (3, 16, 16),
    "mobilenet_v3_small": (3, 16, 16),
    "shufflenet_v1": (3, 16, 16),
    "shufflenet_v1:groups=2,width=0.5": (1, 16, 16),
    "squeezenet:width=0.5": (3, 16, 16),
    "resnext:depth=20,cardinality=4,width=16": (3, 16, 16),
    "mnasnet:width=0.5": (3, 16, 16),
    "efficientnet_b0:width=0.5,depth=0.5": (3, 16, 16),
    "efficientnet_lite0:width=0.5,depth=0.5": (3, 16, 16),
    "mobileone_s0:width=0.5,branches=2": (3, 16, 16),
    "ds_cnn": (1, 16, 16),
    "resnet8": (3, 16, 16),
    "timm:mobilenetv1_100": (3, 16, 16),
}
GROUPED = ("shufflenet_v1", "resnext")
STRUCTURED = [n for n in catalog.names("pruners") if hasattr(catalog.load("pruners", n).module, "scores")]
WITHOUT_BATCHNORM = ("lenet", "mlp:hidden=64")
CASES = [
    (spec, pruner, ratio)
    for spec in NETS
    for pruner in STRUCTURED
    for ratio in ((0.3, 0.6) if pruner == "magnitude" else (0.5,))
    if not (pruner == "bn_scale" and spec in WITHOUT_BATCHNORM)
]


def test_the_readme_says_how_many_cases_there_are() -> None:
    words = " ".join((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"({len(CASES)} cases of network, pruner and ratio are tested)" in words


def test_every_network_is_pruned_here() -> None:
    covered = {catalog.load("nets", spec).module.__name__ for spec in NETS}
    names = {catalog.load("nets", name).module.__name__ for name in catalog.names("nets")}
    # a tree has no channels, and says so
    assert names - covered == {"compress.nets.soft_tree"}


def make(spec: str, shape: tuple[int, int, int]) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    return network.build(spec, class_names=tuple("abcdefghij"), input_shape=shape, **statistics, seed=0)


@functools.cache
def digits(shape: tuple[int, int, int], count: int = 16) -> Samples:
    """Real images of that shape: handwritten digits, their pixels repeated."""
    data = _read_digits()
    channels, height, width = shape
    rows, columns = (np.arange(size) * 8 // size for size in (height, width))
    images = (data.images[:count][:, rows][:, :, columns] * 255 / 16).astype(np.uint8)
    return Samples(images=np.repeat(images[..., None], channels, axis=3), labels=data.target[:count].astype(np.int64))


def floats(shape: tuple[int, int, int], count: int = 4) -> torch.Tensor:
    return torch.from_numpy(digits(shape, count).images).permute(0, 3, 1, 2).double() / 255


_read_digits = functools.cache(load_digits)


@functools.cache
def prunable(spec: str, shape: tuple[int, int, int]) -> prune.Prunable:
    """Of a network as training leaves it: no scale is one, no shift zero, the statistics are those of images."""
    net = make(spec, shape)
    net.load_state_dict(cutting._with_random_weights(net).state_dict())
    batchnorm.reestimate(net, digits(shape, 64).images, batch_size=64)
    return prune.prunable(net)


def ranked(spec: str, shape: tuple[int, int, int], pruner: str = "magnitude") -> prune.Ranking:
    return prune.rank(prunable(spec, shape), catalog.load("pruners", pruner), digits(shape))


def cut(net: network.Network, ratio: float = 0.4, pruner: str = "magnitude", **options) -> network.Network:
    return prune.prune(net, catalog.load("pruners", pruner), ratio, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "pruner", "ratio"), CASES)
def test_removed_is_masked(spec: str, pruner: str, ratio: float) -> None:
    shape = NETS[spec]
    ranking = ranked(spec, shape, pruner)
    chosen = prune.choose(ranking, ratio)
    masked = copy.deepcopy(ranking.network).double().eval()
    with torch.no_grad():
        dense = masked(floats(shape))
        cutting.mask(masked, prune.joined(ranking, chosen))
        expected = masked(floats(shape))
        got = prune.without(ranking, chosen).double()(floats(shape))
    assert (expected - got).abs().max() < 1e-5
    # a test that cannot fail proves nothing: what was removed mattered
    assert (expected - dense).abs().max() > 1e-3


def test_a_wrong_pair_is_seen() -> None:
    ranking = ranked("shufflenet", NETS["shufflenet"])
    family = next(f for f in ranking.families if len(f.units) > 8)
    (layer, taken), *others = family.units[0].taken.items()
    wrong = coupling.Unit(
        made=family.units[0].made, passed=family.units[0].passed, taken={layer: (taken[0] + 1,), **dict(others)}
    )
    assert cutting.difference(ranking.network, wrong, floats(NETS["shufflenet"])) > 1e-4


@pytest.mark.parametrize("spec", NETS)
def test_networks_become_smaller_and_stay_whole(spec: str) -> None:
    shape = NETS[spec]
    ranking = ranked(spec, shape)
    dense, before = ranking.network, network.digest(ranking.network)
    pruned = prune.cut(ranking, prune.choose(ranking, 0.4), round_to=8)
    assert network.digest(dense) == before, "the original must stay as it is"
    assert network.count_parameters(pruned) < 0.85 * network.count_parameters(dense)
    assert network.count_macs(pruned) < 0.85 * network.count_macs(dense)
    layers = dict(dense.named_modules())
    for path, layer in pruned.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels != layers[path].out_channels:
            assert layer.out_channels % 8 == 0 or spec.startswith(GROUPED), path
            assert layer.out_channels >= 0.2 * layers[path].out_channels, path
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.weight) == len(layer.running_mean)
    logits = pruned.train()(torch.rand(4, *shape))
    logits.square().sum().backward()
    assert logits.shape == (4, 10) and all(p.grad is not None for p in pruned.parameters())
    assert pruned.contract.spec == dense.contract.spec and pruned.contract.widths


@pytest.mark.parametrize("spec", ["mobilenet", "resnet20", "shufflenet", "mobilenet_v3_small"])
def test_pruned_networks_come_back_from_disk(spec: str, tmp_path) -> None:
    ranking = ranked(spec, NETS[spec])
    pruned = prune.cut(ranking, prune.choose(ranking, 0.5), round_to=8)
    network.save(pruned, tmp_path)
    twin = network.load(tmp_path)
    images = floats(NETS[spec]).float()
    assert torch.equal(twin(images), pruned.eval()(images)) and network.digest(twin) == network.digest(pruned)
    assert network.count_macs(twin) == network.count_macs(pruned)
    fuse.fold_batchnorm(twin)


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("spec", ["mobilenet", "resnet20"])
def test_more_is_never_larger(spec: str, scope: str) -> None:
    ranking = ranked(spec, NETS[spec])
    ratios = (0.1, 0.3, 0.5, 0.7, 0.8)
    nets = [prune.without(ranking, prune.choose(ranking, ratio, scope=scope)) for ratio in ratios]
    counts = [network.count_parameters(net) for net in nets]
    assert counts == sorted(counts, reverse=True) and counts[0] > 1.2 * counts[1] > 1.3 * counts[2]


def test_uniform_takes_of_each_layer_and_global_does_not() -> None:
    ranking = ranked("mobilenet", NETS["mobilenet"], "taylor")
    shares = {}
    for scope in ("uniform", "global"):
        chosen = prune.choose(ranking, 0.5, scope=scope)
        wide = [len(w) / len(f.units) for f, w in zip(ranking.families, chosen, strict=True) if len(f.units) >= 64]
        shares[scope] = wide
    assert all(0.4 < share < 0.6 for share in shares["uniform"])
    assert max(shares["global"]) > 0.7 and min(shares["global"]) < 0.3


@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_widths_are_rounded_and_no_layer_is_emptied(round_to: int) -> None:
    ranking = ranked("mobilenet", NETS["mobilenet"], "random")
    for ratio in (0.3, 0.8):
        chosen = prune.choose(ranking, ratio, round_to=round_to)
        for family, which in zip(ranking.families, chosen, strict=True):
            kept, all_ = len(family.units) - len(which), len(family.units)
            assert kept == all_ or (kept % round_to == 0 and kept >= 0.2 * all_ - 1e-9), family.layers


def test_the_least_important_channels_go_and_nothing_changes_where_they_were_dead() -> None:
    net = make("resnet_cifar:depth=8", (3, 8, 8))
    dead: dict[str, list[int]] = {}
    with torch.no_grad():
        for name in ("layer1.0", "layer2.0", "layer3.0"):  # inside of a block: coupled to no other layer
            block = net.body.get_submodule(name)
            half = block.conv1.out_channels // 2
            dead[name] = list(range(1, 2 * half, 2))
            for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias, block.bn1.running_mean):
                tensor[dead[name]] = 0
            block.conv2.weight[:, dead[name]] = 0
    found = prune.prunable(net)
    total = sum(len(family.units) for family in found.families)
    ranking = prune.rank(found, catalog.load("pruners", "magnitude"))
    pruned = prune.cut(ranking, prune.choose(ranking, 56 / total, round_to=1), round_to=1)
    for name, channels in dead.items():
        dense_block, block = net.body.get_submodule(name), pruned.body.get_submodule(name)
        kept = [i for i in range(dense_block.conv1.out_channels) if i not in channels]
        assert torch.equal(block.bn1.weight, dense_block.bn1.weight[kept]), name
        assert torch.equal(block.conv1.weight, dense_block.conv1.weight[kept]), name
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        # what was removed added exactly nothing: only the order of sums may differ
        assert torch.allclose(pruned.eval()(images), net.eval()(images), atol=1e-4)


@pytest.mark.parametrize("pruner", [p for p in STRUCTURED if p != "random"])
def test_criteria_find_channels_that_do_nothing(pruner: str) -> None:
    ranking = ranked("vgg8:width=0.25", (3, 16, 16))
    net = network.build(
        "vgg8:width=0.25", class_names=tuple("abcdefghij"), input_shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3,
        seed=0,
    )  # fmt: skip
    net.load_state_dict(ranking.network.state_dict())
    dead = [1, 5, 9, 13]
    with torch.no_grad():
        conv, norm = net.body.block1[0], net.body.block1[1]
        for value in (conv.weight, conv.bias, norm.weight, norm.bias):
            value[dead] = 0
    found = prune.Prunable(network=net, families=ranking.families, stays={})
    scores = prune.rank(found, catalog.load("pruners", pruner), digits((3, 16, 16))).scores[1]
    assert sorted(scores.argsort()[:4].tolist()) == dead


def test_taylor_and_hessian_are_their_formulas() -> None:
    net, samples = make("mlp:hidden=16", (1, 8, 8)).eval(), digits((1, 8, 8), 5)
    weight = net.body.get_submodule(next(n for n, m in net.body.named_modules() if isinstance(m, nn.Linear))).weight
    name = next(n for n, p in net.named_parameters() if p is weight)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for image, label in zip(floats((1, 8, 8), 5).float(), samples.labels, strict=True):
        net.zero_grad()
        nn.functional.cross_entropy(net(image[None]), torch.tensor([label])).backward()
        first += weight.grad / 5
        second += weight.grad**2 / 5
    taylor, hessian = (catalog.load("pruners", n) for n in ("taylor", "hessian"))
    got = taylor.module.saliency(taylor.config, net, samples)[name]
    assert torch.allclose(got, (weight * first).abs(), rtol=1e-4, atol=1e-7)
    got = hessian.module.saliency(hessian.config, net, samples)[name]
    assert torch.allclose(got, 0.5 * weight**2 * second, rtol=1e-3, atol=1e-8)


def test_a_criterion_that_finds_nothing_says_so() -> None:
    with pytest.raises(CompressError, match="`bn_scale` finds nothing in `lenet") as caught:
        ranked("lenet", NETS["lenet"], "bn_scale")
    print(caught.value)
    assert "--pruner magnitude" in caught.value.hint


def test_slimming_pushes_the_scales_down() -> None:
    entry = catalog.load("pruners", "bn_scale:sparsity=0.5")
    net = make("resnet_cifar:depth=8", (3, 8, 8))
    scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    penalty = entry.module.penalty(entry.config, net)
    assert penalty.item() == pytest.approx(0.5 * sum(s.abs().sum().item() for s in scales))
    penalty.backward()
    assert all(torch.equal(s.grad, 0.5 * s.sign()) for s in scales)


def test_shufflenet_is_pruned_inside_of_its_branches_and_says_what_stays() -> None:
    ranking = ranked("shufflenet", NETS["shufflenet"])
    pruned = {layer for family in ranking.families for layer in family.layers}
    assert "body.stage2.1.branch2.0" in pruned and "body.conv5.0" in pruned
    assert "body.stage2.1.branch2.5" in ranking.stays and not pruned & set(ranking.stays)


def test_squeeze_and_excite_goes_with_its_channels() -> None:
    ranking = ranked("mobilenet_v3_small", NETS["mobilenet_v3_small"])
    family = next(f for f in ranking.families if any(layer.endswith("fc2") for layer in f.layers))
    made = family.units[0].made
    assert len(set(made.values())) == 1 and len(made) > 1


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_number_of_macs_is_met(share: float) -> None:
    ranking = ranked("mobilenet", NETS["mobilenet"])
    ratio = prune.ratio_for(network.count_macs, ranking, share)
    dense = network.count_macs(ranking.network)
    got = network.count_macs(prune.without(ranking, prune.choose(ranking, ratio))) / dense
    assert share - 0.08 < got <= share


def test_a_number_of_macs_that_no_ratio_reaches_says_the_best() -> None:
    ranking = ranked("mobilenet", NETS["mobilenet"])
    with pytest.raises(CompressError, match=r"no ratio leaves 1% .* leaves \d+\.\d%") as caught:
        prune.ratio_for(network.count_macs, ranking, 0.01)
    print(caught.value)
    assert "--prune macs=" in caught.value.hint


def test_rounding_larger_than_every_layer_is_an_error() -> None:
    with pytest.raises(CompressError, match="the widest that can be pruned has 8 channels") as caught:
        cut(make("resnet_cifar:depth=8,stem=2,channels=2", (3, 8, 8)), 0.4)  # 2, 4 and 8 wide
    print(caught.value)


class _Reversed(nn.Module):
    """Reverses its channels by a table of fixed length: removal cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 10)
        self.register_buffer("order", torch.arange(15, -1, -1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu().index_select(1, self.order)
        return self.linear(self.second(x).relu().mean((2, 3)))


def test_what_cannot_be_followed_stays_whole_and_is_named() -> None:
    net = make("resnet20", (3, 8, 8))
    net.body = _Reversed()
    found = prune.prunable(net)
    assert [family.layers for family in found.families] == [("body.second",)]
    assert list(found.stays) == ["body.first"] and found.stays["body.first"]
    print(found.stays)


class _Mixed(nn.Module):
    """Normalises over channels: a mixture that is no layer of the known kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.linear = nn.GroupNorm(1, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def test_what_is_mixed_outside_of_layers_stays_whole_and_is_named() -> None:
    net = make("resnet20", (3, 8, 8))
    net.body = _Mixed()
    found = prune.prunable(net)
    assert [family.layers for family in found.families] == [("body.second",)]
    assert found.stays == {"body.first": "its channels are mixed outside of a layer"}


def test_following_channels_takes_no_memory_for_passes_that_are_over() -> None:
    """A table of every place by every followed channel took 25 MB here, and 20 GB of a ResNeXt of 101 layers."""
    net = make("efficientnet_b0:width=0.5", (3, 16, 16))
    tracemalloc.start()
    try:
        coupling._follow(net, (3, 16, 16))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_shared_parameters_are_refused() -> None:
    net = make("resnet20", (3, 8, 8))
    net.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten())
    net.body.append(nn.Linear(64, 10))
    net.body[2].weight = net.body[1].weight
    with pytest.raises(CompressError, match="parameter of two layers") as caught:
        prune.prunable(net)
    print(caught.value)


def test_layers_without_a_score_stay_whole() -> None:
    net = make("resnet20", (3, 8, 8))
    net.body = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    ranking = prune.rank(prune.prunable(net), catalog.load("pruners", "bn_scale"))
    for scope in ("global", "uniform"):
        assert [len(which) for which in prune.choose(ranking, 0.7, scope=scope)] == [24, 0]


def test_a_network_of_linear_layers_only_at_its_end_says_so() -> None:
    net = make("resnet20", (3, 8, 8))
    net.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(CompressError, match="no channels to prune") as caught:
        prune.prunable(net)
    print(caught.value)


def test_the_global_stream_and_the_screen_are_left_alone(capsys) -> None:
    before = torch.random.get_rng_state()
    cut(make("mobilenet", (3, 8, 8)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
