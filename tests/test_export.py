"""The exported file: torch's answers at any batch size, its contract inside, and nothing of this machine."""

import getpass
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compress import catalog, export, network, prune, train
from compress.errors import CompressError

SPECS = ["resnet_cifar:depth=8,stem=8,channels=8", "shufflenet", "pruned"]  # a pruned MobileNet


def make(spec: str) -> network.Network:
    """A network with statistics of its own, as training leaves it, in which folding and flushing have work."""
    torch.set_num_threads(1)
    net = network.build(
        "mobilenet:width=0.25" if spec == "pruned" else spec,
        class_names=("Zebra, striped", 'a "quoted" one', "ü"),
        input_shape=(3, 16, 16),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        seed=0,
    )
    if spec == "pruned":
        net = prune.prune(net, catalog.load("pruners", "magnitude"), 0.3)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in range(4):
        images = torch.rand(16, 3, 16, 16, generator=generator) * torch.rand(16, 3, 1, 1, generator=generator)
        loss = nn.functional.cross_entropy(net.train()(images), (images.mean((2, 3)).argmax(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for norm in norms:  # statistics of these weights: with those of earlier ones every image gives the same answer
        norm.momentum = 1.0
    net(images)
    return net.eval()


@pytest.fixture(scope="module", params=SPECS)
def exported(request, tmp_path_factory) -> tuple[network.Network, Path]:
    net, path = make(request.param), tmp_path_factory.mktemp("export") / "model.onnx"
    export.export_onnx(net, path, recipe_digest="abc")
    return net, path


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_the_file_answers_as_the_network_at_any_batch_size(exported) -> None:
    net, path = exported
    runtime = session(path)
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    expected = train.predict(net, images)
    for count in (1, 2, 7):
        inputs = images[:count].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        (logits,) = runtime.run(["logits"], {"input": inputs})
        facts = export.compare(expected[:count], logits)
        # float32 kernels that sum in another order; without the normalisation it is of the order of 1
        assert logits.shape == (count, 3) and facts["max_difference_of_spread"] < export.PARITY_TOLERANCE
        export.check_parity(facts, "test")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    export.export_onnx(make("mlp:depth=1,hidden=64"), path, recipe_digest="x")
    return path


def test_merged_members_answer_the_mean_of_their_probabilities_at_any_batch_size(
    exported, other: Path, tmp_path: Path
) -> None:
    _, path = exported
    merged = tmp_path / "merged.onnx"
    export.merge_members([path, other, path], merged, recipe_digest="the ensemble's")
    runtime = session(merged)
    images = np.random.default_rng(0).random((7, 3, 16, 16), np.float32)
    answers = [session(file).run(None, {"input": images})[0] for file in (path, other)]
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in answers)
    for count in (1, 2, 7):
        (got,) = runtime.run(["logits"], {"input": images[:count]})
        assert np.allclose(np.exp(got), ((2 * p + q) / 3)[:count], atol=1e-6)
    metadata = {entry.key: entry.value for entry in onnx.load(merged).metadata_props}
    assert metadata["compress.recipe_digest"] == "the ensemble's" and "mean of 3" in metadata["compress.network"]
    assert metadata["compress.class_names"] == json.dumps(["Zebra, striped", 'a "quoted" one', "ü"])


def test_members_that_are_sure_do_not_overflow_the_mean(tmp_path: Path) -> None:
    net = make("mlp:depth=1,hidden=64")
    with torch.no_grad():
        net.body.linear.weight.mul_(1e4)
    export.export_onnx(net, tmp_path / "a.onnx", recipe_digest="x")
    export.merge_members([tmp_path / "a.onnx"] * 2, tmp_path / "m.onnx", recipe_digest="x")
    (got,) = session(tmp_path / "m.onnx").run(
        None, {"input": np.random.default_rng(0).random((4, 3, 16, 16), np.float32)}
    )
    assert np.isfinite(got).all() and got.min() < -200


def test_a_forgotten_normalisation_would_be_seen(exported) -> None:
    net, path = exported
    inputs = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
    (logits,) = session(path).run(None, {"input": inputs})
    with torch.no_grad():
        raw = net.body(torch.from_numpy(inputs)).numpy()
    with pytest.raises(CompressError, match="differs from the network") as caught:
        export.check_parity(export.compare(raw, logits), "distilled")
    print(caught.value)


def test_the_contract_is_in_the_file(exported) -> None:
    net, path = exported
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    (entry,), (answer,) = model.graph.input, model.graph.output
    assert (entry.name, answer.name) == ("input", "logits")
    sizes = [d.dim_value or d.dim_param for d in entry.type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str) and sizes[1:] == [3, 16, 16]
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {o.domain: o.version for o in model.opset_import}[""] == export.OPSET
    facts = {p.key: p.value for p in model.metadata_props}
    assert set(facts) == {
        "compress.class_names", "compress.class_names_digest", "compress.preprocessing",
        "compress.normalisation", "compress.network", "compress.recipe_digest",
    }  # fmt: skip
    assert json.loads(facts["compress.class_names"]) == list(net.contract.class_names)
    assert json.loads(facts["compress.preprocessing"])["size"] == [16, 16]
    assert json.loads(facts["compress.normalisation"])["mean"] == [0.4, 0.5, 0.6]
    assert facts["compress.recipe_digest"] == "abc"


def test_nothing_of_this_machine_is_in_the_file(exported) -> None:
    data = exported[1].read_bytes()
    secrets = {str(Path.home()), os.getcwd(), str(Path(export.__file__).parents[1]), "site-packages", ".py", "/tmp/"}
    if len(getpass.getuser()) > 4:
        secrets.add(getpass.getuser())
    found = [s for s in secrets if s.encode() in data and s != "/"]
    assert not found


def test_norms_are_folded_and_no_weight_lies_outside(exported) -> None:
    model = onnx.load(exported[1], load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators and "Conv" in operators
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert [p.name for p in exported[1].parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("exported", ["shufflenet"], indirect=True)
def test_the_network_is_left_as_it_was_and_the_bytes_are_a_function_of_it(tmp_path: Path, exported) -> None:
    net, path = exported
    before, again = network.digest(net), tmp_path / "again.onnx"
    # the memory layout is not part of it
    export.export_onnx(net.to(memory_format=torch.channels_last), again, recipe_digest="abc")
    assert network.digest(net) == before and not net.training
    assert again.read_bytes() == path.read_bytes()
    net.to(memory_format=torch.contiguous_format)


def test_golden_samples_come_back(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    logits = np.random.default_rng(1).random((5, 2))
    path = export.golden_path(tmp_path / "model.int8.onnx")
    assert path.name == "model.int8.golden.npz"
    export.write_golden(path, images, logits)
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["images"], images) and np.array_equal(file["logits"], logits.astype(np.float32))


@pytest.mark.parametrize("shapes", [((0, 3), (0, 3)), ((2, 3), (3, 3)), ((2, 3), (2, 4))])
def test_comparing_nothing_is_an_error(shapes) -> None:
    with pytest.raises(CompressError, match="nothing to compare") as caught:
        export.compare(*(np.zeros(shape, np.float32) for shape in shapes))
    print(caught.value)


def test_comparison_counts_and_measures() -> None:
    expected = np.array([[0.0, 4.0], [2.0, 1.0]])
    facts = export.compare(expected, np.array([[0.0, 4.0], [1.0, 1.5]]))
    assert facts["images"] == 2 and facts["top1_agreement_fraction"] == 0.5 and facts["finite"]
    assert facts["max_difference"] == 1.0 and facts["max_difference_of_spread"] == 0.25
    same = export.compare(expected, expected)
    export.check_parity(same, "test")
    assert same["top1_agreement_fraction"] == 1.0 and same["max_difference"] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_never_pass(bad: float) -> None:
    expected = np.array([[0.0, 4.0]])
    facts = export.compare(expected, np.array([[bad, 4.0]]))
    assert not facts["finite"] and facts["max_difference"] is None
    json.dumps(facts, allow_nan=False)
    with pytest.raises(CompressError, match="not all finite numbers"):
        export.check_parity(facts, "test")
    assert not export.compare(np.array([[bad, 4.0]]), expected)["finite"], "of the network itself"
