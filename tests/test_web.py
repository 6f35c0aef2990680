"""ONNX Runtime Web: its kit, the server that drives it, and what happens when the program on the other side fails."""

import base64
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from compress import bench, catalog, probing, web_host, web_kit
from compress.child import run_child
from compress.errors import CompressError, InputRejected
from compress.store import Store, file_digest

NAMES = ("ort_node", "ort_web")


def archive(path: Path, files: dict[str, bytes]) -> str:
    """Writes an npm archive and returns its SHA-512 in base64."""
    with tarfile.open(path, "w:gz") as content:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            content.addfile(entry, io.BytesIO(body))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A stand-in for npm that gives the archive `given.tgz`, or fails with what `fails` holds."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "npm"
    script.write_text(
        f'#!/bin/sh\nif [ -f "{tmp_path}/fails" ]; then cat "{tmp_path}/fails" >&2; exit 1; fi\n'
        f'for last; do :; done\ncp "{tmp_path}/given.tgz" "$last/package.tgz"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return tmp_path


FILES = {
    "package/package.json": b'{"version": "9.9.9"}',
    "package/dist/ort.wasm.min.mjs": b"export {}",
    "package/dist/ort.webgpu.min.mjs": b"heavy",
    "package/dist/esm/index.js": b"x",
    "package/dist/esm/index.js.map": b"map",
    "package/../../escape": b"no",
}


def test_a_kit_holds_what_runs_on_a_cpu(npm, monkeypatch):
    digest = archive(npm / "given.tgz", FILES)
    monkeypatch.setattr(web_kit, "PACKAGES", {"onnxruntime-web": ("9.9.9", digest)})
    web_kit.build(npm / "kit", tell=lambda text: None)
    package = web_kit.package_folder(npm / "kit")
    assert {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file()} == {
        "package.json", "dist/ort.wasm.min.mjs", "dist/esm/index.js"
    }  # fmt: skip
    assert web_kit.version(npm / "kit") == "9.9.9"
    with pytest.raises(CompressError, match="exists already"):
        web_kit.build(npm / "kit", tell=lambda text: None)


def test_another_archive_than_the_tested_one_is_refused(npm):
    archive(npm / "given.tgz", FILES)
    with pytest.raises(CompressError, match="is not the archive that was tested"):
        web_kit.build(npm / "kit", tell=lambda text: None)
    assert not (npm / "kit").exists() and not list(npm.glob(".kit-*")), "nothing half-made is left"


def test_npm_that_fails_is_quoted(npm):
    (npm / "fails").write_text("npm error network\nnpm error code ENOTFOUND\n")
    with pytest.raises(CompressError, match="npm could not fetch onnxruntime-web@.*ENOTFOUND"):
        web_kit.build(npm / "kit", tell=lambda text: None)


def test_without_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match="npm is not on the PATH"):
        web_kit.build(tmp_path / "kit")
    for name in NAMES:
        assert "install" in catalog.load("runtimes", name).module.unavailable()


def test_a_runtime_without_its_kit_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_WEB_KIT", str(tmp_path / "none"))
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    for name in NAMES:
        assert "compress kit web" in catalog.load("runtimes", name).module.unavailable()


def here(name: str) -> None:
    if reason := catalog.load("runtimes", name).module.unavailable():
        pytest.skip(reason)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_reference_with_the_threads_asked_for(name, threads, tmp_path):
    here(name)
    found = probing.settings(name, Store(tmp_path / "a folder, long enough for no socket" / ("x" * 90)), threads)
    assert found["intra_op_threads"] == threads and found["fixed_batch"] == 0
    assert ("Node" if name == "ort_node" else "Chrome") in found["host"]


