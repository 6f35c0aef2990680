"""ONNX Runtime Web, driven from Python: a server on the loopback address hands a page, or a Node script, its work.

The other side is `web_client.mjs`. It asks for one input after another and brings each answer with its next request; it
takes the time itself, so the way between the processes is no part of a latency. Raised errors follow the contract of
`runtimes/__init__.py`: RuntimeError blames the runtime, ValueError the file.
"""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import unquote

import numpy as np

CLIENT = Path(__file__).with_name("web_client.mjs")
START_S, ANSWER_S = 60.0, 600.0
PAGE = b'<!doctype html><meta charset="utf-8"><title>measuring</title><script type="module" src="client.mjs"></script>'
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json", "": "text/html"}
_END = object()


class Session:
    """A model open in another program that runs JavaScript."""

    def __init__(self, model: Path, package: Path, threads: int, command: Callable[[str, Path], list[str]]):
        """`package` is the folder of onnxruntime-web; `command(url, home)` starts a program that runs the client at
        `url` and may write into `home`. Raises RuntimeError, also for another number of threads, or ValueError when
        the file is to blame.
        """
        self._tasks: SimpleQueue = SimpleQueue()
        self._answers: SimpleQueue = SimpleQueue()
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        home = Path(self._home.name)
        # Nothing else on this machine can guess the address.
        token = secrets.token_urlsafe(16)
        files = {"": PAGE, "client.mjs": CLIENT, "model.onnx": model}
        files |= {f"dist/{path.name}": path for path in (package / "dist").iterdir() if path.is_file()}
        files["settings.json"] = json.dumps({"threads": threads}).encode()
        handler = type("Handler", (_Handler,), {"root": f"/{token}/", "files": files, "session": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._log = home / "log.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command(f"http://127.0.0.1:{self._server.server_port}/{token}/", home),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent, cwd=home,
                # Chromium makes a socket there, whose path may have 108 characters.
                env={**os.environ, "TMPDIR": "."},
            )  # fmt: skip
        threading.Thread(target=self._notice_the_end, daemon=True).start()
        try:
            self.facts = self._answer(START_S)[0]
            if self.facts["threads"] != threads:
                raise RuntimeError(f"asked for {threads} threads, got {self.facts['threads']}")
        except BaseException:  # a program that gave no session is not left running
            self.close()
            raise

    def ask(self, inputs: np.ndarray) -> tuple[np.ndarray, int]:
        """(logits float32 `[B,K]`, ns that the inference took there) of inputs float32 `[B,C,H,W]`."""
        self._tasks.put((inputs.shape, np.ascontiguousarray(inputs, dtype="<f4").tobytes()))
        facts, body = self._answer(ANSWER_S)
        return np.frombuffer(body, dtype="<f4").reshape(facts["shape"]), int(facts["ms"] * 1e6)

    def effective(self) -> dict[str, Any]:
        """The settings in effect, as the program gave them back."""
        batch = self.facts["batch"]
        return {
            "host": self.facts["host"],
            "intra_op_threads": self.facts["threads"],
            "create_ms": round(self.facts["create_ms"], 3),
            "fixed_batch": batch if isinstance(batch, int) else 0,
        }

    def close(self) -> None:
        """Ends the program and the server."""
        self._tasks.put(_END)
        self.process.kill()
        self.process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    def _answer(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        try:
            answer = self._answers.get(timeout=seconds)
        except Empty as error:
            raise RuntimeError(f"no answer within {seconds:g} s{self._last_words()}") from error
        if answer is _END:
            raise RuntimeError(f"it ended with exit status {self.process.returncode}{self._last_words()}")
        if "error" in answer[0]:
            raise (ValueError if answer[0]["blame"] == "file" else RuntimeError)(answer[0]["error"])
        return answer

    def _notice_the_end(self) -> None:
        self.process.wait()
        self._answers.put(_END)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f" (last words: {lines[-1][:300]})" if lines else ""


class _Handler(BaseHTTPRequestHandler):
    """GET gives the files, POST takes an answer and gives the next input."""

    protocol_version = "HTTP/1.1"
    root: str
    files: dict[str, Any]
    session: Session

    def do_GET(self) -> None:
        name = self.path.removeprefix(self.root)
        if not self.path.startswith(self.root) or name not in self.files:
            self.send_error(404)
            return
        content = self.files[name]
        body = content if isinstance(content, bytes) else content.read_bytes()
        self._give(body, {"Content-Type": TYPES.get(Path(name).suffix, "application/octet-stream")})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != self.root + "next":
            self.send_error(404)
            return
        self.session._answers.put((json.loads(unquote(self.headers["X-Facts"])), body))
        task = self.session._tasks.get()
        if task is _END:
            self.send_error(410)
            return
        self._give(task[1], {"Content-Type": TYPES[".wasm"], "X-Shape": ",".join(map(str, task[0]))})

    def _give(self, body: bytes, headers: dict[str, str]) -> None:
        # The last two make SharedArrayBuffer, and so threads, available to the page.
        isolation = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
        self.send_response(200)
        for name, value in {**headers, **isolation, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent: what goes wrong is an answer's `error`."""


def _end_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
