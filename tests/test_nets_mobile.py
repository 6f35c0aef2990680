"""Mobile networks, ResNeXt and timm's: the papers' layers, the same answers as other known code, what is exported."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from test_fuse import settled
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import SqueezeExcitation

from compress import artifact_steps, catalog, export, fuse, network, plan, prune, taps
from compress.augment import Augmenter
from compress.errors import CompressError, UsageError
from compress.nets import mobileone, shufflenet_v1, squeezenet, timm_
from compress.recipe import from_values
from compress.store import Step, Store
from compress.types import Splits

STRIDED_LIKE_MOBILENET = ["mobilenet_v1", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet", "efficientnet_b0"]
STRIDED_LIKE_MOBILENET += ["efficientnet_lite0", "mobileone_s0"]


def make(spec: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    names = tuple(f"class {i}" for i in range(classes))
    return network.build(spec, class_names=names, input_shape=shape, **statistics, seed=0)


def unmade(spec: str, shape: tuple[int, int, int], classes: int = 10) -> network.Network:
    with torch.device("meta"):
        return make(spec, shape, classes)


def images(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", STRIDED_LIKE_MOBILENET)
@pytest.mark.parametrize(("size", "last"), [(8, 2), (32, 2), (96, 3), (224, 7)])
def test_small_images_are_halved_less_often(spec: str, size: int, last: int) -> None:
    net, shape = unmade(spec, (3, size, size)), (3, size, size)
    assert taps.probe(net, shape).stages[-1].shape[1:] == (last, last)
    entry = catalog.load("nets", spec)
    assert f"{size}×{size}" in entry.module.describe(entry.config, shape)


@pytest.mark.parametrize(
    ("spec", "lasts"),
    [
        ("ds_cnn", (2, 4, 4, 4, 6, 7)),
        ("ds_cnn:blocks=2", (2, 4, 4, 8, 12, 28)),
        ("ds_cnn:blocks=7", (2, 4, 4, 4, 6, 7)),
        ("resnet8", (2, 4, 8, 16, 24, 56)),
        ("resnext29_32x4d", (2, 4, 8, 16, 24, 56)),
        ("resnext50_32x4d", (2, 2, 4, 4, 6, 7)),
        ("shufflenet_v1", (2, 2, 4, 4, 6, 7)),
        ("squeezenet", (2, 4, 8, 8, 12, 13)),
        ("squeezenet:version=1.0", (2, 4, 8, 8, 12, 13)),
    ],
)
def test_last_maps_of_other_fitted_networks(spec: str, lasts: tuple[int, ...]) -> None:
    entry = catalog.load("nets", spec)
    for size, last in zip((8, 16, 32, 64, 96, 224), lasts, strict=True):
        shape = (3, size, size)
        assert taps.probe(unmade(spec, shape), shape).stages[-1].shape[1:] == (last, last), size
        if hasattr(entry.module, "describe"):
            assert f"{size}×{size}" in entry.module.describe(entry.config, shape)


# at 64 pixels the fitted strides are the papers', so that other code with the same weights must answer alike
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("mobilenet_v3_small", models.mobilenet_v3_small),
        ("mobilenet_v3_large", models.mobilenet_v3_large),
        ("mnasnet:width=0.5", models.mnasnet0_5),
        ("efficientnet_b0", models.efficientnet_b0),
    ],
)
def test_torchvisions_weights_give_torchvisions_answers(spec: str, theirs) -> None:
    body, reference = make(spec, (3, 64, 64)).eval().body, settled(theirs(num_classes=10))
    body.load_state_dict(dict(reference.state_dict()))
    with torch.no_grad():
        expected = reference(images((3, 64, 64)))
        assert torch.allclose(body(images((3, 64, 64))), expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("spec", "theirs"), [("mobilenet_v1:width=1", "mobilenetv1_100"), ("efficientnet_lite0", "efficientnet_lite0")]
)
def test_timms_weights_give_timms_answers(spec: str, theirs: str) -> None:
    body, reference = make(spec, (3, 64, 64)).eval().body, settled(timm.create_model(theirs, num_classes=10))
    for parent in list(reference.modules()):
        if isinstance(getattr(parent, "act", None), nn.ReLU6) and spec.startswith("mobilenet_v1"):
            parent.act = nn.ReLU()  # the paper's; timm has TensorFlow's
    # other names, the same order
    body.load_state_dict(dict(zip(body.state_dict(), reference.state_dict().values(), strict=True)))
    with torch.no_grad():
        expected = reference(images((3, 64, 64)))
        assert torch.allclose(body(images((3, 64, 64))), expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("size", ["s0", "s4"])
def test_timms_mobileone_gives_the_same_answers_merged_and_not(size: str) -> None:
    net = make(f"mobileone_{size}", (3, 64, 64)).eval()
    reference = settled(timm.create_model(f"mobileone_{size}", num_classes=10))
    pairs = zip(
        (m for m in net.modules() if isinstance(m, mobileone.Branches)),
        (m for m in reference.modules() if type(m).__name__ == "MobileOneBlock"),
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours.scale is None, ours.skip is None) == (theirs.conv_scale is None, theirs.identity is None)
        for branch, other in zip(ours.convs, theirs.conv_kxk, strict=True):
            branch.load_state_dict(other.state_dict())
        for branch, other in ((ours.scale, theirs.conv_scale), (ours.skip, theirs.identity)):
            if branch is not None:
                branch.load_state_dict(other.state_dict())
    squeezes = [m for m in net.modules() if isinstance(m, SqueezeExcitation)]
    others = [m for m in reference.modules() if type(m).__name__ == "SEModule"]
    assert len(squeezes) == (12 if size == "s4" else 0)
    for ours, theirs in zip(squeezes, others, strict=True):
        ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    net.body.linear.load_state_dict(reference.head.fc.state_dict())
    x = images((3, 64, 64))
    with torch.no_grad():
        expected = reference(x)
        for mine in (net.body, fuse.merge_branches(net).body):
            assert torch.allclose(mine(x), expected, atol=1e-3 * expected.abs().max().item())


def test_squeezenet_is_the_papers_function_without_the_last_relu() -> None:
    shape = (3, 224, 224)
    body = make("squeezenet:version=1.1,batchnorm=false", shape).eval().body
    reference = models.squeezenet1_1(num_classes=10).eval()
    values = [v.squeeze() if k == "classifier.1.weight" else v for k, v in reference.state_dict().items()]
    body.load_state_dict(dict(zip(body.state_dict(), values, strict=True)))
    with torch.no_grad():
        expected = reference.classifier[1](reference.features(images(shape))).mean((2, 3))
        assert torch.allclose(body(images(shape)), expected, atol=1e-5)


def test_fire_modules_squeeze_and_put_two_expansions_side_by_side() -> None:
    fire = make("squeezenet").eval().body.stage1[0]
    x = torch.rand(1, 64, 5, 5)
    with torch.no_grad():
        squeezed, out = fire.squeeze(x), fire(x)
        assert squeezed.shape[1] == 16 and out.shape[1] == 128
        assert torch.equal(out[:, :64], fire.expand1x1(squeezed))
        assert torch.equal(out[:, 64:], fire.expand3x3(squeezed))
    for version in ("1.0", "1.1"):
        fires = [m for m in unmade(f"squeezenet:version={version}", (3, 32, 32)).modules()]
        assert sum(isinstance(m, squeezenet.Fire) for m in fires) == 8


@pytest.mark.parametrize(("groups", "width"), [(2, "0.25"), (3, "1"), (4, "0.25"), (8, "0.5"), (8, "1.5")])
def test_all_pointwise_convolutions_but_the_first_are_grouped(groups: int, width: str) -> None:
    net = unmade(f"shufflenet_v1:groups={groups},width={width}", (3, 32, 32))
    pointwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [m.groups for m in pointwise] == [1] + [groups] * (2 * 16 - 1)
    units = [m for m in net.modules() if isinstance(m, shufflenet_v1.Unit)]
    assert [unit.stride for unit in units] == [2, 1, 1, 1] + [2] + [1] * 7 + [2, 1, 1, 1]


@pytest.mark.parametrize("shuffled", [True, False])
def test_the_shuffle_lets_every_group_see_all_groups(shuffled: bool, monkeypatch) -> None:
    if not shuffled:
        monkeypatch.setattr(shufflenet_v1, "shuffle", lambda x, groups: x)
    torch.manual_seed(0)
    unit = shufflenet_v1.Unit(36, 36, 1, 3, 3).eval()
    x = torch.rand(1, 36, 3, 3, requires_grad=True)
    unit(x)[:, :12].sum().backward()
    seen = x.grad.abs().sum((0, 2, 3)).view(3, 12).gt(0).any(1)
    assert seen.tolist() == [True, shuffled, shuffled]


def test_units_of_stride_2_concatenate_the_average_of_what_came_in() -> None:
    torch.manual_seed(0)
    unit = shufflenet_v1.Unit(24, 60, 2, 3, 3).eval()
    x = torch.rand(2, 24, 6, 6)
    with torch.no_grad():
        out = unit(x)
    assert out.shape == (2, 60, 3, 3) and torch.equal(out[:, 36:], F.avg_pool2d(x, 3, 2, 1))


def kinds(spec: str) -> set[type]:
    return {type(m) for m in unmade(spec, (3, 32, 32)).modules()}


def test_activations_and_squeeze_excitation_are_where_the_papers_have_them() -> None:
    assert {nn.Hardswish, nn.ReLU, SqueezeExcitation} <= kinds("mobilenet_v3_small") & kinds("mobilenet_v3_large")
    assert {nn.SiLU, SqueezeExcitation} <= kinds("efficientnet_b0")
    lite = kinds("efficientnet_lite0")
    assert nn.ReLU6 in lite and not lite & {nn.SiLU, SqueezeExcitation, nn.Sigmoid}
    assert not kinds("mobileone_s3") & {nn.Hardswish, nn.SiLU, SqueezeExcitation}


def test_resnet8_is_the_reference_layer_by_layer() -> None:
    net = settled(make("resnet8"))
    body, x = net.body, images((3, 32, 32))
    convs = [m for m in body.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.bias is not None for conv in convs)
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (16, 3, 1), (16, 3, 1), (16, 3, 1), (32, 3, 2), (32, 3, 1), (32, 1, 2), (64, 3, 2), (64, 3, 1), (64, 1, 2),
    ]  # fmt: skip
    assert sum(isinstance(m, nn.BatchNorm2d) for m in body.modules()) == 7
    with torch.no_grad():
        y = F.relu(body.bn1(body.conv1(x)))
        for layer in (body.layer1, body.layer2, body.layer3):
            inner = layer.bn2(layer.conv2(F.relu(layer.bn1(layer.conv1(y)))))
            y = F.relu(inner + (layer.shortcut(y) if layer is not body.layer1 else y))
        assert torch.allclose(body(x), body.linear(y.mean((2, 3))), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "pruned"),
    [
        # several branches; one of each; squeeze-excite beside them
        ("mobileone_s0:width=0.25,branches=2", True), ("mobileone_s1:width=0.25", False),
        ("mobileone_s4:width=0.25", False),
    ],
)  # fmt: skip
def test_merged_branches_answer_alike(spec: str, pruned: bool, tmp_path) -> None:
    net = make(spec)
    if pruned:
        net = prune.prune(net, catalog.load("pruners", "magnitude"), 0.5, round_to=4)
        network.save(net, tmp_path)
        net = network.load(tmp_path)  # what is shipped was read from disk
    net = settled(net).double()
    x = images((3, 32, 32)).double()
    merged = fuse.merge_branches(net)
    with torch.no_grad():
        expected, got = net(x), merged(x)
    assert (expected - got).abs().max() < 1e-10 * expected.abs().max()
    assert not any(isinstance(m, mobileone.Branches | nn.BatchNorm2d) for m in merged.modules())
    assert any(isinstance(m, mobileone.Branches) for m in net.modules()), "the original must stay as it is"
    probed = taps.probe(net.float(), (3, 32, 32))
    again = taps.probe(merged.float(), (3, 32, 32)).places
    assert all(again[tap.path].shape == tap.shape for tap in probed.stages), "teachers are read at these places"


# the paper's counts and costs of what is shipped: 2.1, 4.8, 7.8, 10.1, 14.8 million; 275, 825 million
@pytest.mark.parametrize(("size", "count"), [(0, 2_078_504), (1, 4_764_840), (2, 7_808_168), (4, 14_838_352)])
def test_merged_mobileones_have_the_published_size(size: int, count: int) -> None:
    merged = fuse.merge_branches(make(f"mobileone_s{size}", (3, 64, 64), 1000))
    assert network.count_parameters(merged) == count


@pytest.mark.parametrize(("size", "cost"), [(0, 275_110_400), (1, 825_057_024)])
def test_merged_mobileones_have_the_published_cost(size: int, cost: int) -> None:
    net = unmade(f"mobileone_s{size}", (3, 224, 224), 1000)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, mobileone.Branches):
                with torch.device("meta"):
                    setattr(parent, name, child.merge())
    assert network.count_macs(net) == cost


class Merging(nn.Module):
    """A layer whose `merge` multiplies its weights by `factor`; 1 is right."""

    def __init__(self, factor: float):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 6, 1), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def merge(self) -> nn.Module:
        self.conv.weight.data *= self.factor
        return self.conv


class MergingTokens(Merging):
    """Other people's modules have methods of this name."""

    def merge(self, x: Tensor) -> Tensor:  # type: ignore[override]
        raise AssertionError("not ours to call")


