"""One way to each error, for the snapshot of what it prints: `e_data_classes` ends in E-DATA-CLASSES.

Each calls the code that raises, on files that it makes. None needs a network, a GPU or another machine.
"""

import dataclasses
import inspect
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace as Some
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compress import (
    adb,
    answers,
    app_folder,
    arm64,
    arm64_verify,
    augment,
    bench,
    bugs,
    calibrate,
    catalog,
    choice,
    conversion,
    debian,
    distill,
    export,
    files,
    ladder,
    listing,
    litert_kit,
    measuring,
    model_files,
    mutual,
    ncnn_int8,
    network,
    onnx_torch,
    plan,
    prune,
    publish,
    quantize_file,
    recipe,
    remote,
    report,
    screen,
    sparse,
    store,
    taps,
    teacher_plan,
    torchvision_source,
    train,
    training_steps,
    transfer,
    web_kit,
)  # fmt: skip
from compress.child import ChildFailed
from compress.cli.main import compress as group
from compress.types import Artifact, Dataset, Splits

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "digits-mobilenet"
RUN = ROOT / "models" / "digits-mobilenet"


@dataclass(frozen=True)
class Place:
    """An empty folder, which is the current one, and pytest's `monkeypatch`."""

    folder: Path
    patch: pytest.MonkeyPatch

    def cli(self, *arguments: str | Path) -> None:
        group.main([str(each) for each in arguments], prog_name="compress", standalone_mode=False)

    def images(self, *folders: str, count: int = 2) -> Path:
        for name, number in itertools.product(folders, range(count)):
            path = self.folder / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        return self.folder / "photos"

    def file(self, name: str, text: str = "") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def onnx(self, nodes: list[Any], values: dict[str, np.ndarray] | None = None, **more: Any) -> Path:
        """A model from `images` [N,1,2,2] to `logits` [N,4], with opset 17 unless `opset` is given."""
        shape, out = more.get("shape", ["N", 1, 2, 2]), more.get("out", ["N", 4])
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)],
            [numpy_helper.from_array(array, name) for name, array in (values or {}).items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", more.get("opset", 17))]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), self.folder / "model.onnx")
        return self.folder / "model.onnx"

    def flat(self, **more: Any) -> Path:
        return self.onnx([helper.make_node("Flatten", ["images"], ["logits"])], **more)


def artifact(path: Path, **fields: Any) -> Artifact:
    known = {
        "path": path, "format": "onnx", "precision": "float32", "input_shape": (1, 2, 2), "digest": "0" * 64,
        "stage": "student", "size_bytes": 1, "class_names": ("a", "b", "c", "d"), "parameters": 0, "macs": 0,
    }  # fmt: skip
    return Artifact(**(known | fields))


def data(count: int = 4, classes: tuple[str, ...] = ("cat", "dog"), side: int = 8) -> Dataset:
    labels = np.arange(count) % len(classes)
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 1))
    return Dataset(
        name="photos", split="train", images=pixels, labels=labels, class_names=classes, mean=(0.5,), std=(0.25,),
        may_flip=False, digest="0" * 64,
    )  # fmt: skip


def built(spec: str = "resnet_cifar:depth=8,channels=8,stem=8") -> network.Network:
    return network.build(
        catalog.load("nets", spec).spec, class_names=("cat", "dog"), input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,),
        seed=0,
    )  # fmt: skip


def setting(**fields: Any) -> Any:
    return Some(
        **{"only_logits": "", "pairs": (), "student_pooled": 0, "teacher_pooled": 0, "batch_size": 8, "num_classes": 4,
           "mixup": 0.0, "together": "", "labels": np.arange(4)} | fields
    )  # fmt: skip


def check(spec: str, **fields: Any) -> None:
    distill.check(catalog.load("methods", spec), setting(**fields))


# --- names, options, knobs, recipes


def e_address(place: Place) -> None:
    remote.address_of("http://board.local")


def e_auto_candidates(place: Place) -> None:
    place.patch.setattr(catalog, "candidates", lambda plugins: {})
    screen.resolve(recipe.Recipe(student="auto"), None, None, (), None)


def e_auto_none(place: Place) -> None:
    tiny = choice.Candidate(label="tiny", spec="tiny", out=choice.CANNOT, reason="the images are too small")
    raise screen._nothing_fits([tiny], None, None)


def e_channel_values(place: Place) -> None:
    place.cli("run", "--teacher-mean", ".5,.5", "--teacher-std", ".2,.2")


