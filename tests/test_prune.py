"""Pruning: channels really go, in multiples of 8, and the important ones stay; what cannot be pruned says so."""

import pytest
import torch
from torch import nn

from compress import catalog, fuse, network, prune
from compress.errors import CompressError

PRUNABLE = [
    ("mobilenet", (3, 32, 32)),
    ("mobilenet", (1, 8, 8)),
    ("resnet20", (3, 32, 32)),
    ("resnet20", (1, 8, 8)),
    ("resnet8x4", (3, 16, 16)),
    ("torchvision:resnet18", (3, 32, 32)),
]


def make(spec: str, shape: tuple[int, int, int]) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    return network.build(spec, class_names=tuple("abcde"), input_shape=shape, **statistics, seed=0)


def cut(net: network.Network, ratio: float = 0.4, pruner: str = "magnitude", **options) -> network.Network:
    return prune.prune(net, catalog.load("pruners", pruner), ratio, **options)


@pytest.mark.parametrize("pruner", catalog.names("pruners"))
@pytest.mark.parametrize(("spec", "shape"), PRUNABLE)
def test_networks_become_smaller_and_stay_whole(spec: str, shape: tuple[int, int, int], pruner: str) -> None:
    dense = make(spec, shape)
    before = network.digest(dense)
    pruned = cut(dense, pruner=pruner)
    assert network.digest(dense) == before, "the original must stay as it is"
    assert network.count_parameters(pruned) < 0.8 * network.count_parameters(dense)
    assert network.count_macs(pruned) < 0.8 * network.count_macs(dense)
    layers = dict(dense.named_modules())
    for path, layer in pruned.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels != layers[path].out_channels:
            assert layer.out_channels % 8 == 0 and layer.out_channels >= 0.2 * layers[path].out_channels, path
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.weight) == len(layer.running_mean)
    convs = [m for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    heads = [m for m in pruned.modules() if isinstance(m, nn.Linear)]
    assert convs[0].in_channels == shape[0] and heads[-1].out_features == 5
    logits = pruned.train()(torch.rand(4, *shape))
    logits.square().sum().backward()
    assert logits.shape == (4, 5) and all(p.grad is not None for p in pruned.parameters())
    assert pruned.contract.spec == dense.contract.spec and pruned.contract.widths


@pytest.mark.parametrize(("spec", "shape"), PRUNABLE[:4])
def test_pruned_networks_come_back_from_disk(spec: str, shape: tuple[int, int, int], tmp_path) -> None:
    pruned = cut(make(spec, shape))
    network.save(pruned, tmp_path)
    twin = network.load(tmp_path)
    images = torch.rand(2, *shape)
    assert torch.equal(twin(images), pruned.eval()(images)) and network.digest(twin) == network.digest(pruned)
    assert network.count_macs(twin) == network.count_macs(pruned)
    fuse.fold_batchnorm(twin)


@pytest.mark.parametrize("spec", ["mobilenet", "resnet20"])
def test_more_is_never_larger(spec: str) -> None:
    # the engine alone leaves layers whole that would lose all channels: at 0.9 more was left than at 0.5
    net = make(spec, (3, 8, 8))
    counts = [network.count_parameters(cut(net, ratio)) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 1.3 * counts[1] > 1.3 * counts[2]


def test_no_layer_is_emptied() -> None:
    dense = dict(make("mobilenet", (3, 8, 8)).named_modules())
    for path, layer in cut(make("mobilenet", (3, 8, 8)), 0.95).named_modules():
        if isinstance(layer, nn.Conv2d):
            least = (1 - prune.MOST_OF_A_LAYER) * dense[path].out_channels
            assert layer.out_channels >= min(8, dense[path].out_channels) and layer.out_channels >= least - 1e-9, path


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
    # 8 + 16 + 32 dead channels of all the prunable ones, asked for one by one
    total = 16 + 32 + 64 + 16 + 32 + 64
    pruned = cut(net, 56 / total - 1e-6, round_to=1)
    for name, channels in dead.items():
        dense_block, block = net.body.get_submodule(name), pruned.body.get_submodule(name)
        kept = [i for i in range(dense_block.conv1.out_channels) if i not in channels]
        alive = [c for c in block.conv1.weight if c.abs().sum() > 0]
        assert len(alive) == len(kept)
        rows = dense_block.conv1.weight[kept]
        if block.conv1.in_channels == rows.shape[1]:
            assert all(torch.equal(a, b) for a, b in zip(alive, rows, strict=True)), name
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        # what was removed added exactly nothing: only the order of sums may differ
        assert torch.allclose(pruned.eval()(images), net.eval()(images), atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_shufflenet_says_that_it_cannot_be_pruned(shape: tuple[int, int, int]) -> None:
    with pytest.raises(CompressError, match="`shufflenet` cannot be pruned by `magnitude`") as caught:
        cut(make("shufflenet", shape))
    print(caught.value)
    assert "--prune" in caught.value.hint and "--width" in caught.value.hint


def test_nothing_removed_is_an_error() -> None:
    with pytest.raises(CompressError):
        cut(make("resnet_cifar:depth=8,stem=2,channels=2", (3, 8, 8)), 0.4)  # 2, 4 and 8 wide


def test_the_global_stream_and_the_screen_are_left_alone(capsys) -> None:
    before = torch.random.get_rng_state()
    cut(make("mobilenet", (3, 8, 8)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
