"""Measuring on another machine, by ssh: a real sshd on the loopback address."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_bench import TIER, artifact, cell, images  # noqa: F401 (fixtures)

from compress import bench, child, environment, remote
from compress.cli.main import compress as group
from compress.errors import Unmeasurable, UsageError

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
needs_sshd = pytest.mark.skipif(
    not SSHD or not shutil.which("ssh-keygen"), reason="no sshd (apt install openssh-server)"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """`ssh://…` of a server that takes one key and no password; clients know both by a configuration of their own."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    with contextlib.suppress(OSError):
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server that drops its privileges goes
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=(folder / "log").open("wb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(remote.SSH_VARIABLE, f"ssh -F {folder / 'ssh_config'}")
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}{sys.executable}"
    server.kill()
    server.wait()


@pytest.fixture
def there(address, monkeypatch, tmp_path):
    """A connection; the far side makes its folder in `tmp_path / "far"`."""
    (tmp_path / "far").mkdir()
    # sshd sets the environment anew: the far side's own temporary folder is named by its interpreter
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nTMPDIR={tmp_path / "far"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    place = address.partition("//")[2].partition("/")[0]
    with remote.connected(f"ssh://{place}{python}") as connection:
        yield connection


def gone(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@needs_sshd
def test_the_same_records_come_back(there, artifact, images, tmp_path):  # noqa: F811
    cells = [cell("a", artifact), cell("b", artifact)]
    far = bench.measure(cells, images, TIER, seed=1, scratch=tmp_path / "s", host=there)
    here = bench.measure(cells, images, TIER, seed=1, scratch=tmp_path / "s")
    for one, other in zip(far, here, strict=True):
        assert not one.failure and len(one.visits) == TIER.rounds
        assert [set(visit) for visit in one.visits] == [set(visit) for visit in other.visits]
        assert [v["position"] for v in one.visits] == [v["position"] for v in other.visits]
    logits = [
        bench.answers(artifact, "ort_cpu", images, threads=1, scratch=tmp_path / "s", host=h)
        for h in (there, child.HERE)
    ]
    assert np.array_equal(*logits)
    far_environment, own = there.environment(), environment.capture()
    assert far_environment.packages == own.packages and far_environment.cpu_model == own.cpu_model
    # a file is sent once, whatever is done with it
    assert len([p for p in there._sent if p.name == "images.npy"]) == 2 and list((tmp_path / "s").iterdir()) == []


@needs_sshd
def test_what_ssh_says_for_people_blocks_nothing(address, monkeypatch, tmp_path):
    talkative = tmp_path / "talkative"
    talkative.write_text("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2\nexec \"$@\"\n")
    talkative.chmod(0o755)
    monkeypatch.setenv(remote.SSH_VARIABLE, f"{talkative} {os.environ[remote.SSH_VARIABLE]}")
    with remote.connected(address) as connection:
        assert connection.environment().cores_allowed == environment.capture().cores_allowed


@needs_sshd
def test_nothing_stays_there(address, there, artifact, images, tmp_path):  # noqa: F811
    bench.answers(artifact, "ort_cpu", images, threads=1, scratch=tmp_path / "s", host=there)
    (made,) = (tmp_path / "far").iterdir()
    assert (made / "compress" / "worker.py").exists()
    there.close()
    assert gone(lambda: not made.exists())


@needs_sshd
def test_a_cut_connection_is_a_reason_and_leaves_nothing_behind(there, artifact, images, tmp_path, monkeypatch):  # noqa: F811
    note = tmp_path / "pid"
    adapter = tmp_path / "slow.py"
    source = bench.runtime_file("ort_cpu").read_text()
    adapter.write_text(
        source
        + f"""

def run(session, inputs):
    import os, time
    with open({str(note)!r} + ".new", "w") as file:  # seen whole, or not at all
        file.write(str(os.getpid()))
    os.replace({str(note)!r} + ".new", {str(note)!r})
    time.sleep(100)
"""
    )
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): adapter)
    monkeypatch.setattr(there, "_ask", cutting(there, note))
    started = time.monotonic()
    found = bench.measure(
        [cell("a", artifact), cell("b", artifact)], images, TIER, seed=0, scratch=tmp_path / "s", host=there
    )
    assert time.monotonic() - started < 60
    for one in found:
        print(one.failure)
        assert "the ssh connection ended" in one.failure and not one.visits and one.failure_kind == "lost"
    pid = int(note.read_text())
    assert gone(lambda: not Path(f"/proc/{pid}").exists()), "the child goes on there"
    assert gone(lambda: not list((tmp_path / "far").iterdir()))


def cutting(there, note: Path):
    """`_ask` that pulls the plug once a visit has begun."""
    import threading

    real = remote.Remote._ask

    def ask(**request):
        real(there, **request)
        if request.get("call") == "visit":

            def pull():
                assert gone(note.exists, 30)
                os.killpg(there._ssh.pid, signal.SIGKILL)

            threading.Thread(target=pull).start()

    return ask


