"""The contract of every runtime adapter, and what each promises of its own."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compress import bench, catalog, child

NAMES = catalog.names("runtimes")


def test_the_catalogue_has_the_first_runtimes():
    assert {"ort_cpu", "ort_cuda", "torch_eager"} <= set(NAMES)


def test_listing_imports_no_runtime():
    code = "import sys; from compress import catalog; catalog.names('runtimes'); print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_adapter_stands_alone(name):
    tree = ast.parse(bench.runtime_file(name).read_text())
    roots = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add((node.module or "").partition(".")[0])
    assert roots <= set(sys.stdlib_module_names) | {"numpy"}


@pytest.mark.parametrize("name", NAMES)
def test_adapter_declares_its_facts(name):
    module = catalog.load("runtimes", name).module
    assert module.__doc__ and catalog.summary("runtimes", name)
    assert ">=" in module.REQUIRES
    assert (module.FORMAT in ("onnx", "torch")) != hasattr(module, "convert"), "only a format of its own is made"
    assert not module.TOLERANCE or 0 < module.TOLERANCE["float32"] < 0.01
    assert all(value < 0.5 for value in module.TOLERANCE.values()), "half the range is no agreement"
    for function in ("unavailable", "version", "open_session", "run", "effective"):
        assert callable(getattr(module, function)) and getattr(module, function).__doc__


@pytest.mark.parametrize("name", ["ort_cpu", "mnn"])
def test_a_probe_says_what_the_runtime_reads(name, tmp_path):
    state = child.run_child({"mode": "probe", "adapter": str(bench.runtime_file(name))}, tmp_path, 60, ())
    assert state["format"] == catalog.load("runtimes", name).module.FORMAT


def test_importing_openvino_reports_nothing(tmp_path):
    """It would leave an identity in the user's home and send an event to a server, from each process."""
    pytest.importorskip("openvino")
    code = (
        "from compress.runtimes import openvino as o; import sys; print(o.version(), sys.modules['openvino_telemetry'])"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip().endswith("None") and not list(tmp_path.iterdir())
    assert 'sys.modules["openvino_telemetry"] = None' in catalog.load("runtimes", "openvino").module.SNIPPET


def test_a_runtime_that_is_half_installed_says_how_to_mend_it(tmp_path, monkeypatch):
    """The library is found and its import fails, as of a wheel whose native part is missing."""
    (tmp_path / "ncnn").mkdir()
    (tmp_path / "ncnn" / "__init__.py").write_text("from . import ncnn")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bench._usable.cache_clear()
    state = bench.runtime_state("ncnn")
    assert "ImportError" in state["unavailable"]
    assert state["unavailable"].endswith("pip install --force-reinstall 'ncnn>=1.0.20260101'")


# numpy is there wherever we are, and what pip does not have is test_web.py's
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("null", "ort_node", "ort_web")])
def test_missing_library_is_a_reason(name, monkeypatch):
    module = catalog.load("runtimes", name).module
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if hasattr(module, "_no_device"):
        monkeypatch.setattr(module, "_no_device", lambda: "")
    reason = module.unavailable()
    assert " is not installed: " in reason and reason.endswith(f"pip install '{module.REQUIRES}'")


CONVERT_WITH = [name for name in NAMES if hasattr(catalog.load("runtimes", name).module, "CONVERTS_WITH")]


@pytest.mark.parametrize("name", CONVERT_WITH)
def test_a_missing_converter_is_a_reason(name, monkeypatch, tmp_path):
    """The runtime is there, and what makes its files is not: half of what the extra installs."""
    module, found = catalog.load("runtimes", name).module, importlib.util.find_spec
    package = module.CONVERTS_WITH.partition(">")[0].replace("-", "_")
    monkeypatch.setattr("importlib.util.find_spec", lambda asked, *_: None if asked == package else found(asked, *_))
    with pytest.raises(RuntimeError, match=re.escape(f"is not installed: pip install '{module.CONVERTS_WITH}'")):
        module.convert(tmp_path / "model.onnx", tmp_path, "float32")


def test_two_wheels_of_onnxruntime_at_once(monkeypatch, tmp_path):
    other = tmp_path / "onnxruntime_gpu-1.27.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.27.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ort_cpu", "ort_mobile", "ort_cuda", "ort_tensorrt"):
        module = catalog.load("runtimes", name).module
        if hasattr(module, "_no_device"):
            monkeypatch.setattr(module, "_no_device", lambda: "")
        assert "both installed" in module.unavailable()


def test_cuda_without_a_device(monkeypatch):
    cuda = catalog.load("runtimes", "ort_cuda").module
    monkeypatch.setattr(cuda, "_no_device", lambda: "the driver shows no GPU")
    assert cuda.unavailable().startswith("no CUDA device: the driver shows no GPU")


def test_cuda_with_the_cpu_wheel(monkeypatch):
    fake = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "distributions", lambda: [])
    cuda = catalog.load("runtimes", "ort_cuda").module
    monkeypatch.setattr(cuda, "_no_device", lambda: "")
    assert "no CUDA provider" in cuda.unavailable()


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_cuda_never_runs_on_the_cpu_in_silence(monkeypatch, providers):
    fake = SimpleNamespace(
        SessionOptions=SimpleNamespace,
        ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0),
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_ALL=99),
        preload_dlls=lambda: None,
        InferenceSession=lambda path, options, providers=None: SimpleNamespace(get_providers=lambda: actual),
    )
    actual = providers
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    cuda = catalog.load("runtimes", "ort_cuda").module
    if providers[0] == "CUDAExecutionProvider":
        assert cuda.open_session("model.onnx", 1).get_providers() == providers
    else:
        with pytest.raises(RuntimeError, match="asked for CUDAExecutionProvider, got CPUExecutionProvider"):
            cuda.open_session("model.onnx", 1)


