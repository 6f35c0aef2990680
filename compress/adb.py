"""Android's `adb`, called with lists of words and limits on time and on what it may say: `adb:SERIAL` names a phone."""

import os
import re
import selectors
import shlex
import subprocess
import time
from collections.abc import Sequence

from compress.child import ChildFailed
from compress.errors import Unmeasurable, UsageError

SCHEME = "adb:"
ADB_VARIABLE = "COMPRESS_ADB"  # the command instead of `adb`
LIST_S = 30.0
MOST_SAID_BYTES = 16 << 20
# nothing that adb would take for an option; a phone on the network is HOST:PORT
_SERIAL = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
# what the phone's shell takes for a letter like any other, and for a list or range of shapes of ours
_PLAIN = r"[A-Za-z0-9_@%+=:,./\[\]-]+"
# state, as `adb devices` says it → what to do
_STATES = {
    "unauthorized": "unlock it, and accept the key of this machine that it shows",
    "authorizing": "it is about to: try again in a second",
    "offline": "plug it in again, or: adb reconnect",
    "no": "this user may not use that USB device: install your system's udev rules for Android (android-sdk-platform-"
    "tools-common on Debian), and plug it in again",
}


def is_address(text: str) -> bool:
    """Whether `--on` names a phone by it."""
    return text.startswith(SCHEME)


def serial_of(text: str) -> str:
    """`adb:SERIAL`, or `adb:HOST:PORT`; "" of `adb:`, which means the only one. Raises UsageError."""
    serial = text.removeprefix(SCHEME)
    if not is_address(text) or not re.fullmatch(rf"(?:{_SERIAL})?", serial, re.ASCII):
        raise UsageError(
            f"--on takes adb:SERIAL with letters, digits and . _ : - in it, got `{text}`",
            code="E-ADDRESS",
            hint="`adb devices` lists the serials; of a phone on the network it is HOST:PORT",
        )
    return serial


def quoted(words: Sequence[str]) -> str:
    """The words as one command of the phone's shell, each of them one word to it. ValueError for a word with another
    character than letters, digits and `_@%+=:,./[]-`: every word that is sent is ours.
    """
    for word in words:
        if not re.fullmatch(_PLAIN, word, re.ASCII):
            raise ValueError(f"no word for a phone's shell: {word!r}")
    return shlex.join(words)


def readable(text: str) -> str:
    """What a phone or a tool on it said, on one line that a terminal and a report can take."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)  # colours
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def run(words: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """(exit status, output with errors) of `adb` with these words. Raises Unmeasurable where there is no adb, and
    ChildFailed when it takes longer or says more than it may.
    """
    command = [*shlex.split(os.environ.get(ADB_VARIABLE, "adb")), *words]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
            start_new_session=True,  # so that Ctrl-C leaves it the time to clean up there
        )  # fmt: skip
    except OSError as error:
        hint = f"install Android's platform-tools (Debian: apt install adb), or name the program in ${ADB_VARIABLE}"
        raise Unmeasurable(
            f"cannot run `{command[0]}` on this machine: {error.strerror}", code="E-PHONE", hint=hint
        ) from error
    with child:
        try:
            said = _all_of(child, time.monotonic() + timeout_s)
            return child.wait(5), said
        except subprocess.TimeoutExpired:
            raise ChildFailed("adb does not end", how="lost") from None
        finally:
            # only itself: its server goes on, which may be others' too
            child.kill()


def _all_of(child: subprocess.Popen, end: float) -> str:
    assert child.stdout
    parts: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, end - time.monotonic())):
                raise ChildFailed("no answer in time over adb", how="lost")
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                return b"".join(parts).decode(errors="replace").replace("\r\n", "\n")
            parts.append(data)
            size += len(data)
            if size > MOST_SAID_BYTES:
                raise ChildFailed(f"it says more than {MOST_SAID_BYTES >> 20} MB", how="rubbish")


def choose(serial: str) -> str:
    """The serial of the phone that is meant, one that can be used now. Raises Unmeasurable: none is there, it is in
    another state, or several are there and none is named.
    """
    try:
        status, said = run(["devices"], LIST_S)
    except ChildFailed as failure:
        raise Unmeasurable(f"`adb devices`: {failure}", code="E-PHONE", hint="try: adb kill-server") from failure
    if status:
        raise Unmeasurable(
            f"`adb devices` ended with {status}: {readable(said)}", code="E-PHONE", hint="try: adb kill-server"
        )
    found = dict(re.findall(rf"^({_SERIAL})[\t ]+(\w+)", said.partition("List of devices attached")[2], re.MULTILINE))
    if not serial and len(found) > 1:
        raise Unmeasurable(
            f"{len(found)} phones are attached: {', '.join(found)}",
            code="E-PHONE",
            hint=f"name one: --on {SCHEME}SERIAL",
        )
    if not found or serial and serial not in found:
        network = f"; first: adb connect {serial}" if ":" in serial else ""
        raise Unmeasurable(
            f"adb sees no phone {serial}".rstrip() + (f", but {', '.join(found)}" if found else ""),
            code="E-PHONE",
            hint=f"switch on USB debugging in its developer options, and plug it in{network}",
        )
    serial = serial or next(iter(found))
    if found[serial] != "device":
        state = "no permissions" if found[serial] == "no" else found[serial]
        hint = _STATES.get(found[serial], "start it as usual, into Android")
        raise Unmeasurable(f"the phone {serial} cannot be used: adb calls it `{state}`", code="E-PHONE", hint=hint)
    return serial
