"""What a locked-up process can still do. The kernel's own refusals are what is tested."""

import ctypes
import json
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from compress import sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")

TRY = """
import ctypes, json, os, socket, subprocess, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import importlib.util
spec = importlib.util.spec_from_file_location("sandbox", sys.argv[1])
sandbox = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sandbox)
inside, outside, tcp, udp, withheld = sys.argv[2:]

class System:
    # the C library, whose calls fail as where the system withholds what they ask for
    def __init__(self, *given, **named):
        self.real = real(*given, **named)

    def __getattr__(self, name):
        return (lambda flags: -1) if name == "unshare" and "namespaces" in withheld else getattr(self.real, name)

    def syscall(self, number, *given):
        return -1 if number == 446 and "Landlock" in withheld else self.real.syscall(number, *given)

real, ctypes.CDLL = ctypes.CDLL, System
locks = sandbox.enter(inside)

def works(what):
    try:
        what()
    except OSError:
        return False
    return True

def write(path):
    with open(path, "w") as file:
        file.write("x")

found = {
    "inside": works(lambda: write(inside + "/new")),
    "renamed": works(lambda: os.rename(inside + "/new", inside + "/other")),
    "device": works(lambda: write("/dev/null")),
    "outside": works(lambda: write(outside + "/new")),
    "truncated": works(lambda: os.truncate(outside + "/old", 0)),
    "removed": works(lambda: os.remove(outside + "/old")),
    "read": open(outside + "/old").read() if os.path.exists(outside + "/old") else "",
    "connected": works(lambda: socket.create_connection(("127.0.0.1", int(tcp)), timeout=5)),
    "sent": works(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(udp)))),
    "by_a_child": subprocess.run(["touch", outside + "/child"], capture_output=True).returncode == 0,
}
print(json.dumps({"locks": locks, **found}))
"""


def landlock_version() -> int:
    """What the kernel itself says (landlock(7)); below 1 where it has none, or keeps it off."""
    return ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else 0


def granted(withheld: str = "") -> dict[str, bool]:
    """The locks that this system has for a process, asked without our code; less what is `withheld`."""
    ask = "import ctypes, sys; c = ctypes.CDLL(None); sys.exit(bool(c.unshare(0x40000000) and c.unshare(0x50000000)))"
    asked = sys.platform == "linux" and "namespaces" not in withheld
    alone = asked and subprocess.run([sys.executable, "-c", ask]).returncode == 0
    version = 0 if "Landlock" in withheld else landlock_version()
    return {"network": alone, "tcp": alone or version >= 4, "files": version >= 1}


@pytest.mark.parametrize("withheld", ["", "namespaces", "namespaces and Landlock"])
def test_a_locked_up_process_writes_to_its_folder_only_and_reaches_no_network(tmp_path, withheld):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    (outside / "old").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in (server, receiver)]
        command = [sys.executable, "-c", TRY, sandbox.__file__, str(inside), str(outside), *ports, withheld]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        arrived = bool(select.select([receiver], [], [], 0)[0])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    locks = found["locks"]
    assert locks == granted(withheld), "all that the system has, and no more"
    assert found["inside"] and found["renamed"] and found["device"]
    # Where a lock is said to hold, it holds; where it is not, the same is done without trouble.
    assert found["connected"] is not locks["tcp"]
    assert arrived is found["sent"] is not locks["network"]
    for what in ("outside", "removed", "by_a_child"):
        assert found[what] is not locks["files"], what
    whole = locks["files"] and landlock_version() >= 3
    assert found["truncated"] is not whole
    if whole:
        assert found["read"] == "as it was" and Path(outside, "old").read_text() == "as it was"


def test_nothing_is_claimed_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert sandbox.enter(str(tmp_path)) == {"network": False, "tcp": False, "files": False}
