"""What a locked-up process can still do. The kernel's own refusals are what is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress import sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")

TRY = """
import json, os, socket, subprocess, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import importlib.util
spec = importlib.util.spec_from_file_location("sandbox", sys.argv[1])
sandbox = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sandbox)
inside, outside = sys.argv[2:4]
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
    "connected": works(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[4])), timeout=5)),
    "by_a_child": subprocess.run(["touch", outside + "/child"], capture_output=True).returncode == 0,
}
print(json.dumps({"locks": locks, **found}))
"""


def test_a_locked_up_process_writes_to_its_folder_only_and_reaches_no_network(tmp_path):
    import socket

    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    (outside / "old").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, "-c", TRY, sandbox.__file__, str(inside), str(outside), port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    locks = found["locks"]
    assert found["inside"] and found["renamed"] and found["device"]
    # Where a lock is said to hold, it holds; where the system has none, that is said.
    assert found["connected"] is not locks["network"]
    for what in ("outside", "truncated", "removed", "by_a_child"):
        assert found[what] is not locks["files"], what
    if locks["files"]:
        assert found["read"] == "as it was" and Path(outside, "old").read_text() == "as it was"


def test_nothing_is_claimed_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert sandbox.enter(str(tmp_path)) == {"network": False, "files": False}
