"""Networks on disk: exact round trips; checkpoints of every origin; files that lie, break or want to run code."""

import hashlib
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress import catalog, network, prune
from compress.errors import InputRejected

PUBLISHED = Path(__file__).parents[2] / "shared" / "models" / "resnet56-4bfd9763.th"
TINY = "resnet_cifar:depth=8,stem=4,channels=4"


def make(spec: str = TINY, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0, classes: int = 3) -> network.Network:
    torch.set_num_threads(1)
    net = network.build(
        spec,
        class_names=tuple(f"class {i}" for i in range(classes)),
        input_shape=shape,
        mean=(0.1, 0.2, 0.3)[: shape[0]],
        std=(0.4, 0.5, 0.6)[: shape[0]],
        seed=seed,
    )
    with torch.no_grad():  # statistics that differ from a fresh network's
        net.train()(torch.rand(8, *shape, generator=torch.Generator().manual_seed(3)))
    return net.eval()


def same(a: network.Network, b: network.Network) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def rejected(path: Path, read=network.read_checkpoint) -> str:
    with pytest.raises(InputRejected) as caught:
        read(path)
    print(caught.value)
    assert str(path) in caught.value.message and caught.value.exit_code == 5
    return str(caught.value)


def load_into(path: Path, net: network.Network | None = None) -> network.Network:
    net = net or make(seed=1)
    network.load_state(net, network.read_checkpoint(path), path)
    return net


@pytest.mark.parametrize(
    ("spec", "shape"), [(TINY, (1, 8, 8)), ("mobilenet:width=0.25", (3, 8, 8)), ("shufflenet", (3, 16, 16))]
)
def test_saved_network_comes_back_bit_for_bit(spec: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    net = make(spec, shape)
    network.save(net, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"network.json", "weights.safetensors"}
    twin = network.load(tmp_path)
    assert same(net, twin) and twin.contract == net.contract and not twin.training
    assert network.digest(twin) == network.digest(net)
    images = torch.rand(2, *shape)
    assert torch.equal(twin(images), net(images))


@pytest.mark.parametrize(("spec", "shape"), [("mobilenet", (3, 16, 16)), ("resnet20", (1, 8, 8))])
def test_pruned_network_comes_back_bit_for_bit(spec: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    pruned = prune.prune(make(spec, shape), catalog.load("pruners", "magnitude"), 0.4)
    network.save(pruned, tmp_path)
    twin = network.load(tmp_path)
    assert same(pruned, twin) and twin.contract.widths == pruned.contract.widths != {}
    assert torch.equal(twin(torch.ones(2, *shape)), pruned(torch.ones(2, *shape)))
    again = prune.prune(twin, catalog.load("pruners", "magnitude"), 0.4)  # of what was pruned before
    assert network.count_parameters(again) < network.count_parameters(pruned)
    network.save(again, tmp_path)
    assert same(network.load(tmp_path), again)


def test_digest_sees_every_part() -> None:
    net = make()
    before = network.digest(net)
    with torch.no_grad():
        net.body.conv1.weight[0, 0, 0, 0] += 1e-6
    assert network.digest(net) != before
    assert network.digest(make()) == before == network.digest(make())
    assert len({network.digest(n) for n in (make(), make(seed=1), make(classes=4))}) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": 3}', "<html>"])
def test_damaged_description_is_rejected(text: str, tmp_path: Path) -> None:
    network.save(make(), tmp_path)
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(InputRejected) as caught:
        network.load(tmp_path)
    print(caught.value)
    assert str(tmp_path / "network.json") in caught.value.message


def test_description_that_does_not_fit_the_weights_is_rejected(tmp_path: Path) -> None:
    network.save(make(), tmp_path)
    record = json.loads((tmp_path / "network.json").read_text())
    (tmp_path / "network.json").write_text(json.dumps({**record, "class_names": ["a", "b"]}))
    assert "weights.safetensors" in rejected(tmp_path / "weights.safetensors", lambda _: network.load(tmp_path))
    (tmp_path / "network.json").write_text(json.dumps({**record, "widths": {"body.nowhere.weight": [1]}}))
    rejected(tmp_path / "network.json", lambda _: network.load(tmp_path))


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + k: v for k, v in state.items()}


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "best_prec1": 93.4},
    "model": lambda s: {"model": s},
    "nested": lambda s: {"state_dict": {"model": s}},
    "data parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: {"model_state_dict": prefixed(s, "module._orig_mod.")},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
}


