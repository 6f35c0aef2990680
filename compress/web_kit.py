"""The web kit: the few files of ONNX Runtime Web that a page, or a Node script, loads. Made once by `build`."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from compress import kit_folder
from compress.errors import CompressError
from compress.store import Store

# package → version, and the digest of its archive in the npm registry, which is checked here whatever npm thinks of it
PACKAGES = {
    "onnxruntime-web": (
        "1.30.0", "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
    ),
    "onnxruntime-common": (
        "1.30.0", "7fdVWjAID1dVhH/G8qK3APARunV4VkBFoCQAP7qp4Wkab0mrorvmc+sqiT+mKXOzDqdjN5j+/Z9nb4gzNPWcyA=="
    ),
}  # fmt: skip
# Of the 139 MB of the package what runs on a CPU: the builds for GPUs, older loaders and debugging are left out.
KEPT = (
    "package.json",
    "dist/ort.wasm.min.mjs",
    "dist/ort.node.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "dist/esm/",
)
TIMEOUT_S = 600.0


def default_folder() -> Path:
    """Where the kit is looked for: `$COMPRESS_WEB_KIT`, or a folder of the store."""
    named = os.environ.get("COMPRESS_WEB_KIT", "")
    return Path(named) if named else Store.default().root / "kit-web"


def package_folder(kit: Path, name: str = "onnxruntime-web") -> Path:
    """Where a package lies in the kit; Node finds `onnxruntime-common` from there."""
    return kit / "node_modules" / name


def version(kit: Path) -> str:
    """The version of ONNX Runtime Web in the kit, "" where there is none."""
    path = package_folder(kit) / "package.json"
    return json.loads(path.read_text())["version"] if path.is_file() else ""


def build(folder: Path, *, tell: Callable[[str], None] = print) -> None:
    """Makes the kit `folder`, complete or not at all: 14 MB, by way of 40 MB that npm fetches. Raises CompressError."""
    npm = shutil.which("npm")
    if npm is None:
        raise CompressError(
            "npm is not on the PATH; it fetches ONNX Runtime Web", code="E-NPM", hint="install Node.js 18 or newer"
        )
    with kit_folder.made(folder) as (kit, work):
        for name, (number, digest) in PACKAGES.items():
            tell(f"{name} {number}")
            _unpack(_fetch(npm, f"{name}@{number}", digest, work), package_folder(kit, name))


def _fetch(npm: str, package: str, digest: str, work: Path) -> Path:
    """The package's archive, with the digest that is written down above. `npm pack` runs no script of the package."""
    place = work / package.partition("@")[0]
    place.mkdir()
    command = [npm, "pack", package, "--silent", "--ignore-scripts", "--pack-destination", str(place)]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"npm did not fetch {package} within {TIMEOUT_S:g} s", code="E-NPM") from error
    archives = sorted(place.iterdir())
    if done.returncode or len(archives) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise CompressError(
            f"npm could not fetch {package}: {lines[-1][:300]}", code="E-NPM", hint="is the npm registry in reach?"
        )
    found = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if found != digest:
        raise CompressError(f"{package} is not the archive that was tested: its SHA-512 is {found}", code="E-NPM")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """The kept files of an npm archive, in which all lie below `package/`."""
    folder.mkdir(parents=True)
    with tarfile.open(archive) as content:
        for member in content.getmembers():
            name = member.name.removeprefix("package/")
            if member.isfile() and name.startswith(KEPT) and not name.endswith(".map"):
                member.name = name
                content.extract(member, folder, filter="data")
