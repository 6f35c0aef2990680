"""The networks of the papers: their layers at the papers' sizes, how they are fitted to others, what the steps do."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress import augment, catalog, export, fuse, network, plan, prune, taps
from compress.errors import UsageError
from compress.nets import lenet, vgg_cifar
from compress.recipe import Recipe
from compress.store import Store
from compress.types import Splits

NAMES = ["lenet", "lenet_cifar", "lenet_svhn", "mlp", "nin", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]
SMALL = ["lenet", "lenet_svhn", "mlp:hidden=64", "nin:width=0.25", "vgg8:width=0.25"]


def make(spec: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    names = tuple(f"class {i}" for i in range(classes))
    return network.build(spec, class_names=names, input_shape=shape, **statistics, seed=0)


def images(shape: tuple[int, int, int], count: int = 4) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def test_names_that_are_typed() -> None:
    assert set(NAMES) <= set(catalog.names("nets"))


# 96.2 and 285 MMAC (vgg) are the costs that the distillation tables name; the others are sums over the papers' layers
@pytest.mark.parametrize(
    ("spec", "shape", "classes", "mmac"),
    [
        ("vgg8", (3, 32, 32), 100, 96.2),
        ("vgg13", (3, 32, 32), 100, 285),
        ("lenet", (1, 28, 28), 10, (24 * 24 * 25 * 20 + 8 * 8 * 25 * 20 * 50 + 800 * 500 + 5000) / 1e6),
        ("mlp", (1, 28, 28), 10, (784 * 800 + 800 * 800 + 8000) / 1e6),
    ],
)
def test_costs_are_the_published_ones(spec: str, shape: tuple[int, int, int], classes: int, mmac: float) -> None:
    assert network.count_macs(make(spec, shape, classes)) / 1e6 == pytest.approx(mmac, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "shape", "maps", "hidden"),
    [
        ("lenet", (1, 28, 28), [(20, 24), (20, 12), (50, 8), (50, 4)], 500),
        ("lenet_cifar", (3, 32, 32), [(64, 28), (64, 14), (128, 10), (128, 5)], 1024),
        ("lenet_svhn", (3, 32, 32), [(32, 32), (32, 16), (64, 16), (64, 8)], 1024),
    ],
)
def test_lenets_are_those_of_the_notation(spec: str, shape, maps, hidden: int) -> None:
    net = make(spec, shape).body
    seen = []
    for name in ("conv1", "pool1", "conv2", "pool2"):
        net.get_submodule(name).register_forward_hook(lambda _, x, y: seen.append((y.shape[1], y.shape[2])))
    net(images(shape))
    assert seen == maps and net.linear.in_features == hidden
    assert [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)] == [(5, 5), (5, 5)]


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("padding", [-1, 0, 1, 2])
def test_lenet_builds_for_every_size_that_leaves_something(pool: int, padding: int) -> None:
    for height, width in [(size, size) for size in range(1, 24)] + [(8, 31), (40, 16)]:
        spec, shape = f"lenet:first=2,second=2,hidden=2,pool={pool},padding={padding}", (1, height, width)
        used = lenet.fitted_padding(catalog.load("nets", spec).config, min(height, width))
        if min(lenet.last_size(side, pool, used) for side in (height, width)) > 0:
            assert make(spec, shape)(images(shape)).shape == (4, 10)
        else:
            with pytest.raises(UsageError, match=f"{height}×{width}"):
                make(spec, shape)


def test_lenet_pads_small_images_only() -> None:
    config = catalog.load("nets", "lenet").config
    assert [lenet.fitted_padding(config, size) for size in (8, 19, 20, 28, 32)] == [2, 2, 0, 0, 0]
    assert "padding 2" in lenet.describe(config, (1, 8, 8)) and "padding 0" in lenet.describe(config, (1, 28, 28))
    taken = catalog.load("nets", "lenet:padding=0").config
    assert lenet.fitted_padding(taken, 8) == 0


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("lenet", (1, 3, 9), "3×9"),
        ("lenet:padding=0", (1, 8, 8), "nothing is left"),
        ("nin", (3, 3, 3), "4×4 pixels, got 3×3"),
        ("vgg8", (3, 2, 2), "4×4 pixels at least, got 2×2"),
        ("vgg_cifar:depth=9", (3, 32, 32), "8, 11, 13, 16, 19"),
    ],
)
def test_impossible_networks_say_why(spec: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make(spec, shape)
    print(caught.value)


@pytest.mark.parametrize("spec", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 4), (3, 9, 14)])
def test_odd_and_tiny_images_are_taken(spec: str, shape: tuple[int, int, int]) -> None:
    logits = make(spec, shape).train()(images(shape))
    assert logits.shape == (4, 10) and torch.isfinite(logits).all()


def test_nin_is_the_papers_function_without_the_last_relu() -> None:
    # the paper: a 1×1 convolution on the map, then its average; here the average first, then a linear layer
    body = make("nin:width=0.25,batchnorm=false", (3, 32, 32)).eval().body
    x, layers = images((3, 32, 32)), dict(body.named_children())
    with torch.no_grad():
        last = body[: list(layers).index("pool3")](x)
        weight, bias = layers["linear"].weight[:, :, None, None], layers["linear"].bias
        expected = F.conv2d(last, weight, bias).mean((2, 3))
        assert last.shape[1:] == (48, 8, 8) and torch.allclose(body(x), expected, atol=1e-6)


def test_vgg_has_the_names_and_the_maps_of_the_tables() -> None:
    keys = {k for k in make("vgg13").body.state_dict() if k.endswith("weight")}
    convs, norms = (0, 3), (1, 4)
    assert keys == {f"block{b}.{i}.weight" for b in range(5) for i in (*convs, *norms)} | {"classifier.weight"}
    net = make("vgg8")
    stages = [tap.shape for tap in taps.probe(net, (3, 32, 32)).stages]
    assert stages == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert "3 halvings" in vgg_cifar.describe(net.contract, (3, 32, 32))


@pytest.mark.parametrize("spec", ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"])
def test_vgg_has_the_convolutions_that_its_name_says(spec: str) -> None:
    modules = list(make(spec).modules())
    # the names count the paper's three linear layers, of which one is left
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == int(spec.removeprefix("vgg")) - 3
    assert sum(isinstance(m, nn.Linear) for m in modules) == 1


def test_mlp_has_an_embedding_and_no_maps() -> None:
    probed = taps.probe(make("mlp:depth=3,hidden=50", (1, 8, 8)), (1, 8, 8))
    assert probed.stages == () and (probed.classifier, probed.pooled_dim) == ("body.linear", 50)


@pytest.mark.parametrize("spec", ["lenet", "mlp", "nin:width=0.25"])
def test_dropout_is_a_knob(spec: str) -> None:
    def spread(dropout: float, training: bool) -> float:
        separator = "," if ":" in spec else ":"
        net = make(f"{spec}{separator}dropout={dropout}", (1, 8, 8)).train(training)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            return (net(images((1, 8, 8))) - net(images((1, 8, 8)))).abs().max().item()

    assert spread(0.5, True) > 0.01 and spread(0.0, True) == 0.0 and spread(0.5, False) == 0.0


@pytest.mark.parametrize("spec", SMALL)
def test_every_step_of_the_chain_takes_them(spec: str, tmp_path) -> None:
    shape = (1, 8, 8)
    dense = make(spec, shape)
    pruned = prune.prune(dense, catalog.load("pruners", "magnitude"), 0.3)
    assert network.count_macs(pruned) < network.count_macs(dense)
    fuse.fold_batchnorm(pruned)
    export.export_onnx(pruned, tmp_path / "model.onnx", recipe_digest="abc")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    x = images(shape, 5)
    with torch.no_grad():
        expected = pruned.eval()(x).numpy()
    facts = export.compare(expected, session.run(["logits"], {"input": x.numpy()})[0])
    export.check_parity(facts, spec)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(Recipe(), Store(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("spec", ["lenet", "lenet_svhn", "lenet_cifar", "mlp", "nin:width=0.25", "vgg8:width=0.125"])
def test_they_start_to_learn_at_the_usual_rate(spec: str, splits: Splits) -> None:
    # He's initial weights kill the wide LeNets, which have no BatchNorm: their loss then stays at log 10
    torch.manual_seed(0)
    net, augmenter = make(spec, (1, 8, 8)).train(), augment.Augmenter(splits.train)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for step in range(60):
        index = np.arange(32 * step, 32 * (step + 1)) % len(augmenter.labels)
        batch = augmenter.plain(index)
        loss = F.cross_entropy(net(batch.inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * math.log(10)
