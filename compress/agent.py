"""The far side of `remote.py`: started there by ssh, it is sent as text and needs nothing but Python.

    python -c 'import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))'

Lines of JSON on standard input tell it what to do, each is answered by lines on standard output: `put` a file (its
bytes follow the line), `get` one, `run` a function of a module that was put. All that it writes lies in one new folder.
When standard input ends, because the near side is done or the connection is cut, what it started is killed and the
folder removed, even in the middle of a visit.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

READY = "compress-agent"
LEAST_PYTHON = (3, 11)
# in a spec: names of files that were put, or will be read back
FILE_KEYS = ("adapter", "model", "images", "logits")


def say(**what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def children():
    """Processes that this one started, all of them heads of sessions of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(folder.name))
    return found


ENDING = threading.Lock()


def end(folder):
    ENDING.acquire()  # never given back: whoever comes second waits for the end
    for pid in children():
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            continue
    for _ in range(200):
        # what was killed, and the other thread here, may still write a file into a folder that is being emptied
        shutil.rmtree(str(folder), ignore_errors=True)
        if not os.path.lexists(str(folder)):
            break
        time.sleep(0.05)
    os._exit(0)


def listen(folder, requests):
    """Reads requests, and the bytes that follow them, until there are no more: then all is over."""
    stream = sys.stdin.buffer
    while True:
        line = stream.readline()
        if not line.endswith(b"\n"):
            end(folder)
        request = json.loads(line)
        content = stream.read(request["size"]) if request["do"] == "put" else b""
        if request["do"] == "put" and len(content) < request["size"]:
            end(folder)
        requests.put((request, content))


def put(folder, request, content):
    path = folder / request["name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    say(done=True)


def get(folder, request):
    content = (folder / request["name"]).read_bytes()
    say(size=len(content))
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def run(folder, request):
    """Calls `visit` or `run_child` of child.py, or `capture` of environment.py; these were put before."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from dataclasses import asdict

    from compress import child, environment

    if request["call"] == "capture":
        return say(result=asdict(environment.capture()))
    spec = {k: str(folder / v) if k in FILE_KEYS else v for k, v in request["spec"].items()}
    options = {}
    if request["progress"]:
        options["on_progress"] = lambda done: say(progress=done)
    try:
        return say(result=getattr(child, request["call"])(spec, folder, request["timeout_s"], (), **options))
    except child.ChildFailed as failure:
        reason = str(failure).replace(str(folder) + "/", "")
        return say(failed=reason, stage=failure.stage, kind=failure.kind, how=failure.how)


def main():
    if sys.version_info < LEAST_PYTHON:
        version = sys.version.split()[0]
        say(ready=READY, refused="its Python is %s; %d.%d or newer is needed" % (version, *LEAST_PYTHON))  # noqa: UP031
        return
    folder = Path(tempfile.mkdtemp(prefix="compress-")).resolve()
    requests = queue.Queue()
    say(ready=READY, refused="")
    threading.Thread(target=listen, args=(folder, requests), daemon=True).start()
    try:
        while True:
            request, content = requests.get()
            if request["do"] == "put":
                put(folder, request, content)
            elif request["do"] == "get":
                get(folder, request)
            else:
                run(folder, request)
    finally:  # the other end is gone, or a bug of ours, whose traceback ssh brings home
        # to a connection that is cut even that cannot be written, and an exit here would stop the other thread's work
        with contextlib.suppress(OSError):
            traceback.print_exc()
        end(folder)


if __name__ == "__main__":
    main()
