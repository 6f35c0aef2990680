"""Locks the process that calls `enter` up: no network, no writing outside of one folder. Linux; the standard library.

Converters are big native programs that read files from anywhere; some of them fetch packages, report their use to their
maker, or write over their input. What the kernel refuses them needs no trust. Landlock (Linux 5.13 and later;
landlock(7)) needs no privileges; an empty network namespace (unshare(2)) needs those of a user namespace, which some
systems withhold. Without it Landlock (4, Linux 6.7 and later) refuses TCP alone: UDP, and with it DNS, stays open.
"""

import ctypes
import os
import sys

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# the same numbers on every architecture that Linux has added Landlock to
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
# every right that changes files: writing, removing, making, linking, truncating; by the version that brought it
_WRITE_FILE = 1 << 1
_WRITES = {1: sum(1 << bit for bit in (1, *range(4, 13))), 2: 1 << 13, 3: 1 << 14}
_ANY_TCP = 0b11  # bind and connect, since version 4


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def enter(folder: str) -> dict[str, bool]:
    """Which locks hold from now on, for this process and all that it starts: `network` (there is none), `tcp` (none of
    that, whatever else is open), and `files` (writing only below `folder` and to devices; before Landlock 3, Linux 6.2,
    truncate(2) is not refused). Call it before any thread is started. No lock can be taken off again.
    """
    if sys.platform != "linux":
        return {"network": False, "tcp": False, "files": False}
    libc = ctypes.CDLL(None, use_errno=True)
    alone = libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    version = libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    files = version >= 1 and _landlock(libc, folder, version)
    return {"network": alone, "tcp": alone or (files and version >= 4), "files": files}


def _landlock(libc: ctypes.CDLL, folder: str, version: int) -> bool:
    rights = sum(bits for since, bits in _WRITES.items() if since <= version)
    attributes = _Ruleset(rights, _ANY_TCP if version >= 4 else 0)
    size = ctypes.sizeof(attributes) if version >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if rules < 0:
        return False
    try:
        allowed = {folder: rights, "/dev": _WRITE_FILE}
        done = all(_allow(libc, rules, path, bits) for path, bits in allowed.items())
        return (
            done and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT_SELF, rules, 0) == 0
        )
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> bool:
    descriptor = os.open(path, os.O_PATH)
    try:
        beneath = _Beneath(rights, descriptor)
        return libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(beneath), 0) == 0
    finally:
        os.close(descriptor)