FLAT = ("bare", "data parallel", "compiled", "half precision", "without counters")  # what safetensors can hold


@pytest.mark.parametrize(
    ("wrapping", "suffix"), [*((w, ".pth") for w in WRAPPINGS), *((w, ".safetensors") for w in FLAT)]
)
def test_checkpoints_of_every_habit_are_read(wrapping: str, suffix: str, tmp_path: Path) -> None:
    source = make(seed=7)
    state = WRAPPINGS[wrapping](source.body.state_dict())
    path = tmp_path / f"teacher{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_into(path).body.state_dict()
    # 5e-4: the rounding of half precision; a skipped table is off by the weights themselves
    tolerance = 5e-4 if wrapping == "half precision" else 0
    for key, value in source.body.state_dict().items():
        if "num_batches_tracked" not in key:
            assert torch.allclose(loaded[key], value, rtol=tolerance, atol=tolerance), key


def test_a_whole_network_of_ours_is_read_too(tmp_path: Path) -> None:
    torch.save(make(seed=7).state_dict(), tmp_path / "t.pt")
    assert same(load_into(tmp_path / "t.pt"), make(seed=7))


def broken(tmp_path: Path, change) -> str:
    state = make().body.state_dict()
    change(state)
    torch.save(state, tmp_path / "t.pth")
    net = make(seed=1)
    before = network.digest(net)
    message = rejected(tmp_path / "t.pth", lambda p: load_into(p, net))
    assert network.digest(net) == before, "a refused checkpoint must change nothing"
    return message


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        del state["bn1.weight"], state["layer1.0.conv1.weight"]
        state["head.bias"] = torch.zeros(3)
        state["conv1.weight"] = torch.zeros(4, 1, 3, 3)

    message = broken(tmp_path, change)
    assert "2 missing (bn1.weight, layer1.0.conv1.weight)" in message
    assert "1 unexpected (head.bias)" in message
    assert "conv1.weight (4, 1, 3, 3) instead of (4, 3, 3, 3)" in message


def test_many_keys_are_cut_short(tmp_path: Path) -> None:
    message = broken(tmp_path, lambda state: [state.pop(k) for k in list(state) if "conv" in k])
    assert "… 3 more" in message


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["linear.weight"], state["linear.bias"] = torch.zeros(100, 16), torch.zeros(100)

    message = broken(tmp_path, change)
    assert "with 3 classes" in message and "another number of classes" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    message = broken(tmp_path, lambda state: state["bn1.running_var"].index_fill_(0, torch.tensor([1]), bad))
    assert "NaN or infinite" in message and "bn1.running_var" in message


def test_whole_numbers_for_weights_are_refused(tmp_path: Path) -> None:
    message = broken(tmp_path, lambda state: state.update({"linear.bias": torch.ones(3, dtype=torch.int8)}))
    assert "linear.bias torch.int8 instead of torch.float32" in message


