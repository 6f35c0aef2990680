"""Shuffles are torchvision's in values and gradients, in either memory layout, and channels-last maps stay so."""

import pytest
import torch
from torch import Tensor
from torchvision.models import shufflenetv2

from compress import network
from compress.shuffle import interleave, shuffle

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def maps(channels: int, seed: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    made = torch.rand(2, channels, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [2, 3])
def test_shuffle_is_torchvisions_and_keeps_the_layout(groups: int, layout: torch.memory_format) -> None:
    x = maps(12, 0, layout)
    done = shuffle(x, groups)
    assert torch.equal(done, shufflenetv2.channel_shuffle(x, groups)) and done.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interleaved_maps_and_their_gradients_are_those_of_cat_and_shuffle(layout: torch.memory_format) -> None:
    a, b = maps(6, 0, layout), maps(6, 1, layout)
    weight = maps(12, 2).detach()
    done, wanted = interleave(a, b), shufflenetv2.channel_shuffle(torch.cat((a, b), 1), 2)
    assert torch.equal(done, wanted) and done.is_contiguous(memory_format=layout)
    for got, expected in zip(
        torch.autograd.grad((done * weight).sum(), (a, b)),
        torch.autograd.grad((wanted * weight).sum(), (a, b)),
        strict=True,
    ):
        assert torch.equal(got, expected)
        # left to autograd they are views of every second channel
        assert layout == torch.contiguous_format or got.is_contiguous(memory_format=layout)


def test_derivatives_are_right_to_the_second() -> None:
    inputs = (maps(4, 0, torch.channels_last), maps(4, 1, torch.channels_last))
    assert torch.autograd.gradcheck(interleave, inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: interleave(a**2, b**3), inputs)


@pytest.mark.parametrize("spec", ["shufflenet", "shufflenet_v1:width=0.25"])
def test_networks_answer_and_learn_alike_in_both_layouts(spec: str) -> None:
    found = []
    for layout in LAYOUTS:
        net = network.build(
            spec, class_names=("a", "b", "c"), input_shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, seed=0
        ).to(dtype=torch.float64, memory_format=layout)
        images = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        logits = net.train()(images.contiguous(memory_format=layout))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        found.append([logits.detach(), *(p.grad for p in net.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_precisions_meet_under_autocast() -> None:
    a, b = maps(4, 0, torch.channels_last).detach().bfloat16(), maps(4, 1, torch.channels_last).detach().float()
    a.requires_grad_(), b.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        done = interleave(a, b)
        assert torch.equal(done, shufflenetv2.channel_shuffle(torch.cat((a, b), 1), 2))
    done.sum().backward()
    assert done.dtype == torch.float32 and a.grad.dtype == torch.bfloat16 and b.grad.dtype == torch.float32
