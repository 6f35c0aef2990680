"""Taps: the right stages, paired by stride; hooks that leave nothing behind; a teacher that stays as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress import catalog, distill, fuse, network, taps, train
from compress.augment import Augmenter
from compress.errors import CompressError, UsageError
from compress.execution import Execution
from compress.teacher import Live
from compress.types import Batch, Dataset, Stage

PLAIN = Execution(channels_last=False)


def make(spec: str, shape: tuple[int, int, int] = (3, 32, 32)) -> network.Network:
    torch.set_num_threads(1)
    statistics = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    return network.build(spec, class_names=("a", "b", "c"), input_shape=shape, **statistics, seed=0).eval()


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def probed(spec: str, size: int = 32) -> taps.Probe:
    return taps.probe(make(spec, (3, size, size)), (3, size, size))


def test_stages_are_paired_by_stride_not_by_position() -> None:
    pairs = taps.pair(probed("mobilenet"), probed("resnet56"))
    assert [(s.stride, t.stride) for s, t in pairs] == [(2, 2), (4, 4)]
    assert [t.path for _, t in pairs] == ["body.layer2", "body.layer3"]
    # by position the student's stride 2 would meet the teacher's stride 1
    text = taps.describe_pairs(pairs)
    assert "stride 2" in text and "body.layer2 32×16×16" in text and "body.features" in text


def test_nets_without_a_common_stride_meet_at_their_deepest() -> None:
    a, b = probed("resnet20", 32), probed("resnet20", 32)
    shallow = taps.Probe(stages=a.stages[:1], classifier="", pooled_dim=0)
    deep = taps.Probe(stages=b.stages[1:], classifier="", pooled_dim=0)
    assert taps.pair(shallow, deep) == ((a.stages[0], b.stages[-1]),)
    assert taps.pair(taps.Probe(stages=(), classifier="", pooled_dim=0), deep) == ()


def test_stages_can_be_paired_by_position_as_other_code_does() -> None:
    pairs = taps.pair(probed("mobilenet"), probed("resnet56"), ("index",))
    assert [(s.stride, t.stride) for s, t in pairs] == [(2, 1), (4, 2), (8, 4)]


def test_pairs_can_be_named() -> None:
    student, teacher = probed("mobilenet"), probed("resnet56")
    named = ("body.features.13=body.layer3.0", "body.features.3=body.layer1")
    pairs = taps.pair(student, teacher, named)
    assert [(s.path, t.path) for s, t in pairs] == [
        ("body.features.3", "body.layer1"), ("body.features.13", "body.layer3.0"),
    ]  # fmt: skip
    net = make("mobilenet")
    tapped = taps.Tapped(net, student, [ours for ours, _ in pairs], PLAIN, logits=False)
    maps = tapped(torch.rand(2, 3, 32, 32)).maps
    tapped.close()
    assert [tuple(m.shape[1:]) for m in maps.values()] == [ours.shape for ours, _ in pairs]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (("body.features.3=body.layer7",), "unknown map of the teacher `body.layer7`"),
        (("body.feature.3=body.layer1",), "did you mean `body.features.3`"),
        (("body.features.3=body.layer1", "body.features.3=body.layer2"), "stride 2 of the student twice"),
        (("body.features.3=body.layer2", "body.features.13=body.layer1"), "crosses"),
    ],
)
def test_pairs_that_cannot_be_are_explained(named: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        taps.pair(probed("mobilenet"), probed("resnet56"), named)
    print(caught.value)


def test_what_an_activation_overwrites_is_no_place_to_read() -> None:
    places = probed("mobilenet").places
    assert "body.features.3" in places and "body.features.0.1" not in places


def test_a_teacher_read_by_names_gives_the_modules_own_maps() -> None:
    net, images = make("resnet20"), torch.rand(4, 3, 32, 32)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 2.0, 5.0)
    tap = taps.probe(net, (3, 32, 32)).places["body.layer1.0.conv1"]
    wanted: list[torch.Tensor] = []
    net.get_submodule(tap.path).register_forward_hook(lambda *given: wanted.append(given[2]))
    with torch.no_grad():
        net(images)
    net.get_submodule(tap.path)._forward_hooks.clear()
    for fold in (True, False):
        stage = Stage(name="", share=1.0, loss=lambda: None, pairs=((tap, tap),))
        reader = Live(net, Execution(channels_last=False, frozen=True), fold=fold).open(stage)
        batch = Batch(inputs=images, labels=None, index=np.arange(4), view=np.zeros(4), progress=0.0)
        assert torch.allclose(reader(batch).maps[tap.stride], wanted[0], atol=1e-4) == (not fold)
        reader.close()


@pytest.mark.parametrize("size", [8, 32, 64])
def test_a_mobilenet_stage_is_the_output_of_a_block(size: int) -> None:
    net = make("mobilenet", (3, size, size))
    stages = taps.probe(net, (3, size, size)).stages
    for tap in stages:
        # not the expansion inside the block that shrinks the map, which has six times the channels
        assert tap.path.count(".") <= 2 and ".conv" not in tap.path, tap
    widths = [tap.shape[0] for tap in stages[:-1]]
    assert max(widths) <= 48 and stages[-1].shape[0] == 1280


@pytest.mark.parametrize(
    ("spec", "size"), [("shufflenet", 8), ("torchvision:mobilenet_v3_small", 32), ("torchvision:resnet18", 32)]
)
def test_a_last_stage_that_shrinks_to_one_pixel_does_not_hide_the_one_before(spec: str, size: int) -> None:
    for tap in probed(spec, size).stages:
        # `body.stage4.0.branch2.2` would be the inside of the block that shrinks 2×2 to 1×1
        assert tap.path.count(".") <= 2 and ".block" not in tap.path, tap


def test_squeeze_and_excite_is_no_stage() -> None:
    sizes = [tap.shape[1] for tap in probed("torchvision:mobilenet_v3_small", 96).stages]
    assert sizes == [48, 24, 12, 6, 3]


def test_signals_are_what_the_modules_put_out() -> None:
    net, images = make("resnet20"), torch.rand(2, 3, 32, 32)
    found = taps.probe(net, (3, 32, 32))
    tapped = taps.Tapped(net, found, found.stages, PLAIN, pooled=True)
    signals = tapped(images)
    assert list(signals.maps) == [1, 2, 4]
    assert {k: tuple(v.shape[1:]) for k, v in signals.maps.items()} == {t.stride: t.shape for t in found.stages}
    assert torch.allclose(signals.pooled, signals.maps[4].mean((2, 3)))
    assert torch.allclose(net.body.linear(signals.pooled), signals.logits)
    assert signals.logits.requires_grad
    tapped.close()
    assert hooks(net) == 0


def test_frozen_signals_carry_no_graph_and_bfloat16_arrives_as_float32() -> None:
    net = make("resnet20")
    found = taps.probe(net, (3, 32, 32))
    execution = Execution(precision="bfloat16", frozen=True)
    tapped = taps.Tapped(execution.prepare(net), found, found.stages, execution, pooled=True)
    signals = tapped(torch.rand(2, 3, 32, 32))
    tensors = [signals.logits, signals.pooled, *signals.maps.values()]
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in tensors)
    tapped.close()


def test_probe_leaves_mode_and_statistics_alone() -> None:
    net = make("mobilenet").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    taps.probe(net, (3, 32, 32))
    assert net.training and hooks(net) == 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_pass_without_logits_stops_at_the_deepest_tap() -> None:
    net = make("resnet20")
    found = taps.probe(net, (3, 32, 32))
    calls: list[str] = []
    for name in ("layer1", "layer2", "layer3", "linear"):
        getattr(net.body, name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    tapped = taps.Tapped(net, found, reversed(found.stages[:2]), PLAIN, logits=False)
    signals = tapped(torch.rand(2, 3, 32, 32))
    assert calls == ["layer1", "layer2"] and signals.logits is None and list(signals.maps) == [1, 2]
    tapped.close()
    net(torch.rand(2, 3, 32, 32))
    assert calls[2:] == ["layer1", "layer2", "layer3", "linear"], "the pass still stops after close()"


def test_a_map_that_is_changed_after_reading_is_noticed() -> None:
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 3 * 3, 2))
    tap = taps.Tap(path="0", shape=(4, 3, 3), stride=2, order=0)
    tapped = taps.Tapped(net, taps.probe(net, (3, 8, 8)), [tap], PLAIN)
    with pytest.raises(CompressError, match="stride 2 was changed in place") as caught:
        tapped(torch.rand(2, 3, 8, 8))
    print(caught.value)


def test_a_net_without_linear_layer_has_no_pooled_embedding() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CompressError, match="no linear layer"):
        taps.Tapped(net, taps.probe(net, (3, 8, 8)), [], PLAIN, pooled=True)


def pictures(count: int = 48) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        name="noise",
        split="train",
        images=rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        labels=rng.integers(0, 3, count),
        class_names=("a", "b", "c"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        may_flip=True,
        digest="",
    )


def training(folder: Path) -> distill.Training:
    return distill.Training(
        plan=train.Plan(epochs=2, batch_size=16),
        name="test",
        seed=0,
        student_execution=PLAIN,
        thread_choices=(1,),
        folder=folder,
    )


class Watch:
    """The modes of the networks at every pass of a distillation, and the frozen copy that answered."""

    def __init__(self, monkeypatch, student: nn.Module):
        self.modes: list[tuple[bool, bool]] = []
        self.frozen: list[nn.Module] = []
        original = taps.Tapped.__call__

        def call(tapped: taps.Tapped, inputs):
            self.modes.append((tapped.network is student, tapped.network.training))
            if tapped.network is not student:
                self.frozen.append(tapped.network)
            return original(tapped, inputs)

        monkeypatch.setattr(taps.Tapped, "__call__", call)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_distillation_leaves_the_teacher_alone_and_trains_the_student(precision, tmp_path: Path, monkeypatch) -> None:
    student, teacher = make("mobilenet:width=0.25", (3, 8, 8)), make("resnet_cifar:depth=8", (3, 8, 8))
    teacher_before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student_before = {k: v.clone() for k, v in student.state_dict().items()}
    watch = Watch(monkeypatch, student)
    facts = distill.distill(
        student,
        Live(teacher, Execution(frozen=True, precision=precision)),
        (catalog.load("methods", "fitnet:hint_share=0.5"), catalog.load("methods", "kd")),
        Augmenter(pictures()),
        training(tmp_path),
    )
    assert list(facts["phases"]) == ["hint", "main"]
    assert [facts["phases"][p]["steps"] for p in ("hint", "main")] == [3, 3]
    assert "student body" in facts["pairing"]
    # six steps over two epochs: an evaluation in between would have left the student in eval mode
    assert watch.modes == [(True, True), (False, False)] * 6
    state = teacher.state_dict()
    assert all(torch.equal(v, teacher_before[k]) and v.dtype == teacher_before[k].dtype for k, v in state.items())
    assert not teacher.training and all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None and not p.requires_grad for frozen in watch.frozen for p in frozen.parameters())
    after = student.state_dict()
    assert list(after) == list(student_before), "adapters must not be part of the student"
    assert all(
        not torch.equal(v, student_before[k]) for k, v in after.items() if k.endswith(("weight", "running_mean"))
    )
    assert not student.training and hooks(student) == hooks(teacher) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-hint.safetensors", "checkpoint-main.safetensors"}
    distill.drop_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_hint_stage_trains_nothing_beyond_the_guided_layer(tmp_path: Path, monkeypatch) -> None:
    student, teacher = make("resnet_cifar:depth=8,channels=8", (3, 8, 8)), make("resnet_cifar:depth=8", (3, 8, 8))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    snapshots: list[dict] = []
    original = train.fit

    def fit(name, module, *rest, **kwargs):
        result = original(name, module, *rest, **kwargs)
        snapshots.append({k: v.clone() for k, v in student.state_dict().items()})
        return result

    monkeypatch.setattr(train, "fit", fit)
    methods = (catalog.load("methods", "fitnet:hint_share=0.5"),)
    live = Live(teacher, Execution(frozen=True))
    distill.distill(student, live, methods, Augmenter(pictures()), training(tmp_path))
    hint, main = snapshots
    beyond = [k for k in before if k.startswith(("body.layer3", "body.linear"))]
    until = [k for k in before if k.startswith(("body.conv1", "body.layer2")) and k.endswith("weight")]
    assert beyond and all(torch.equal(hint[k], before[k]) for k in beyond)
    assert until and not any(torch.equal(hint[k], before[k]) for k in until)
    assert not torch.equal(main["body.linear.weight"], before["body.linear.weight"])


def test_the_folded_teacher_gives_the_teachers_answers() -> None:
    teacher = make("resnet20")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        frozen = Live(teacher, Execution(frozen=True)).network(images)
        expected = teacher(images)
    # the same bound that folding itself promises
    assert (frozen - expected).abs().max() <= fuse.TOLERANCE * (expected.max() - expected.min())


@pytest.mark.parametrize("frozen", [True, False])
def test_logits_can_be_differentiated_by_the_inputs_where_asked(frozen: bool) -> None:
    net = make("resnet20", (3, 8, 8)).requires_grad_(not frozen)
    execution = Execution(channels_last=False, frozen=frozen)
    images = torch.rand(2, 3, 8, 8)
    signals = taps.Tapped(net, taps.probe(net, (3, 8, 8)), [], execution, inputs=True)(images)
    (gradient,) = torch.autograd.grad(signals.logits.sum(), signals.inputs, create_graph=not frozen)
    assert gradient.shape == images.shape and gradient.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    if not frozen:
        gradient.square().sum().backward()
        assert sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0
    plain = taps.Tapped(net, taps.probe(net, (3, 8, 8)), [], execution)(images)
    assert plain.inputs is None and plain.logits.requires_grad == (not frozen)
    assert torch.equal(plain.logits.detach(), signals.logits.detach())


def on_meta(name: str, size: int) -> taps.Probe:
    """The probe of a torchvision classifier without weights or arithmetic."""
    from torchvision import models
    from torchvision.models.regnet import BlockParams

    original = BlockParams.from_init_params.__func__

    def with_numbers(cls, *arguments, **options):
        with torch.device("cpu"):  # the widths of a RegNet are computed with tensors
            return original(cls, *arguments, **options)

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(BlockParams, "from_init_params", classmethod(with_numbers))
        return taps.probe(models.get_model(name, weights=None, **options), (3, size, size))


def torchvision_classifiers() -> list[str]:
    """Of each of torchvision's files the first and the last network: those between differ in depth and width alone."""
    from torchvision import models

    files: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        files.setdefault(models.get_model_builder(name).__module__, []).append(name)
    return sorted({name for names in files.values() for name in (names[0], names[-1])} | {"resnet18", "swin_t"})


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_classifiers())
def test_torchvisions_classifiers_have_stages(name: str) -> None:
    size = 256 if name.startswith("swin_v2") else 299 if name == "inception_v3" else 224
    probed = on_meta(name, size)
    assert probed.classifier or name.startswith("squeezenet"), "SqueezeNet classifies by a convolution"
    if name.startswith(("vit", "swin")):
        blocks = {"vit_b": 12, "vit_l": 24, "vit_h": 32}.get(name[:5], 12 if name.endswith("_t") else 24)
        assert len(probed.stages) == blocks
        assert all(height == width == size // tap.stride for tap in probed.stages for _, height, width in [tap.shape])
        strides = [tap.stride for tap in probed.stages]
        assert strides == sorted(strides) and len(set(strides)) == (4 if name.startswith("swin") else 1)
        return
    sizes = [tap.shape[-1] for tap in probed.stages]
    assert len(sizes) >= 3 and sizes == sorted(set(sizes), reverse=True)
    assert all(tap.layout == "maps" and tap.shape[1] == tap.shape[2] for tap in probed.stages)


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 64), ("swin_t", 32)])
def test_tokens_are_read_as_maps(name: str, size: int) -> None:
    from torchvision import models

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"image_size": size} if name.startswith("vit") else {}
        net = models.get_model(name, weights=None, num_classes=3, **options).eval()
    probed = taps.probe(net, (3, size, size))
    tap, kept = probed.stages[3], []
    handle = net.get_submodule(tap.path).register_forward_hook(lambda *found: kept.append(found[2]))
    images = torch.rand(2, 3, size, size)
    signals = taps.Tapped(net, probed, [tap], PLAIN)(images)
    handle.remove()
    got, (raw,) = signals.maps[tap.stride], kept
    assert got.shape == (2, *tap.shape)
    channels, height, width = tap.shape
    for row in range(height):
        for column in range(width):
            place = raw[:, 1 + row * width + column] if tap.layout == "tokens" else raw[:, row, column]
            assert torch.equal(got[:, :, row, column], place)
    assert tap.prefix == (1 if name.startswith("vit") else 0)
