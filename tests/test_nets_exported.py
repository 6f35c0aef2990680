"""Each family of networks as an ONNX file, and that file as a torch module again: three times the same answers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_nets import FAMILIES, TIMM, TORCHVISION, make

from compress import export
from compress.rebuilt import Rebuilt

# Tracing takes longer than all the rest: one with squeeze-excite, one with a shuffle, one with shortcuts of zeros.
TRACED = ("mobilenet_v3_small:width=0.25", "shufflenet", "resnet_cifar:depth=8")


def with_statistics(spec: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network whose normalisations have seen images, so that their folding has work; and other images."""
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    net = make(spec, (3, size, size)).train()
    with torch.no_grad():
        for _ in range(3):
            net(images * torch.linspace(0.2, 1, 8).reshape(8, 1, 1, 1))
    return net.eval(), images[:3]


# of two with the same operators, the smaller: an export takes seconds (benchmarks/every_net.py exports every name)
ALIKE = {
    "mobilenet_v3_large:width=0.25", "shufflenet_v1:groups=8,width=0.25",
}  # fmt: skip
assert ALIKE < {*FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("spec", sorted({*FAMILIES} - ALIKE))
def test_the_file_and_the_module_made_of_it_answer_as_the_network(spec: str, tmp_path) -> None:
    net, images = with_statistics(spec, 64 if spec in TORCHVISION + TIMM else 32)
    path = tmp_path / "model.onnx"
    export.export_onnx(net, path, recipe_digest="")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    of_file = session.run(["logits"], {"input": images.numpy()})[0]
    with torch.no_grad():
        expected = net(images).numpy()
        rebuilt = Rebuilt(onnx.load(path)).eval()
        of_module = rebuilt(images).numpy()
    spread = np.ptp(expected)
    assert spread > 0 and len(np.unique(expected.argmax(1).tolist() + expected.argmin(1).tolist())) > 1
    assert np.abs(of_file - expected).max() <= 1e-3 * spread
    assert np.abs(of_module - of_file).max() <= 1e-5 * spread
    if spec in TRACED:
        program = torch.export.export(rebuilt, (images[:1],))
        traced = program.module()(images[:1]).detach().numpy()
        assert np.abs(traced - of_file[:1]).max() <= 1e-5 * spread