def wrapped(module: nn.Module) -> network.Network:
    body = nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    return network.Network(body, make("resnet8", (3, 8, 8)).contract)


def test_a_wrong_merge_is_refused_and_other_methods_are_left_alone() -> None:
    assert isinstance(fuse.fold_batchnorm(wrapped(Merging(1.0))).body[0], nn.Conv2d)
    with pytest.raises(CompressError, match="merging branches changed the logits") as caught:
        fuse.fold_batchnorm(wrapped(Merging(1.5)))
    print(caught.value)
    assert isinstance(fuse.fold_batchnorm(wrapped(MergingTokens(1.5))).body[0], MergingTokens)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shufflenet_v1:groups=5", "1, 2, 3, 4, 8 .* got 5"),
        ("shufflenet_v1:width=0.7", "0.25, 0.5, 1, 1.5, 2 .* got 0.7"),
        ("resnext:depth=30", "9n\\+2"),
        ("resnext:form=imagenet,depth=29", "50, 101, 152, got 29"),
        ("squeezenet:version=1.2", "1.0, 1.1"),
        ("mobilenet_v3:size=medium", "small, large"),
        ("mobileone:size=s5", "s0, s1, s2, s3, s4"),
        ("ds_cnn:blocks=1", "must lie in"),
        ("efficientnet:depth=0", "must lie in"),
        ("timm:mobilenetv4_conv_smal", "did you mean `mobilenetv4_conv_small`"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "unknown timm classifier"),
    ],
)
def test_impossible_networks_say_why(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make(spec, (3, 8, 8))
    print(str(caught.value)[:500])


def test_what_timm_refuses_is_an_error_of_ours(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("patches do not fit\nmore")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UsageError, match="1-channel images of 8×8: patches do not fit"):
        timm_.build(timm_.Config(), 10, (1, 8, 8))


def test_without_timm_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="needs the package timm") as caught:
        make("timm:resnet18")
    assert caught.value.hint == "pip install 'compress-to-onnx[timm]'"
    print(caught.value)