def e_knob_choice(place: Place) -> None:
    place.file("r.toml", 'seed = 1\noptimizer = "adam"\n')
    place.cli("run", "--recipe", "r.toml")


def e_knob_range(place: Place) -> None:
    place.file("r.toml", "epochs = 3 # short\nmax_drop = 101\n")
    place.cli("run", "--recipe", "r.toml")


def e_knob_type(place: Place) -> None:
    place.file("r.toml", 'kd = [\n  "kd",\n]\n  batch_size = "large"\n')
    place.cli("run", "--recipe", "r.toml")


def e_knob_unknown(place: Place) -> None:
    place.cli("run", "--kd", "kd:temprature=4", "--dry-run")


def e_name_unknown(place: Place) -> None:
    place.cli("list", "metods")


def e_option(place: Place) -> None:
    place.cli("verify")


def e_option_conflict(place: Place) -> None:
    place.file("r.toml", "seed = 1\nrefine = true\n")
    place.cli("run", "--recipe", "r.toml")


def e_option_value(place: Place) -> None:
    place.cli("run", "--set", "batch_size")


def e_out_place(place: Place) -> None:
    place.cli("quantize", "model.onnx", "--data", "digits", "--out", "nowhere/model.onnx")


def e_pairing(place: Place) -> None:
    place.cli("run", "--set", "pairing=stride=index=path")


def e_prune_value(place: Place) -> None:
    place.cli("run", "--prune", "1.5")


def e_recipe_toml(place: Place) -> None:
    place.file("r.toml", "seed = 1\nepochs == 3\n")
    place.cli("run", "--recipe", "r.toml")


def e_bug(place: Place) -> None:
    place.patch.setattr(bugs.time, "strftime", lambda *given: "20260101-120000")
    place.patch.setattr(bugs.os, "getpid", lambda: 7)
    raise KeyError("what nobody thought of")


def e_unit(place: Place) -> None:
    place.file("r.toml", 'student = "auto"\nmax_latency = "3"\n')
    place.cli("run", "--recipe", "r.toml")


# --- plugins


def plugin(place: Place, name: str, body: str) -> None:
    place.file("mine.py", f'"""Mine."""\nfrom compress.errors import {name}\ndef build(*given):\n    {body}\n')
    entry = catalog.load("nets", "mine", (place.folder / "mine.py",))
    entry.module.build(entry.config, 2, (1, 8, 8))


def e_plugin(place: Place) -> None:
    plugin(place, "CompressError", 'raise CompressError("my network is not ready", hint="train it first")')


def e_plugin_file(place: Place) -> None:
    place.cli("list", "nets", "--plugin", "nowhere.py")


def e_plugin_input(place: Place) -> None:
    plugin(place, "InputRejected", 'raise InputRejected("my weights are damaged")')


def e_plugin_measurement(place: Place) -> None:
    plugin(place, "Unmeasurable", 'raise Unmeasurable("my board is not plugged in")')


def e_plugin_source(place: Place) -> None:
    place.file("mine.py", "VARIANTS = dict(small={})\n\n\ndef build(): ...\n")
    place.cli("list", "nets", "--plugin", "mine.py")


def e_plugin_usage(place: Place) -> None:
    plugin(place, "UsageError", 'raise UsageError("my network has 10 classes, not 2")')


# --- data


