"""Teachers: several as one, an ONNX file as a black box, each with its own normalisation and input size."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compress import catalog, export, live_teachers, network, plan, recipe, training_steps
from compress.errors import CompressError, InputRejected, UsageError
from compress.execution import Execution
from compress.losses import soft_label_loss, soft_logits
from compress.network import Network
from compress.store import Store
from compress.teacher import BlackBox, Ensemble, Live
from compress.types import Batch, Splits, Stage

LOGITS = Stage(name="", share=1.0, loss=lambda: None, pairs=(), logits=True)


def make(spec: str = "resnet_cifar:depth=8", seed: int = 0, size: int = 0, mean: float = 0.5) -> Network:
    torch.set_num_threads(1)
    return network.build(
        spec, class_names=tuple("0123456789"), input_shape=(1, 8, 8), mean=(mean,), std=(0.25,), seed=seed, size=size
    ).eval()


def batch(count: int = 6, size: int = 8) -> Batch:
    inputs = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    index = np.arange(count, dtype=np.uint64)
    return Batch(inputs=inputs, labels=torch.zeros(count, dtype=torch.int64), index=index, view=0 * index, progress=0.0)


def live(net: Network) -> Live:
    return Live(net, Execution(channels_last=False, frozen=True))


def members() -> tuple[Live, ...]:
    return tuple(live(make(seed=seed, mean=0.1 + seed / 2)) for seed in range(3))


def answers(teacher, asked: Batch) -> torch.Tensor:
    reader = teacher.open(LOGITS)
    signals = reader(asked)
    reader.close()
    return signals.logits


@pytest.mark.parametrize("how", ["probabilities", "logits", "random"])
def test_an_ensemble_of_one_is_that_one(how: str) -> None:
    only = members()[:1]
    got, wanted = answers(Ensemble(only, how), batch()), answers(only[0], batch())
    # the mean of probabilities comes back as log-probabilities: the same softmax, another shift
    assert torch.allclose(torch.softmax(got, 1), torch.softmax(wanted, 1), atol=1e-6)


def test_mean_of_logits_and_of_probabilities() -> None:
    each = [answers(member, batch()).double() for member in members()]
    assert torch.allclose(answers(Ensemble(members(), "logits"), batch()).double(), sum(each) / 3, atol=1e-5)
    reader = Ensemble(members(), "probabilities").open(LOGITS)
    signals = reader(batch())
    for temperature in (1.0, 4.0):
        for row in range(6):
            rows = [[math.exp(v / temperature) for v in one[row].tolist()] for one in each]
            wanted = [sum(r[k] / sum(r) for r in rows) / 3 for k in range(10)]
            got = torch.softmax(soft_logits(signals, temperature)[row] / temperature, 0)
            assert got.tolist() == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(soft_logits(signals, 1.0), signals.logits)


def test_the_soft_loss_of_a_mean_of_probabilities_is_the_mean_of_the_losses_but_for_a_constant() -> None:
    signals = Ensemble(members(), "probabilities").open(LOGITS)(batch())
    gradients = []
    for targets in ([soft_logits(signals, 3.0)], list(signals.members)):
        student = torch.linspace(-2, 2, 60).reshape(6, 10).requires_grad_()
        sum(soft_label_loss(student, t, 3.0) for t in targets).div(len(targets)).backward()
        gradients.append(student.grad)
    # cross-entropy is linear in its target
    assert torch.allclose(*gradients, atol=1e-6)


def test_random_takes_one_member_for_each_step_and_is_seeded() -> None:
    each = [answers(member, batch()) for member in members()]
    ensemble = Ensemble(members(), "random")

    def chosen(seed: int) -> int:
        torch.manual_seed(seed)
        got = answers(ensemble, batch())
        (found,) = [i for i, one in enumerate(each) if torch.equal(one, got)]
        return found

    picks = [chosen(seed) for seed in range(30)]
    assert set(picks) == {0, 1, 2} and picks == [chosen(seed) for seed in range(30)]


def test_what_gives_logits_only_says_so() -> None:
    assert live(make()).only_logits == ""
    for teacher in (Ensemble(members(), "logits"), BlackBox("the teacher t.onnx", lambda images: images)):
        assert teacher.probe is None and teacher.only_logits


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    return plan.load_data(recipe.Recipe(), Store(tmp_path_factory.mktemp("store")))


def job(splits: Splits, **values: object) -> plan.Job:
    return plan.make(recipe.from_values({"kd": "kd", **values}), splits)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teachers") / "untrained.onnx"
    export.export_onnx(make(), path, recipe_digest="x")
    return path


@pytest.mark.parametrize("spec", ["fitnet", "attention", "rkd", "attention_gradient"])
def test_methods_that_need_more_say_so_before_any_training(
    spec: str, untrained: Path, splits: Splits, tmp_path: Path
) -> None:
    from compress import rehearsal

    with pytest.raises(UsageError) as caught:
        rehearsal.try_networks(job(splits, teacher=str(untrained), kd=spec), Store(tmp_path))
    print(caught.value)
    assert spec in str(caught.value)


def trained_like(splits: Splits) -> Network:
    """A network that beats chance: a teacher near chance is refused. Class means as a linear layer's weights."""
    net = make("mlp:depth=1,hidden=64")
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    images = torch.from_numpy(splits.train.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(splits.train.labels)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    assert linear
    return net.eval()


def test_an_onnx_file_teaches_as_the_network_that_it_was_made_from(splits: Splits, tmp_path: Path) -> None:
    net, store = trained_like(splits), Store(tmp_path / "store")
    export.export_onnx(net, tmp_path / "t.onnx", recipe_digest="x")
    made = job(splits, teacher=str(tmp_path / "t.onnx"))
    step = training_steps.teacher_step(made, store, 0)
    assert step.facts["train_sample_top1_fraction"] > 0.9
    source = live_teachers.source(made, store, step, threads=1)
    got, wanted = answers(source.make(), batch()), answers(live(net), batch())
    assert torch.allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()))


