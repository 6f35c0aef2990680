"""ReLU6 whose gradient is read from its result: torch's own numbers, without the copy."""

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compress import export, network, relu6

ENDS = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 6.0000005, 7.0, float("inf"), float("nan")])


def derivatives(activation: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, its gradient, and the gradient of that one's squares."""
    leaf = x.clone().requires_grad_()
    result = activation(leaf * 1.0)
    (first,) = torch.autograd.grad((result * leaf).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * first).sum(), leaf)
    return [result.detach(), first.detach(), second]


def test_results_and_both_derivatives_are_those_of_torch() -> None:
    drawn = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 5
    for x in (ENDS, drawn):
        for ours, theirs in zip(
            derivatives(relu6.ReLU6(inplace=True), x), derivatives(nn.ReLU6(inplace=True), x), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def copies(activation: nn.Module) -> int:
    x = torch.randn(8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(activation(x * 1.0), x, torch.ones(8))
    return sum(event.key == "aten::clone" for event in profile.key_averages())


def test_nothing_is_copied_that_torch_copies() -> None:
    assert copies(relu6.ReLU6(inplace=True)) == 0
    assert copies(nn.ReLU6(inplace=True)) > 0


def test_it_works_in_place_and_only_where_asked() -> None:
    x = torch.randn(8, requires_grad=True)
    own = x * 3
    assert relu6.ReLU6(inplace=True)(own) is own
    own = x * 3
    assert relu6.ReLU6(inplace=False)(own) is not own
    frozen = torch.tensor([9.0, -1.0])
    assert relu6.ReLU6(inplace=True)(frozen) is frozen and frozen.tolist() == [6.0, 0.0]


def test_networks_are_built_with_it_and_export_one_clip_for_each(tmp_path: Path) -> None:
    net = network.build(
        "mobilenet:width=0.25", class_names=("a", "b"), input_shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, seed=0
    )
    activations = [module for module in net.modules() if isinstance(module, nn.ReLU6)]
    assert activations and all(type(module) is relu6.ReLU6 for module in activations)
    export.export_onnx(net.eval(), tmp_path / "net.onnx", recipe_digest="")
    nodes = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert nodes.count("Clip") == len(activations) and {"Conv", "Clip", "Gemm"} <= set(nodes)