class Touch:
    """Creates a file when it is unpickled by a reader that runs what it is told to."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


class Eval(Touch):
    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({str(self.canary)!r})",)


class SetState(Touch):
    def __reduce__(self) -> tuple:
        return getattr, (torch.zeros(1), "numpy"), {"x": Touch(self.canary)}


class Rebuild(Touch):
    """Calls an allowed function of torch with an argument that is not allowed."""

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, (Touch(self.canary), 0, (1,), (1,), False, {})


HOSTILE = {
    "bare": lambda c: Touch(c),
    "eval": lambda c: Eval(c),
    "in a table": lambda c: {"state_dict": {"w": torch.zeros(2), "x": Touch(c)}},
    "deep": lambda c: {"a": [({"b": [Touch(c)]},)]},
    "as a key": lambda c: {"state_dict": [(Touch(c), 1)]},
    "set state": lambda c: {"w": SetState(c)},
    "rebuild": lambda c: {"w": Rebuild(c)},
    "module": lambda c: nn.Sequential(nn.Linear(2, 2)),
    "module and more": lambda c: {"model": nn.Linear(2, 2), "x": Eval(c)},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "renamed"])
def test_pickles_run_nothing(kind: str, form: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "teacher.pth"
    hostile = HOSTILE[kind](canary)
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=2))
    elif form == "renamed":
        path = tmp_path / "teacher.safetensors"
        torch.save(hostile, path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "zip")
    rejected(path)
    assert not canary.exists()


def test_the_canary_sings() -> None:
    # without this the test above could pass because the pickles are harmless
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for i, kind in enumerate((Touch, Eval)):
            pickle.loads(pickle.dumps(kind(Path(folder) / str(i))))
            assert (Path(folder) / str(i)).is_dir()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip")
def test_torchscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    rejected(path)


def bad_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../escape", b"x")
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")


def cut(path: Path, part: float) -> None:
    torch.save(make().body.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


DAMAGED = {
    "empty": lambda p: p.write_bytes(b""),
    "one byte": lambda p: p.write_bytes(b"\x80"),
    "page": lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "pointer": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
    "half": lambda p: cut(p, 0.5),
    "almost": lambda p: cut(p, 0.99),
    "foreign zip": bad_zip,
    "zeros": lambda p: p.write_bytes(bytes(4096)),
    "number": lambda p: torch.save(3, p),
    "list": lambda p: torch.save([torch.zeros(1)], p),
    "no tensors": lambda p: torch.save({"epoch": 3}, p),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_torch_files_are_rejected(kind: str, tmp_path: Path) -> None:
    DAMAGED[kind](tmp_path / "teacher.pth")
    rejected(tmp_path / "teacher.pth")
    assert not (tmp_path.parent.parent / "escape").exists()


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = safetensors_bytes({"w": entry()}, bytes(8))
UNSAFE = {
    "empty": b"",
    "no header": GOOD[:7],
    "cut in the header": GOOD[:30],
    "cut in the data": GOOD[:-3],
    "more data": GOOD + b"x",
    "length 2^63": safetensors_bytes({"w": entry()}, bytes(8), 2**63),
    "length 2^64-1": safetensors_bytes({"w": entry()}, bytes(8), 2**64 - 1),
    "length 0": safetensors_bytes({"w": entry()}, bytes(8), 0),
    "not json": safetensors_bytes(b"{w}", bytes(8)),
    "not utf-8": safetensors_bytes(b'{"\xff": 1}', bytes(8)),
    "unknown type": safetensors_bytes({"w": entry("F99")}, bytes(8)),
    "shape against size": safetensors_bytes({"w": entry(shape=(3,))}, bytes(8)),
    "huge shape": safetensors_bytes({"w": entry(shape=(2**62, 2**62))}, bytes(8)),
    "hole": safetensors_bytes({"w": entry(offsets=(4, 12))}, bytes(12)),
    "overlap": safetensors_bytes({"v": entry(), "w": entry(offsets=(4, 12))}, bytes(12)),
    "backwards": safetensors_bytes({"w": entry(offsets=(8, 0))}, bytes(8)),
    "beyond the end": safetensors_bytes({"w": entry(shape=(2000,), offsets=(0, 8000))}, bytes(8)),
    "no tensors": safetensors_bytes({}),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_damaged_safetensors_are_rejected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(UNSAFE[kind])
    rejected(path)


def test_the_undamaged_safetensors_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(GOOD)
    assert torch.equal(network.read_checkpoint(tmp_path / "t.safetensors")["w"], torch.zeros(2))


def test_what_is_not_a_file_is_rejected(tmp_path: Path) -> None:
    rejected(tmp_path / "nowhere.pth")
    rejected(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    rejected(tmp_path / "pipe.pth")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published CIFAR-10 checkpoint of ResNet-56 is not here")
def test_the_published_resnet56_is_read() -> None:
    assert hashlib.sha256(PUBLISHED.read_bytes()).hexdigest().startswith("4bfd9763")
    torch.set_num_threads(1)
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    names = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    net = network.build("resnet56", class_names=names, input_shape=(3, 32, 32), seed=0, **statistics)
    load_into(PUBLISHED, net)
    assert network.count_parameters(net) == 853_018
    with torch.no_grad():
        logits = net.eval()(torch.rand(2, 3, 32, 32))
    assert torch.isfinite(logits).all() and not torch.equal(logits[0], logits[1])