def test_listing_imports_neither_timm_nor_torch() -> None:
    code = (
        "import sys; from compress import catalog\n"
        "for name in catalog.names('nets'): catalog.summary('nets', name)\n"
        "assert not {'timm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64)])
def test_timms_networks_of_fixed_size_are_built_for_the_images(shape: tuple[int, int, int]) -> None:
    net = make("timm:vit_tiny_patch16_224", shape).eval()
    with torch.no_grad():
        assert net(images(shape)).shape == (2, 10)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(from_values({}), Store(tmp_path_factory.mktemp("store")))


# those whose own layers or initial values decide whether they learn at all
LEARNERS = [
    "mobilenet_v1:width=0.25",
    "shufflenet_v1:width=0.25",
    "squeezenet:width=0.5",
    "mobileone_s0:width=0.25,branches=2",
]
LEARNERS += ["resnext:depth=11,cardinality=4", "ds_cnn", "resnet8"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", LEARNERS)
def test_they_learn_at_the_usual_rate(spec: str, splits: Splits) -> None:
    torch.manual_seed(0)
    net, augmenter, steps = make(spec, (1, 8, 8)).train(), Augmenter(splits.train), 75
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = augmenter.plain(np.arange(32 * step, 32 * (step + 1)) % len(augmenter.labels))
        loss = F.cross_entropy(net(batch.inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    batch = augmenter.plain(np.arange(500))
    with torch.no_grad():
        right = (net.eval()(batch.inputs).argmax(1) == batch.labels).float().mean().item()
    print(spec, right)
    assert right > 0.5  # guessing gives 0.1; running statistics count too


def answers(path, x: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": x.numpy()})[0]


@pytest.mark.slow
def test_ds_cnn_takes_less_than_100_kb_in_int8(tmp_path) -> None:
    export.export_onnx(settled(make("ds_cnn")), tmp_path / "model.onnx", recipe_digest="abc")
    calibrate = (images((3, 32, 32), 8).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    entry = catalog.load("quantizers", "int8")
    (tmp_path / "scratch").mkdir()
    entry.module.apply(
        entry.config, tmp_path / "model.onnx", tmp_path / "int8.onnx", calibrate, tmp_path / "scratch"
    )  # fmt: skip
    assert (tmp_path / "int8.onnx").stat().st_size < 100_000


@pytest.mark.slow
def test_the_exported_file_is_counted_as_merged(splits: Splits, tmp_path) -> None:
    spec, split = "mobileone_s1:width=0.125", splits.train
    job = plan.make(from_values({"student": spec, "teacher": spec, "kd": "kd", "epochs": 1}), splits)
    net = network.build(
        spec, class_names=split.class_names, input_shape=split.input_shape, mean=split.mean, std=split.std, seed=0
    )
    network.save(net, tmp_path / "net")
    made = Step(folder=tmp_path / "net", key="abc", facts={}, reused=False)
    facts = artifact_steps.export_step(job, Store(tmp_path / "store"), "student", made).facts
    merged = fuse.merge_branches(net)
    assert facts["parameters"] == network.count_parameters(merged) < network.count_parameters(net)
    assert facts["macs"] == network.count_macs(merged) < network.count_macs(net)
