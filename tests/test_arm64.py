"""The ARM kit: all that can be checked without one."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from compress import arm64, debian
from compress.errors import CompressError

DEB822 = """\
# the machine's own
Types: deb deb-src
URIs: http://mirror.test/debian http://second.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.test/debian
Suites: bookworm
Components: main
\x20
Types: deb
URIs: http://vendor.test/apt
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_line_sources():
    text = """
# deb http://commented.test/debian bookworm main
deb-src http://source.test/debian bookworm main
deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://mirror.test/debian trixie main contrib # why
deb http://short.test/debian ./
"""
    (found,) = debian.parse_list(text)
    assert found == ("http://mirror.test/debian", ("trixie",), ("main", "contrib"), "/k/debian-archive-keyring.gpg")


def test_deb822_sources():
    found = debian.parse_deb822(DEB822)
    assert [s.uri.partition(".")[0] for s in found] == ["http://mirror", "http://second", "http://vendor"]
    assert found[0].suites == ("bookworm", "bookworm-updates")
    assert found[0].components == ("main", "contrib")


def test_sources_are_read_from_all_files(tmp_path):
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.test/debian bookworm main\n")
    (parts / "b.sources").write_text(DEB822)
    (parts / "c.sources.disabled").write_text(DEB822)
    (parts / "d.list").write_text("deb http://d.test/x noble main\n")
    assert [s.uri for s in debian.sources(tmp_path)][::3] == ["http://a.test/debian", "http://vendor.test/apt"]
    assert len(debian.sources(tmp_path)) == 5


def test_the_main_archive_wins_over_updates_and_vendors():
    found = [
        debian.Source("http://vendor.test/", ("stable",), ("main",), ""),
        debian.Source("http://security.test/", ("bookworm-security",), ("main",), "/k/debian-archive-keyring.gpg"),
        debian.Source("http://addons.test/", ("trixie",), ("extra",), ""),
        debian.Source("http://right.test/", ("trixie",), ("main",), ""),
    ]
    assert debian.mirror(found) == "http://right.test/"
    by_alias = debian.Source("http://alias.test/", ("stable",), ("main",), "/k/debian-archive-keyring.gpg")
    assert debian.mirror([found[0], by_alias]) == "http://alias.test/"


def test_no_mirror_of_debian_names_what_there_is():
    with pytest.raises(CompressError, match="http://ubuntu.test/ noble") as caught:
        debian.mirror([debian.Source("http://ubuntu.test/", ("noble",), ("main",), "")])
    assert "debian-archive-keyring" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("E: Failed to fetch x  Temporary failure resolving 'y'", "network"),
        ("E: write (28: No space left on device)", "disk space"),
        ("W: GPG error: x InRelease: NO_PUBKEY 1\nE: The repository 'x' is not signed.", "debian-archive-keyring"),
        ("ERROR: No matching distribution found for mnn==0", "aarch64 wheel"),
        ("python: No module named pip", "ensurepip"),
    ],
)
def test_a_failed_step_says_what_to_do(tmp_path, said, hint):
    with pytest.raises(CompressError) as caught:
        debian.step("fetching", ["sh", "-c", 'echo "$0" >&2; exit 100', said], tmp_path)
    assert str(caught.value).startswith("fetching: ") and said.splitlines()[-1] in str(caught.value)
    assert hint in caught.value.hint


def test_a_missing_apt_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match="no `apt-get` here"):
        debian.fetch(["a"], "bookworm", "arm64", "http://mirror.test/", tmp_path / "work", closure=True)


def test_the_machines_logins_stay_and_its_sources_do_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(debian, "step", lambda what, command, folder: asked.append(command))
    debian.fetch(["a"], "trixie", "amd64", "http://mirror.test/debian", tmp_path / "w", closure=False)
    written = (tmp_path / "w/apt.conf").read_text()
    assert "sourceparts" in written and "netrc" not in written and "Proxy" not in written
    assert "http://mirror.test/debian trixie main" in (tmp_path / "w/sources.list").read_text()
    assert [command[-2:] for command in asked] == [[str(tmp_path / "w/apt.conf"), "update"], ["download", "a"]]


def test_whatever_a_step_started_is_gone(tmp_path):
    started = time.monotonic()
    log = tmp_path / "log.txt"
    status = debian.supervise(["sh", "-c", "sleep 100 & echo $!; sleep 100"], tmp_path, {**os.environ}, 0.5, log)
    assert status is None and time.monotonic() - started < 10
    time.sleep(0.1)
    assert not alive(int(log.read_text()))


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")
def test_one_file_of_a_package(tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n")
    (tree / "usr/bin/tool").write_bytes(b"tool")
    deb = tmp_path / "a.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    debian.unpack_one(deb, "usr/bin/tool", tmp_path / "tool")
    assert (tmp_path / "tool").read_bytes() == b"tool" and os.access(tmp_path / "tool", os.X_OK)
    with pytest.raises(CompressError, match="a.deb does not hold usr/bin/other"):
        debian.unpack_one(deb, "usr/bin/other", tmp_path / "other")


@pytest.mark.parametrize(
    ("system", "machine", "said"),
    [("Linux", "aarch64", "is aarch64"), ("Darwin", "arm64", "Darwin arm64"), ("Windows", "AMD64", "Windows AMD64")],
)
def test_other_machines_are_told_why_not(tmp_path, monkeypatch, system, machine, said):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(CompressError, match=said):
        arm64.build(tmp_path / "kit", {})


@pytest.fixture
def on_x86(monkeypatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("on_x86")
def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(CompressError, match="exists already"):
        arm64.build(tmp_path, {})
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.usefixtures("on_x86")
def test_too_little_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5_000_000))
    with pytest.raises(CompressError, match="5 MB left; the kit needs 800 MB"):
        arm64.build(tmp_path / "kit", {})


@pytest.mark.usefixtures("on_x86")
@pytest.mark.parametrize("error", [CompressError("no network"), OSError(28, "No space left on device")])
def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch, error):
    def fetch(*arguments, **named):
        raise error

    monkeypatch.setattr(debian, "fetch", fetch)
    with pytest.raises(CompressError, match="no network|No space left") as caught:
        arm64.build(tmp_path / "kit", {}, mirror="http://mirror.test/", tell=lambda text: None)
    assert not os.listdir(tmp_path)
    assert "disk space" in caught.value.hint or isinstance(error, CompressError)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is not an ARM kit"), ("{", "is not JSON"), ('{"format": 0}', "another version"), ("[]", "another")],
)
def test_what_is_no_kit(tmp_path, content, said):
    if content is not None:
        (tmp_path / arm64.MANIFEST).write_text(content)
    with pytest.raises(CompressError, match=said) as caught:
        arm64.manifest(tmp_path)
    assert "compress kit arm64" in caught.value.hint


def test_the_kit_learns_no_secret_and_none_of_the_hosts_paths(monkeypatch):
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH", "SOME_TOKEN"):
        monkeypatch.setenv(name, "/host")
    told = arm64.environment(Path("kit"), threads=2)
    assert "SOME_TOKEN" not in told and "LD_LIBRARY_PATH" not in told
    assert told["PYTHONPATH"] == str(Path("kit/site").absolute()) and told["OMP_NUM_THREADS"] == "2"