@pytest.fixture
def cuda_on_the_cpu(monkeypatch):
    """The CUDA adapter, whose sessions say that they have what was asked for and run on the CPU."""
    import onnxruntime

    module, made = catalog.load("runtimes", "ort_cuda").module, onnxruntime.InferenceSession

    def opened(path, options, providers):
        session = made(path, options, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: [module._PROVIDER]
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    return module


def test_where_each_node_runs_is_read_from_a_profile(cuda_on_the_cpu, monkeypatch, tmp_path):
    """A real profile of a real session; `get_providers` alone would have been believed."""
    monkeypatch.chdir(tmp_path)
    model = str(Path(__file__).parents[1] / "models" / "digits-mobilenet" / "student.onnx")
    inputs = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(RuntimeError, match=r"none of its \d+ nodes runs in CUDAExecutionProvider: {'CPU"):
        cuda_on_the_cpu.placement(model, 1, inputs)
    monkeypatch.setattr(cuda_on_the_cpu, "_PROVIDER", "CPUExecutionProvider")
    nodes = cuda_on_the_cpu.placement(model, 1, inputs)
    assert set(nodes) == {"CPUExecutionProvider"} and nodes["CPUExecutionProvider"] > 50
    assert not list(tmp_path.iterdir()), "a profile was left"


def test_copies_to_the_gpu_are_told_apart(monkeypatch):
    binding = SimpleNamespace(
        bind_ortvalue_input=lambda name, value: asked.append(value), bind_output=lambda name, device, number: None,
        synchronize_inputs=lambda: None, synchronize_outputs=lambda: None,
        copy_outputs_to_cpu=lambda: [np.ones((1, 3), np.float32)],
    )  # fmt: skip
    asked: list = []
    session = SimpleNamespace(
        io_binding=lambda: binding, get_inputs=lambda: [SimpleNamespace(name="input")],
        get_outputs=lambda: [SimpleNamespace(name="logits")], run_with_iobinding=lambda given: asked.append("ran"),
    )  # fmt: skip
    value = SimpleNamespace(ortvalue_from_numpy=lambda array, device, number: (device, array.shape))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(OrtValue=value))
    for name in ("ort_cuda", "ort_tensorrt"):
        module = catalog.load("runtimes", name).module
        clock = iter([0, 10, 110, 130])
        monkeypatch.setattr(module.time, "perf_counter_ns", lambda clock=clock: next(clock))
        assert module.timed(session, np.zeros((1, 3, 8, 8), np.float32)) == (130, 30)
        assert asked == [("cuda", (1, 3, 8, 8)), "ran"]
        asked.clear()


def test_torch_on_a_gpu_says_what_is_missing(monkeypatch):
    torch = pytest.importorskip("torch")
    for name in ("torch_cuda", "torch_cuda_graph"):
        module = catalog.load("runtimes", name).module
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "no CUDA device" in module.unavailable()
        monkeypatch.setattr(torch.version, "cuda", None)
        assert "built without CUDA" in module.unavailable()
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["torch_eager", pytest.param("torch_compiled", marks=pytest.mark.slow)])
def test_torch_answers_as_the_network_does(name, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    # a compiler that comes with the processor's words is taken for granted: asking it takes ten seconds
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    monkeypatch.setattr(child, "PASSED_ON", child.PASSED_ON | {"TORCHINDUCTOR_VEC_ISA_OK"})
    if reason := catalog.load("runtimes", name).module.unavailable():
        pytest.skip(reason)
    from compress import network
    from compress.types import Artifact

    # every fused group of operators is a C++ file to compile
    net = network.build(
        "mlp:depth=1,hidden=16" if name == "torch_compiled" else "resnet20",
        class_names=("a", "b", "c"),
        input_shape=(3, 8, 8),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        seed=1,
    ).eval()
    network.save(net, tmp_path / "net")
    artifact = Artifact(
        path=tmp_path / "net",
        digest="",
        format="torch",
        precision="float32",
        stage="teacher",
        size_bytes=1,
        parameters=1,
        macs=1,
        input_shape=(3, 8, 8),
        class_names=("a", "b", "c"),
    )
    # two shapes: 64 images at once, and what is left; a shape takes a quarter of a minute to compile
    count = 64 if name == "torch_compiled" else 70
    images = np.random.default_rng(0).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    logits = bench.answers(artifact, name, images, threads=1, scratch=tmp_path / "s")
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)).numpy()
    tolerance = catalog.load("runtimes", name).module.TOLERANCE["float32"] * np.ptp(expected)
    assert np.abs(logits - expected).max() <= tolerance
    # What the tolerance is there to catch: images in another order, or inputs that were not scaled to [0,1].
    assert np.abs(np.roll(logits, 1, axis=0) - expected).max() > tolerance


def test_torch_eager_settings_are_read_back(tmp_path):
    pytest.importorskip("torch")
    from compress import network

    net = network.build("resnet20", class_names=("a", "b"), input_shape=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3, seed=1)
    network.save(net, tmp_path / "net")
    code = (
        "from compress.runtimes import torch_eager as t\n"
        f"s = t.open_session({str(tmp_path / 'net')!r}, 1); print(s.training, t.effective(s))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = {"device": "cpu", "intra_op_threads": 1, "inter_op_threads": 1, "fixed_batch": 0}
    assert done.stdout.strip() == f"False {expected}"