@pytest.mark.parametrize("name", NAMES)
def test_a_visit_counts_the_other_process_and_leaves_none(name, tmp_path):
    here(name)
    artifact = probing.tiny_network(tmp_path / "tiny.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    cell = bench.Cell(name="cell", artifact=artifact, runtime=name, threads=1)
    tier = bench.Tier(name="t", rounds=1, warmup_runs=5, warmup_s=0.0, block_s=0.3)
    (measured,) = bench.measure([cell], images, tier, seed=0, scratch=tmp_path / "s", memory=True)
    assert not measured.failure
    (visit,) = measured.visits
    # 60 MB is more than Python, numpy and a server take: the program is in it
    assert measured.memory["peak_rss_bytes"] - measured.memory["empty_rss_bytes"] > 60e6
    assert visit["cpu_ns_per_inference"] > 0 and min(visit["samples_ns"]) > 0
    # what the page measured lies inside of what the whole way takes
    assert sum(visit["samples_ns"]) < visit["block_ns"]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _of_folder(tmp_path):
        time.sleep(0.1)
    assert not _of_folder(tmp_path)


def _of_folder(folder: Path) -> list[str]:
    """The running processes whose command line names `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text and path.parent.name != str(os.getpid()):
            found.append(text)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_no_model_is_to_blame(name, tmp_path):
    here(name)
    good = probing.tiny_network(tmp_path / "tiny.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"this is no protobuf" * 20)
    artifact = good.__class__(**{**vars(good), "path": bad, "digest": file_digest(bad)})
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(InputRejected, match="bad.onnx is not a usable model file"):
        bench.answers(artifact, name, images, threads=1, scratch=tmp_path / "s")


def session(tmp_path: Path, script: str) -> web_host.Session:
    """A session whose program is a Python script, which finds the address in its first argument."""
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    (package / "dist" / "file.mjs").write_text("export {}")
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-I", str(tmp_path / "script.py")]
    return web_host.Session(tmp_path / "model.onnx", package, 3, lambda url, home: [*command, url])


CLIENT = """
import json, sys, urllib.error, urllib.parse, urllib.request
base = sys.argv[1]
def get(name):
    return urllib.request.urlopen(base + name)
def send(facts, body=b""):
    headers = {"X-Facts": urllib.parse.quote(json.dumps(facts))}
    return urllib.request.urlopen(urllib.request.Request(base + "next", body, headers, method="POST"))
"""


def test_the_server_gives_its_files_to_nobody_else(tmp_path):
    opened = session(
        tmp_path,
        CLIENT
        + """
assert json.load(get("settings.json")) == {"threads": 3} and get("model.onnx").read() == b"model"
page = get("")
assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp" and b"client.mjs" in page.read()
assert get("dist/file.mjs").headers["Content-Type"] == "text/javascript"
refused = 0
for url in (base + "../model.onnx", base + "dist/../../script.py", base.rsplit("/", 2)[0] + "/model.onnx"):
    try:
        urllib.request.urlopen(url)
    except urllib.error.HTTPError as error:
        refused += error.code == 404
task = send({"threads": refused})
given = task.read()
assert task.headers["X-Shape"] == "2,1" and len(given) == 8
send({"shape": [2, 1], "ms": 1.5}, given)
""",
    )
    assert opened.facts == {"threads": 3}
    inputs = np.array([[1], [2]], dtype=np.float32)
    logits, ns = opened.ask(inputs)
    assert (logits == inputs).all() and ns == 1_500_000
    opened.close()
    assert opened.process.poll() is not None


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("import sys; print('no display', file=sys.stderr); sys.exit(3)", RuntimeError, "exit status 3.*no display"),
        ("import os; os.abort()", RuntimeError, "exit status -6"),
        (CLIENT + "send({'error': 'bad protobuf', 'blame': 'file'})", ValueError, "bad protobuf"),
        (CLIENT + "send({'error': 'no threads', 'blame': 'runtime'})", RuntimeError, "no threads"),
        (CLIENT + "send({'threads': 1}).read()", RuntimeError, "asked for 3 threads, got 1"),
        ("import time; time.sleep(60)", RuntimeError, "no answer within 1 s"),
    ],
)
def test_a_program_that_fails_says_so(script, kind, message, tmp_path, monkeypatch):
    monkeypatch.setattr(web_host, "START_S", 1.0)
    with pytest.raises(kind, match=message):
        session(tmp_path, script)
    assert not _of_folder(tmp_path), "nothing of it goes on"


def test_the_program_ends_with_its_parent(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_web
opened = test_web.session(Path({str(tmp_path)!r}), test_web.CLIENT + "send({{'threads': 3}}).read()")
print(opened.process.pid, flush=True)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


ADAPTER = """
import subprocess, time
FORMAT, TOLERANCE, REQUIRES = "onnx", {}, "none>=1"
def unavailable(): return ""
def version(): return "1"
def open_session(path, threads):
    work = "b = bytearray(80_000_000)\\nwhile True: pass"
    return subprocess.Popen(["python3", "-c", work])
def run(session, inputs):
    time.sleep(0.1)
    return inputs
def timed(session, inputs):
    time.sleep(0.02)
    return 5_000_000, 2_000_000
def effective(session): return {}
"""


def test_an_adapter_that_takes_the_time_itself(tmp_path):
    (tmp_path / "adapter.py").write_text(ADAPTER)
    np.save(tmp_path / "images.npy", np.zeros((4, 2, 2, 1), dtype=np.uint8))
    spec = {
        "mode": "latency", "adapter": str(tmp_path / "adapter.py"), "model": "none", "threads": 1, "batch": 1,
        "images": str(tmp_path / "images.npy"), "seed": [0], "warmup_runs": 6, "warmup_s": 0.0, "block_s": 0.5,
    }  # fmt: skip
    visit = run_child(spec, tmp_path, 60, ())
    assert set(visit["samples_ns"]) == {5_000_000} and visit["transfer_ns"] == 2_000_000
    held = run_child(spec | {"mode": "memory"}, tmp_path, 60, ())
    assert held["peak_rss_bytes"] - held["empty_rss_bytes"] > 80e6, "what it started holds that much"
    assert visit["cpu_ns_per_inference"] > 5e6, "the other process was busy for all of the 20 ms"