def fixed_batch(path: Path, size: int) -> None:
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(model, path)


def test_an_onnx_file_of_fixed_batch_and_foreign_normalisation(splits: Splits, tmp_path: Path) -> None:
    net, store = trained_like(splits), Store(tmp_path / "store")
    bare = Network(net.body, dataclasses.replace(net.contract, mean=(0.0,), std=(1.0,)))
    export.export_onnx(bare.eval(), tmp_path / "t.onnx", recipe_digest="x")
    fixed_batch(tmp_path / "t.onnx", 4)
    values = {"teacher": str(tmp_path / "t.onnx"), "teacher_mean": ".5", "teacher_std": ".25"}
    made = job(splits, **values)
    step = training_steps.teacher_step(made, store, 0)
    source = live_teachers.source(made, store, step, threads=1)
    got, wanted = answers(source.make(), batch(6)), answers(live(net), batch(6))
    assert got.shape == (6, 10) and torch.allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_bad_onnx_teachers_are_refused_by_name(untrained: Path, splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00garbage" * 50)
    shutil.copy(untrained, tmp_path / "untrained.onnx")
    tens = splits.train.class_names
    for name, names, channels in (("classes", ("a", "b"), 1), ("colour", tens, 3)):
        statistics = {"mean": (0.5,) * channels, "std": (1.0,) * channels}
        wrong = network.build(
            "mlp:depth=1,hidden=8", class_names=names, input_shape=(channels, 8, 8), **statistics, seed=0
        )  # fmt: skip
        export.export_onnx(wrong.eval(), tmp_path / f"{name}.onnx", recipe_digest="x")
    bad = (("noise", "noise.onnx"), ("untrained", "chance"), ("classes", "classes"), ("colour", "3 channels"))
    for name, part in bad:
        made = job(splits, teacher=str(tmp_path / f"{name}.onnx"))
        with pytest.raises(InputRejected) as caught:
            training_steps.teacher_step(made, Store(tmp_path / "store"), 0)
        print(caught.value)
        assert part in str(caught.value), name


def test_a_teacher_of_another_size_is_resized_inside_and_exports(tmp_path: Path) -> None:
    import onnxruntime

    for size in (16, 4):
        net = make("mlp:depth=1,hidden=16", size=size)
        asked = batch()
        resized = torch.nn.functional.interpolate(asked.inputs, (size, size), mode="bilinear", antialias=True)
        with torch.no_grad():
            assert torch.equal(net(asked.inputs), net.body((resized - 0.5) / 0.25)) or torch.allclose(
                net(asked.inputs), net.body((resized - 0.5) / 0.25), atol=1e-5
            )
        network.save(net, tmp_path / str(size))
        again = network.load(tmp_path / str(size))
        assert again.contract.size == size and torch.equal(again(asked.inputs), net(asked.inputs))
        export.export_onnx(net, tmp_path / "t.onnx", recipe_digest="x")
        session = onnxruntime.InferenceSession(tmp_path / "t.onnx", providers=["CPUExecutionProvider"])
        got = session.run(None, {"input": asked.inputs.numpy()})[0]
        with torch.no_grad():
            wanted = net(asked.inputs).numpy()
        assert np.abs(got - wanted).max() <= export.PARITY_TOLERANCE * np.ptp(wanted)


@pytest.mark.parametrize("size", [16, 12, 4, 3])
def test_an_onnx_file_of_another_size_is_given_resized_images(size: int, tmp_path: Path) -> None:
    import onnxruntime

    inside, path = make("mlp:depth=1,hidden=16", size=size), tmp_path / "t.onnx"
    contract = dataclasses.replace(inside.contract, input_shape=(1, size, size), size=0)
    export.export_onnx(Network(inside.body, contract).eval(), path, recipe_digest="x")
    export.prepend_resize(path, (8, 8))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        asked = batch(count)
        with torch.no_grad():
            wanted = inside(asked.inputs).numpy()
        got = session.run(None, {"input": asked.inputs.numpy()})[0]
        assert np.abs(got - wanted).max() <= export.PARITY_TOLERANCE * np.ptp(wanted)


@pytest.mark.parametrize(("own", "given"), [(224, 96), (28, 61), (28, 96), (17, 33)])
def test_a_resized_size_is_the_same_at_run_time_and_by_shape_inference(own: int, given: int, tmp_path: Path) -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    path = tmp_path / "t.onnx"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 1, own, own]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    export.prepend_resize(path, (given, given))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    (resized,) = (v for v in inferred.graph.value_info if v.name == "x.resized")
    assert [d.dim_value for d in resized.type.tensor_type.shape.dim[2:]] == [own, own]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((2, 1, given, given), np.float32)})[0].shape == (2, 1, own, own)


