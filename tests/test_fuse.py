"""Folding BatchNorm: the same answers, nothing left to fold, and no wrong pair."""

import pytest
import torch
from torch import Tensor, nn

from compress import fuse, network
from compress.errors import CompressError
from compress.network import Contract, Network

CONTRACT = Contract(
    spec="test", class_names=("a", "b"), input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, widths={}
)


def settled(net: Network) -> Network:
    """With statistics and vectors that are far from those of a fresh network, for which a wrong fold may pass."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data = low + torch.rand(tensor.shape, generator=generator)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return net.eval()


def make(spec: str, size: int) -> Network:
    return settled(
        network.build(
            spec, class_names=("a", "b", "c"), input_shape=(3, size, size), mean=(0.5,) * 3, std=(0.2,) * 3, seed=0
        )
    )


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def off(net: Network, folded: Network) -> float:
    images = torch.rand(4, *net.contract.input_shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected, got = net(images), folded(images)
    return ((expected - got).abs().max() / (expected.max() - expected.min())).item()


@pytest.mark.parametrize(
    ("spec", "size"),
    [("mobilenet", 32), ("resnet20", 16), ("resnet8x4", 8), ("shufflenet", 32), ("torchvision:resnet18", 32)],
)
def test_folded_networks_answer_alike_and_have_no_norm_left(spec: str, size: int) -> None:
    net = make(spec, size)
    before, count = network.digest(net), norms(net)
    folded = fuse.fold_batchnorm(net.train())
    assert count > 0 and norms(folded) == 0
    assert off(net.eval(), folded) < fuse.TOLERANCE  # float32 rounding; without the fold it is of the order of 1
    assert network.digest(net) == before and norms(net) == count, "the original must stay as it is"
    assert not folded.training and not any(m._forward_hooks or m._forward_pre_hooks for m in folded.modules())


def test_subnormal_weights_become_zero() -> None:
    net = make("resnet20", 8)
    with torch.no_grad():
        net.body.linear.weight[0, :5] = torch.tensor([1e-40, -1e-42, 1e-38, 1.2e-38, 0.5])
    weight = fuse.fold_batchnorm(net).body.linear.weight
    # 1.1755e-38 is the smallest normal float32
    assert weight[0, :3].eq(0).all() and weight[0, 3] > 1.1e-38 and weight[0, 4] == 0.5


class Body(nn.Module):
    """Two convolutions and norms, used as `mode` says."""

    def __init__(self, mode: str):
        super().__init__()
        self.mode = mode
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norm, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        out = {
            "plain": lambda: self.norm(a) + self.other(self.second(x)),
            "also read": lambda: self.norm(a) * a,
            "two norms": lambda: self.norm(a) + 2 * self.other(a),
            "norm used twice": lambda: self.norm(a) * self.norm(self.second(x)),
            "convolution used twice": lambda: self.norm(a) + self.other(self.first(x * 2)),
            "something between": lambda: self.norm(a.relu()) + self.other(self.second(x)),
        }[self.mode]()
        return self.head(out.mean((2, 3)))


def body(mode: str) -> Network:
    torch.manual_seed(0)
    return settled(Network(Body(mode), CONTRACT))


@pytest.mark.parametrize(
    ("mode", "left"),
    [("plain", 0), ("two norms", 2), ("norm used twice", 2), ("convolution used twice", 2), ("something between", 1)],
)
def test_only_true_pairs_are_folded(mode: str, left: int) -> None:
    net = body(mode)
    folded = fuse.fold_batchnorm(net)
    assert norms(folded) == left and off(net, folded) < fuse.TOLERANCE


def test_a_convolution_that_something_else_reads_is_refused() -> None:
    with pytest.raises(CompressError, match="changed the logits") as caught:
        fuse.fold_batchnorm(body("also read"))
    print(caught.value)


def test_answers_that_are_not_finite_are_refused() -> None:
    net = body("plain")
    net.body.norm.running_var[0] = float("nan")
    with pytest.raises(CompressError):
        fuse.fold_batchnorm(net)


class Amplifying(nn.Module):
    """Layers that multiply a rounding difference by a thousand each, with saturation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 1, bias=False) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        for norm in self.norms:
            norm.running_var.fill_(1e-5)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.sin(norm(layer(x)) * 10)
        return self.linear(x.mean((2, 3)))


def test_rounding_that_a_network_amplifies_is_no_wrong_fold() -> None:
    torch.manual_seed(0)
    net = Network(Amplifying().eval(), make("resnet8", 8).contract)
    folded = fuse.fold_batchnorm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert off(net, folded) > fuse.TOLERANCE, "single precision cannot tell: the case is what it should be"
        difference = (net.double()(x.double()) - folded.double()(x.double())).abs().max()
    assert difference < 1.0