@needs_sshd
def test_a_runtime_that_is_not_there_is_a_row(there, artifact, images, tmp_path, monkeypatch):  # noqa: F811
    adapter = tmp_path / "absent.py"
    text = bench.runtime_file("ort_cpu").read_text().replace('util.find_spec("onnxruntime") is None', "True")
    adapter.write_text(text)
    monkeypatch.setattr(bench, "runtime_file", lambda name, plugins=(): adapter)
    (found,) = bench.measure([cell("a", artifact)], images, TIER, seed=0, scratch=tmp_path / "s", host=there)
    assert found.failure == "onnxruntime is not installed: pip install 'onnxruntime>=1.24'"
    assert found.failure_kind == "unavailable"
    with pytest.raises(Unmeasurable, match="cannot run in ort_cpu: onnxruntime is not installed"):
        bench.answers(artifact, "ort_cpu", images, threads=1, scratch=tmp_path / "s", host=there)


@needs_sshd
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Python 3.9 is all there is' >&2; exit 127", "Python 3.9 is all there is"),
        ("exec cat /dev/zero", "other things than were asked for|no answer"),
        (f"exec {sys.executable} -c 'import sys; sys.version_info = (3, 9); sys.version = \"3.9.2 x\"; "
         "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))'", "its Python is 3.9.2; 3.11 or"),
    ],
    ids=["none", "rubbish", "old"],
)  # fmt: skip
def test_an_interpreter_that_is_of_no_use_is_explained(address, tmp_path, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    place = address.partition("//")[2].partition("/")[0]
    with pytest.raises(Unmeasurable, match=message) as caught, remote.connected(f"ssh://{place}{python}"):
        pass
    print(caught.value)
    assert "without a password" in caught.value.hint


@needs_sshd
def test_what_a_login_shell_says_is_passed_over(address, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho Welcome to the board\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    place = address.partition("//")[2].partition("/")[0]
    with remote.connected(f"ssh://{place}{python}") as there:
        assert there.environment().python == environment.capture().python


@needs_sshd
@pytest.mark.slow
def test_the_commands_measure_there_and_name_no_host(address, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(sys, "argv", ["compress", "bench", "x.onnx", "--on", address])
    wanted = [
        "bench",
        str(RUN / "student.onnx"),
        "--synthetic",
        "--tier",
        "smoke",
        "--on",
        address,
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(group, wanted, catch_exceptions=False)
    assert done.exit_code in (0, 4), done.output
    for path in tmp_path.glob("report.*"):
        assert "127.0.0.1" not in path.read_text() and "--on" in path.read_text(), path
    judged = CliRunner().invoke(group, ["eval", str(RUN / "student.onnx"), "--data", "digits", "--on", address])
    assert judged.exit_code == 0 and " 359 " in judged.output


def test_a_host_that_is_not_there_is_explained(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if not shutil.which("ssh"):
        pytest.skip("no ssh")
    with pytest.raises(Unmeasurable, match="refused") as caught, remote.connected(f"ssh://nobody@127.0.0.1:{port}"):
        pass
    print(caught.value)
    monkeypatch.setenv(remote.SSH_VARIABLE, "no-such-ssh")
    with pytest.raises(Unmeasurable, match="there is no `no-such-ssh`"), remote.connected("ssh://a@b"):
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://pi@board.local", ("pi@board.local", 0, "python3")),
        ("ssh://board:2222/home/pi/my%20venv/bin/python", ("board", 2222, "/home/pi/my venv/bin/python")),
        ("ssh://u.x-1@[fe80::1%eth0]:22", ("u.x-1@fe80::1%eth0", 22, "python3")),
    ],
)
def test_addresses(text, expected):
    found = remote.address_of(text)
    assert (found.destination, found.port, found.python) == expected


@pytest.mark.parametrize(
    "text",
    ["board", "http://board", "ssh://", "ssh://-oProxyCommand=touch", "ssh://-l@board", "ssh://a b@board", "ssh://board:99999",
     "ssh://u:secret@board", "ssh://board;reboot", "ssh://board?x=1", "ssh://$(reboot)@board", "ssh://a'b@board"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--on") as caught:
        remote.address_of(text)
    print(caught.value)


def test_the_path_of_the_interpreter_is_one_word_to_the_shell(monkeypatch):
    seen = []

    def popen(command, **_):
        seen.append(command)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Unmeasurable):
        remote.Remote(remote.address_of("ssh://board/x%27;touch%20y;%27"))
    assert seen[0][-2] == "board" and seen[0][-1].startswith("exec '/x'\"'\"';touch y;'\"'\"'' -u -c 'import sys;")