def e_class_name(place: Place) -> None:
    folder = place.images(unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    listing.read(folder, ())


def e_classes_differ(place: Place) -> None:
    files.refuse_other_classes(artifact(Path("model.onnx"), class_names=("bird", "cow")), Path("model.onnx"), data())


def e_data_absent(place: Place) -> None:
    loaded(place, f"cifar10:root={place.folder}")


def e_data_classes(place: Place) -> None:
    loaded(place, str(place.images("train/cat", "train/dog", "test/cat", "test/cow")))


def e_data_empty(place: Place) -> None:
    folder = place.images("cat", "dog")
    (folder / "bird").mkdir()
    loaded(place, str(folder))


def e_data_fetch(place: Place) -> None:
    def fetch(*given: Any, **named: Any) -> None:
        raise RuntimeError("no route to host")

    place.patch.setattr(torchvision.datasets, "CIFAR10", fetch)
    torchvision_source._open("CIFAR10", place.folder, True, True)


def e_data_folder(place: Place) -> None:
    loaded(place, "folder:path=nowhere")


def e_data_layout(place: Place) -> None:
    loaded(place, str(place.images("cat")))


def e_data_leak(place: Place) -> None:
    splits = Splits(**{field.name: data() for field in dataclasses.fields(Splits)})
    plan._refuse_leaked_images(splits)


def e_data_unnamed(place: Place) -> None:
    place.cli("bench", "model.onnx")


def e_image_unreadable(place: Place) -> None:
    folder = place.images("cat", "dog", count=12)
    (folder / "cat" / "0.png").write_text("<html>not found</html>")
    loaded(place, str(folder))


def e_transfer_images(place: Place) -> None:
    transfer.transfer_set(data(), ("cat", "dog"), None)


def loaded(place: Place, name: str) -> None:
    plan.load_data(recipe.Recipe(data=name), store.Store(place.folder / "store"))


# --- checkpoints and other files


def e_answers_range(place: Place) -> None:
    kept = answers.AnswerFile(place.folder, {}, count=1, classes=2, views=1)
    kept.write(np.zeros(1), np.zeros(1), np.array([[1e6, 0.0]], np.float32))


def e_checkpoint_keys(place: Place) -> None:
    network.load_state(built(), {"linear.weight": torch.zeros(3, 3)}, Path("teacher.pth"))


def e_checkpoint_nan(place: Place) -> None:
    net = built()
    state = {key: value * np.nan if value.is_floating_point() else value for key, value in net.state_dict().items()}
    network.load_state(net, state, Path("teacher.pth"))


def e_checkpoint_pickle(place: Place) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (Path("canary"),)

    (place.folder / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    network.read_checkpoint(place.folder / "evil.pth")


def e_checkpoint_read(place: Place) -> None:
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (place.folder / "list.pth").write_bytes(buffer.getvalue())
    network.read_checkpoint(place.folder / "list.pth")


def e_converted_folder(place: Place) -> None:
    place.file("versions.json", "{}")
    arm64_verify._of_kit(place.folder)


def e_file_read(place: Place) -> None:
    model_files.check(place.folder / "model.onnx")


def e_gate_cell(place: Place) -> None:
    place.cli("gate", REPORT, "--max-latency", "3ms", "--runtime", "mnn")


def e_gate_limits(place: Place) -> None:
    place.cli("gate", REPORT)


def e_kit_exists(place: Place) -> None:
    place.patch.setattr(web_kit.shutil, "which", lambda name: name)
    place.file("mine.txt")
    web_kit.build(place.folder)


def e_kit_machine(place: Place) -> None:
    place.patch.setattr(arm64.platform, "system", lambda: "Linux")
    place.patch.setattr(arm64.platform, "machine", lambda: "aarch64")
    arm64.build(place.folder / "kit", {})


def e_kit_unusable(place: Place) -> None:
    arm64.manifest(place.folder)


def e_npm(place: Place) -> None:
    place.patch.setenv("PATH", str(place.folder))
    web_kit.build(place.folder / "kit")


def e_pip(place: Place) -> None:
    fails = "print('ERROR: no matching distribution'); raise SystemExit(1)"
    litert_kit._step([sys.executable, "-c", fails], place.folder, "is the Python index in reach?")


def e_debian(place: Place) -> None:
    debian.step("reading the index", [str(place.folder / "apt-get"), "update"], place.folder)


def e_remote(place: Place) -> None:
    place.patch.setenv(remote.SSH_VARIABLE, "no-such-ssh")
    remote.Remote(remote.address_of("ssh://pi@board.local"))


def e_phone(place: Place) -> None:
    place.patch.setenv(adb.ADB_VARIABLE, "no-such-adb")
    adb.choose("")


def e_out_foreign(place: Place) -> None:
    place.file("mine.txt")
    keywords = [p.name for p in inspect.signature(app_folder.write).parameters.values() if p.kind is p.KEYWORD_ONLY]
    app_folder.write(place.folder, **dict.fromkeys(keywords))


def e_report_malformed(place: Place) -> None:
    place.file("report.json", "{}")
    place.cli("report", place.folder)


def e_report_write(place: Place) -> None:
    place.file("file")
    document = json.loads((REPORT / "report.json").read_text())
    report.write({key: value for key, value in document.items() if key != "derived"}, place.folder / "file")


def e_run_busy(place: Place) -> None:
    publish.refuse_second(Some(models=Path("models/RUN")))("process 7")


def e_run_changed(place: Place) -> None:
    shutil.copytree(RUN, place.folder / "RUN")
    (place.folder / "RUN" / "student.onnx").write_bytes(b"other")
    place.cli("verify", "RUN")


def e_run_folder(place: Place) -> None:
    place.cli("verify", place.folder)


def e_store_damaged(place: Place) -> None:
    answers._refuse_other(Path("answers-1"), {"teacher": "abc"}, {"teacher": "def"})


def e_write(place: Place) -> None:
    place.file("file")
    place.patch.setenv("COMPRESS_STORE", str(place.folder / "file"))
    store.Store.default()


# --- ONNX files and runtimes


def e_answers_changed(place: Place) -> None:
    facts = {"finite": True, "max_difference_of_spread": 0.25, "images": 8, "top1_agreement_fraction": 0.5}
    export.check_parity(facts, "student")


def e_answers_differ(place: Place) -> None:
    asked = Some(path=Path("student.onnx"), precision="float32")
    place.patch.setattr(files, "open_run", lambda folder: ([asked], None))
    place.patch.setattr(files, "read_golden", lambda path: (np.zeros((2, 1, 2, 2)), np.eye(2)))
    place.patch.setattr(files.bench, "answers", lambda *given, **named: np.eye(2)[::-1])
    files.verify(place.folder, place.folder)


def e_arm64(place: Place) -> None:
    rows = [("student.onnx in ort_cpu", "8/8 golden samples", True), ("app/m.tflite in litert", "3/8 samples", False)]
    place.patch.setattr(arm64_verify, "verify", lambda *given: rows)
    place.cli("verify", "--arch", "arm64", "models/RUN")


def e_calibration_range(place: Place) -> None:
    path = place.onnx(
        [helper.make_node("Log", ["images"], ["logged"]), helper.make_node("Flatten", ["logged"], ["logits"])]
    )
    calibrate.look(path, np.zeros((2, 2, 2, 1), np.uint8))


def e_conversion(place: Place) -> None:
    path = place.flat()
    mine = place.file(
        "mine.py", 'FORMAT = "onnx"\n\n\ndef convert(*given, **named):\n    raise ValueError("no such op")\n'
    )
    found = artifact(path, digest=store.file_digest(path))
    conversion._in_child(found, mine, place.folder, ())


def e_float16_range(place: Place) -> None:
    path = place.onnx(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        {"w": np.full((4, 4), 1e6, np.float32)},
    )
    quantizer = catalog.load("quantizers", "float16").module
    quantizer.apply(None, path, place.folder / "out.onnx", None, place.folder)


def e_images_none(place: Place) -> None:
    ask(place, np.zeros((0, 2, 2, 1), np.uint8))


def e_input_shape(place: Place) -> None:
    ask(place, np.zeros((1, 3, 3, 1), np.uint8))


def ask(place: Place, pixels: np.ndarray, runtime: str = "ort_cpu", **more: Any) -> None:
    path = place.folder / "model.onnx"
    digest = store.file_digest(path) if path.is_file() else ""
    bench.answers(artifact(path, digest=digest), runtime, pixels, threads=1, scratch=place.folder, **more)


def e_ncnn_form(place: Place) -> None:
    place.file("model.bin")
    ncnn_int8.read(place.file("model.param", "no magic\nhere\n"), place.folder / "model.bin")


def e_normalisation(place: Place) -> None:
    quantize_file._refuse(artifact(place.flat()), recipe.Recipe())


def e_onnx_malformed(place: Place) -> None:
    files.open_onnx(place.file("model.onnx", "<html>not found</html>"), place.folder)


def e_onnx_operator(place: Place) -> None:
    onnx_torch._Node(helper.make_node("Hardmax", ["images"], ["logits"]))


def e_onnx_opset(place: Place) -> None:
    quantize_file._refuse(artifact(place.flat(opset=11)), recipe.Recipe())


def e_onnx_quantized(place: Place) -> None:
    quantize_file._refuse(artifact(place.flat(), precision="int8"), recipe.Recipe())


def e_onnx_shape(place: Place) -> None:
    files.open_onnx(place.flat(shape=["N", 2, 2, 1]), place.folder)


def e_qdq_form(place: Place) -> None:
    onnx_torch._quantize({}, torch.zeros(2), np.ones(2))


def e_runtime_choice(place: Place) -> None:
    measuring.onnx_runtime(("torch_eager",))


def e_runtime_failed(place: Place) -> None:
    def run(*given: Any) -> None:
        raise ChildFailed("the child was killed by SIGKILL; out of memory?")

    place.flat()
    ask(place, np.zeros((1, 2, 2, 1), np.uint8), host=Some(run=run))


def e_runtime_format(place: Place) -> None:
    ask(place, np.zeros((1, 2, 2, 1), np.uint8), "torch_eager")


def e_runtime_networks(place: Place) -> None:
    measuring.bench_files(
        [], recipe.Recipe(runtimes=("torch_eager",)), tier="smoke", synthetic=True, store=store.Store(place.folder),
        command="",
    )  # fmt: skip


def e_runtime_unavailable(place: Place) -> None:
    place.patch.setattr(bench, "runtime_state", lambda *given: {"unavailable": "no module named onnxruntime"})
    measuring.onnx_runtime(("ort_cpu",))


# --- networks, methods, training


def e_batch_size(place: Place) -> None:
    check("rkd", batch_size=2, student_pooled=4, teacher_pooled=4)


def e_device(place: Place) -> None:
    place.patch.setattr(torch.cuda, "is_available", lambda: False)
    plan._device("cuda")


def e_interrupted(place: Place) -> None:
    net = built()
    training = train.Plan(epochs=1, batch_size=2)

    def loss(batch: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return sum(p.sum() for p in net.parameters()) * 0.0

    train.fit(
        "teacher", net, loss, augment.Augmenter(data()), training, seed=0, threads=1, thread_choices=(1,),
        checkpoint=place.folder / "checkpoint",
    )  # fmt: skip


def e_ladder_rung(place: Place) -> None:
    job = Some(quantizer=catalog.load("quantizers", "int8_qat"), recipe=recipe.Recipe())
    ladder.climb(job, None, artifact(Path("model.onnx")), None)


def e_method_needs(place: Place) -> None:
    check("attention", only_logits="an ONNX teacher")


def e_method_setting(place: Place) -> None:
    check("dkd", num_classes=2)


def e_method_stages(place: Place) -> None:
    stage = Some(name="hint", share=1.0, student=True)
    distill.staged_of((Some(entry=Some(name="fitnet"), stages=(stage,)),))


def e_method_untaught(place: Place) -> None:
    entry = catalog.load("methods", "cross_entropy")
    probed = taps.probe(built(), (1, 8, 8))
    asked = distill.setting_of(probed, probed, data(), 4, mixup=1.0)
    distill.refuse_untaught(distill.bind((entry,), asked, 0), asked)


def e_net_images(place: Place) -> None:
    entry = catalog.load("nets", "nin")
    entry.module.build(entry.config, 2, (1, 2, 2))


def e_net_read(place: Place) -> None:
    tree = catalog.load("nets", "soft_tree")
    tree.module.build(tree.config, 2, (1, 8, 8)).penalty()


def e_package_missing(place: Place) -> None:
    place.patch.setitem(sys.modules, "timm", None)
    entry = catalog.load("nets", "timm:resnet18")
    entry.module.build(entry.config, 2, (3, 32, 32))


def e_peer(place: Place) -> None:
    mutual.common_rate_factor((Some(body=Some(learning_rate_factor=1.0)), Some(body=Some(learning_rate_factor=0.1))))


def e_prune_impossible(place: Place) -> None:
    prune.prunable(built("soft_tree"))


def e_prune_network(place: Place) -> None:
    sparse.thin(built("mobileone"), catalog.load("pruners", "unstructured"), 0.5)


def e_prune_pruner(place: Place) -> None:
    catalog.load("pruners", "two_four").module.check(None, 0.3, 1)


def e_prune_unreachable(place: Place) -> None:
    ranking = prune.rank(prune.prunable(built()), catalog.load("pruners", "magnitude"))
    prune.cut(ranking, [np.array([], int) for _ in ranking.families], round_to=64)


def e_teacher_chance(place: Place) -> None:
    training_steps._refuse_chance(np.eye(2)[[1, 0, 1, 0]], data().labels, data(), Path("teacher.pth"))


def e_teacher_count(place: Place) -> None:
    teacher_plan._for_each(recipe.Recipe(teacher_checkpoint=("a", "b")), "teacher_checkpoint", 3, shared=False)


def e_training_diverged(place: Place) -> None:
    raise train._diverged("the loss of teacher is nan at step 3", train.Plan(epochs=1))


CASES = {name.upper().replace("_", "-"): made for name, made in list(globals().items()) if name.startswith("e_")}