def test_an_operator_set_that_cannot_shrink_images_is_named(untrained: Path, tmp_path: Path) -> None:
    import onnx

    path, model = tmp_path / "old.onnx", onnx.load(untrained)
    model.opset_import[0].version = 17
    onnx.save(model, path)
    with pytest.raises(InputRejected, match="opset 17") as caught:
        export.prepend_resize(path, (16, 16))
    print(caught.value)
    export.prepend_resize(path, (4, 4))


def test_a_teacher_of_twice_the_size_teaches_from_its_file(splits: Splits, tmp_path: Path) -> None:
    store, small = Store(tmp_path / "store"), trained_like(splits)

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small.body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(torch.nn.functional.avg_pool2d(x, 2))

    contract = dataclasses.replace(small.contract, input_shape=(1, 16, 16))
    export.export_onnx(Network(Halved(), contract).eval(), tmp_path / "t.onnx", recipe_digest="x")
    made = job(splits, teacher=str(tmp_path / "t.onnx"))
    step = training_steps.teacher_step(made, store, 0)
    assert step.facts["train_sample_top1_fraction"] > 0.8
    source = live_teachers.source(made, store, step, threads=1)
    assert answers(source.make(), batch()).shape == (6, 10)


def test_an_ensemble_in_a_recipe_becomes_one_teacher(splits: Splits, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    network.save(trained_like(splits), tmp_path / "net")
    weights = str(tmp_path / "net" / "weights.safetensors")
    spec = "mlp:depth=1,hidden=64"
    values = {"teacher": [spec, spec], "teacher_checkpoint": [weights, weights], "ensemble": "logits"}
    statistics = {"teacher_mean": [".5", ".4"], "teacher_std": [".25", ".25"]}
    made = job(splits, **values, **statistics)
    steps = [training_steps.teacher_step(made, store, number) for number in range(2)]
    assert steps[0].key != steps[1].key, "another normalisation is another teacher"
    sources = [live_teachers.source(made, store, step, threads=1) for step in steps]
    together = live_teachers.together(made, store, sources, 3, splits.train)
    assert isinstance(together, Ensemble)
    got = answers(together, batch())
    single = [answers(source.make(), batch()) for source in sources]
    # each member's answers are kept, and so rounded to float16
    assert torch.allclose(got, (single[0] + single[1]) / 2, rtol=2**-10, atol=1e-3)
    assert together.facts()["answers_asked"] == 12
    with pytest.raises(CompressError, match="float16") as caught:
        _ = answers(
            live_teachers.together(
                made, store, [dataclasses.replace(sources[0], key="big", make=lambda: _loud())], 3, splits.train
            ),
            batch(),
        )
    print(caught.value)


def _loud() -> BlackBox:
    return BlackBox("loud", lambda images: np.full((len(images), 10), 1e6, np.float32))


def test_names(splits: Splits) -> None:
    made = job(splits, teacher="resnet20;resnet_cifar:depth=8", ensemble="random")
    lines = plan.describe(made)
    assert any("one of them at random" in line for line in lines)
    assert [t.label for t in made.teachers] == ["resnet20", "resnet_cifar:depth=8"]
    assert catalog.load("nets", made.teachers[0].spec).name == "resnet20"
