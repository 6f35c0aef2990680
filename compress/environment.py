"""What machine and which versions a number belongs to: read from the system, importing no runtime.

Host and user names are left out on purpose: a report is meant to be shared.
"""

import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from compress.types import Environment

# The instruction sets that decide which float and int8 kernels run.
ISA_FLAGS = frozenset(
    "avx2 avx512f avx512_vnni avx_vnni amx_int8 amx_bf16 avx512_bf16 neon asimd asimddp i8mm bf16".split()
)
PACKAGES = (
    "numpy Pillow torch torchvision onnx onnxscript onnxruntime onnxruntime-gpu torch-pruning safetensors scikit-learn "
    "timm openvino ncnn pnnx MNN ai-edge-litert litert-torch executorch"
).split()
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")


# (package, first good version, what is wrong before it); the advisories are CVE-2026-24747 and CVE-2026-27489
_FLOORS = (
    ("torch", "2.10", "can be made to corrupt memory by a hostile checkpoint, even with weights_only"),
    ("onnx", "1.21", "follows links out of a model's folder"),
)


def capture() -> Environment:
    """This machine, as every report states it: what it allows now, and what stays while this process lives."""
    return replace(_what_stays(), cores_allowed=allowed_threads(), cpu_quota=cpu_quota())


@functools.cache
def _what_stays() -> Environment:
    """Runs `git`, and `nvidia-smi`, which may take a second: once, when first asked."""
    cpu_model, isa = cpu()
    return Environment(
        cpu_model=cpu_model,
        isa=isa,
        cores_allowed=0,
        cpu_quota=0.0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=_output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").replace("\n", "; "),
        system=f"{platform.system()} {platform.release()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        python=platform.python_version(),
        packages=package_versions(),
        commit=tool_commit(),
        virtual=virtual(),
    )


def versions(*packages: str) -> dict[str, str]:
    """Those of the packages that are installed: ONNX Runtime has two distributions, of which one is there."""
    have = package_versions()
    return {name: have[name] for name in packages if name in have}


def fingerprint(environment: Environment) -> str:
    """Twelve hex digits over what decides speed and int8 answers: CPU, instruction sets, cores, runtime versions."""
    versions = {k: v for k, v in environment.packages.items() if k in ("torch", "onnxruntime", "onnxruntime-gpu")}
    facts = [environment.cpu_model, sorted(environment.isa), environment.cores_allowed, environment.gpu, versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def int8_saturates(environment: Environment) -> bool:
    """Whether sums of two products of uint8 activations and int8 weights are clipped to 16 bits on this CPU: x86's
    `vpmaddubsw`, which ONNX Runtime uses without VNNI.
    """
    vnni = {"avx512_vnni", "avx_vnni", "amx_int8"}
    return "avx2" in environment.isa and not vnni & set(environment.isa)


def allowed_threads() -> int:
    """Threads that this process may keep busy: its CPU affinity, capped by the control group's quota; at least 1."""
    # macOS has no affinity call.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def cpu_quota(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float:
    """Cores granted by the tightest control group (version 1 or 2) that holds this process; 0 when unlimited."""
    quotas = []
    for group in _cpu_groups(root, membership):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=0.0)


def throttled_periods(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> int:
    """How often a quota has stopped this process so far: of its nested control groups, that which was stopped most.
    Compare before and after a visit.
    """
    most = 0
    for group in _cpu_groups(root, membership):
        for line in _read(group / "cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            most = max(most, int(value) if name == "nr_throttled" else 0)
    return most


def governor(path: Path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) -> str:
    """How the first processor's clock is governed, `performance` or `powersave` say; "" where the system does not tell:
    in most virtual machines.
    """
    return _read(path).strip()


def on_battery(supplies: Path = Path("/sys/class/power_supply")) -> bool | None:
    """Whether this machine runs from its battery; None where it shows neither a battery nor the mains."""
    plugged, discharging = [], []
    for supply in supplies.glob("*"):
        kind = _read(supply / "type")
        if kind == "Mains":
            plugged.append(_read(supply / "online") == "1")
        elif kind == "Battery" and _read(supply / "scope") != "Device":  # a mouse has one too
            discharging.append(_read(supply / "status") == "Discharging")
    return any(discharging) and not any(plugged) if plugged or discharging else None


def virtual(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether this is a virtual machine, by x86's flag `hypervisor`; None where processors have no such flag."""
    flags = re.search(r"^flags\s*:(.*)", _read(cpuinfo), re.MULTILINE)
    return "hypervisor" in flags[1].split() if flags else None


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """(model name, instruction sets of interest, sorted) of the first processor."""
    fields: dict[str, str] = {}
    for line in _read(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = set(fields.get("flags", fields.get("features", "")).split())
    model = fields.get("model name") or fields.get("hardware") or platform.processor() or platform.machine()
    return model, tuple(sorted(flags & ISA_FLAGS))


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that matter, by distribution name; an absent package has no key."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def known_bad(packages: dict[str, str]) -> list[str]:
    """A sentence, with the way out, for each installed version that is known to be unsafe or broken."""
    found = []
    for name, floor, why in _FLOORS:
        have = packages.get(name)
        if have and _release(have) < _release(floor):
            found.append(f"{name} {have} {why}: pip install '{name}>={floor}'")
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        found.append("onnxruntime and onnxruntime-gpu share a folder and break each other: uninstall both, install one")
    return found


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def cpu_ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int]:
    """(ticks that the hypervisor gave to others while this machine wanted to run, all ticks) so far, of all cores."""
    fields = _read(stat).partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return 0, 0
    # user and nice hold the guests' time already
    ticks = [int(field) for field in fields[1:9]]
    return ticks[7], sum(ticks)


def load_average() -> float:
    """Processes that were runnable over the last minute: near 0 on a machine fit for measuring."""
    return os.getloadavg()[0]


def _cpu_groups(root: Path, membership: Path) -> list[Path]:
    """Folders of the control groups that may limit this process's CPU time, from the innermost to the root."""
    groups: dict[Path, None] = {}
    for line in _read(membership).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root / controllers, root / "cpu"] if controllers else [root]
        for mount in mounts:
            inner = mount / name.strip("/")
            groups |= dict.fromkeys([inner, *(p for p in inner.parents if p.is_relative_to(mount))])
    return list(groups)


def _read(path: Path) -> str:
    """The file's text, or nothing when this system does not have the file."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """A helper's standard output, or nothing when it is not installed, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def tool_commit(checkout: Path = Path(__file__).parent.parent) -> str:
    """The commit of a checkout, with `-dirty` when files differ from it; nothing for an installed package."""
    if not (checkout / ".git").exists():
        return ""
    commit = _output("git", "-C", str(checkout), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(checkout), "status", "--porcelain")
    return f"{commit}-dirty" if commit and changed else commit
