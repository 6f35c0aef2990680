"""What the machine is read to be, on invented system files and on this machine."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from compress import environment


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_version_2_is_the_tightest_of_all_levels(tmp_path):
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    write(membership, "0::/pod/box\n")
    write(root / "pod/box/cpu.max", "max 100000\n")
    write(root / "pod/cpu.max", "150000 100000\n")
    write(root / "cpu.max", "400000 100000\n")
    assert environment.cpu_quota(root, membership) == 1.5


def test_quota_of_version_1(tmp_path):
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    write(membership, "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n")
    write(root / "cpu,cpuacct/box/cpu.cfs_quota_us", "50000\n")
    write(root / "cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    write(root / "memory/box/cpu.cfs_quota_us", "1\n")
    write(root / "memory/box/cpu.cfs_period_us", "100000\n")
    assert environment.cpu_quota(root, membership) == 0.5


@pytest.mark.parametrize("text", ["max 100000", "", "garbage", "100000 0"])
def test_no_quota(tmp_path, text):
    write(tmp_path / "membership", "0::/\n")
    write(tmp_path / "cgroup/cpu.max", text)
    assert environment.cpu_quota(tmp_path / "cgroup", tmp_path / "membership") == 0.0


def test_no_control_groups_at_all(tmp_path):
    assert environment.cpu_quota(tmp_path / "absent", tmp_path / "absent") == 0.0
    assert environment.throttled_periods(tmp_path / "absent", tmp_path / "absent") == 0


def test_throttled_periods(tmp_path):
    write(tmp_path / "membership", "0::/box\n")
    write(tmp_path / "cgroup/box/cpu.stat", "usage_usec 5\nnr_periods 10\nnr_throttled 7\nthrottled_usec 3\n")
    assert environment.throttled_periods(tmp_path / "cgroup", tmp_path / "membership") == 7


SUPPLIES = {
    "mains": {"type": "Mains\n", "online": "1\n"},
    "unplugged": {"type": "Mains\n", "online": "0\n"},
    "emptying": {"type": "Battery\n", "status": "Discharging\n"},
    "full": {"type": "Battery\n", "status": "Full\n"},
    "mouse": {"type": "Battery\n", "scope": "Device\n", "status": "Discharging\n"},
}


@pytest.mark.parametrize(("names", "expected"), [
    ("", None), ("mouse", None), ("mains", False), ("mains mouse", False), ("full", False), ("mains emptying", False),
    ("unplugged emptying", True), ("emptying", True), ("full emptying", True), ("unplugged full", False),
])  # fmt: skip
def test_on_battery(tmp_path, names, expected):
    for name in names.split():
        for file, text in SUPPLIES[name].items():
            write(tmp_path / name / file, text)
    assert environment.on_battery(tmp_path) is expected
    assert environment.on_battery(tmp_path / "absent") is None


@pytest.mark.parametrize(("text", "expected"), [
    ("processor : 0\nflags\t\t: fpu vme hypervisor avx2\n", True), ("flags\t\t: fpu vme avx2\n", False),
    ("Features\t: fp asimd\n", None), ("", None),
])  # fmt: skip
def test_a_virtual_machine_is_known_by_its_processors_flag(tmp_path, text, expected):
    write(tmp_path / "cpuinfo", text)
    assert environment.virtual(tmp_path / "cpuinfo") is expected
    assert environment.capture().virtual is environment.virtual()


@pytest.mark.parametrize(
    ("quota", "affinity", "allowed"), [(0.0, 8, 8), (1.5, 8, 2), (0.5, 8, 1), (16.0, 4, 4), (0.0, 1, 1)]
)
def test_allowed_threads(monkeypatch, quota, affinity, allowed):
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert environment.allowed_threads() == allowed


def test_cpu_of_x86_and_arm(tmp_path):
    write(
        tmp_path / "x86",
        "processor\t: 0\nmodel name\t: Imaginary 9\nflags\t\t: fpu avx2 avx512_vnni sse\n\nflags: no\n",
    )
    assert environment.cpu(tmp_path / "x86") == ("Imaginary 9", ("avx2", "avx512_vnni"))
    write(tmp_path / "arm", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm crc32\nHardware : Board 3\n")
    assert environment.cpu(tmp_path / "arm") == ("Board 3", ("asimd", "asimddp", "i8mm"))


def test_capture_is_complete_and_serialisable():
    captured = environment.capture()
    json.dumps(dataclasses.asdict(captured), allow_nan=False)
    assert captured.cpu_model and captured.system and captured.memory_bytes > 1 << 28
    assert captured.cores_allowed == environment.allowed_threads() >= 1
    assert "numpy" in captured.packages
    assert os.uname().nodename not in captured.system.split()


def test_fingerprint_depends_on_what_decides_speed_only():
    captured = environment.capture()
    digest = environment.fingerprint(captured)
    assert len(digest) == 12 and digest == environment.fingerprint(dataclasses.replace(captured, commit="other"))
    assert digest != environment.fingerprint(dataclasses.replace(captured, isa=("neon",)))
    changed = {**captured.packages, "onnxruntime": "0.0.1"}
    assert digest != environment.fingerprint(dataclasses.replace(captured, packages=changed))


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_commit_of_a_checkout_and_of_an_installed_package(tmp_path):
    assert environment.tool_commit(tmp_path) == ""
    git(tmp_path, "init")
    assert environment.tool_commit(tmp_path) == ""
    write(tmp_path / "file", "one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = environment.tool_commit(tmp_path)
    assert len(clean) == 40
    write(tmp_path / "file", "two")
    assert environment.tool_commit(tmp_path) == f"{clean}-dirty"


def test_importing_the_measuring_side_imports_no_runtime():
    code = (
        "import sys, compress.bench, compress.environment, compress.stats, compress.worker\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
