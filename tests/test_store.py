"""The store: keys that see everything, steps that exist whole or not at all, writes that never lose the old bytes."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress import store as stores
from compress.errors import CompressError, InputRejected, UsageError
from compress.store import Store, digest, exclusive, file_digest, read_json, write_atomic, write_json

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(text: str, calls: list[str] | None = None):
    def make(folder: Path) -> dict:
        if calls is not None:
            calls.append(text)
        (folder / "out").write_text(text)
        return {"length": len(text)}

    return make


def run(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True)


def test_a_step_is_made_once(store: Store) -> None:
    calls: list[str] = []
    first = store.step("train", {"seed": 0}, write("abc", calls))
    again = store.step("train", {"seed": 0}, write("xyz", calls))
    assert calls == ["abc"] and (again.folder / "out").read_text() == "abc"
    assert (first.reused, again.reused) == (False, True) and first.facts == again.facts
    assert first.facts["length"] == 3 and first.facts["seconds"] >= 0
    record = read_json(first.folder / "manifest.json")
    assert record["parts"] == {"seed": 0} and record["files"] == {"out": 3} and record["key"] == first.key


BASE = {"version": 1, "seed": 0, "plan": {"epochs": 2, "rate": 0.1}, "methods": ["kd", "fitnet"]}


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "version": 2},
        {**BASE, "seed": 1},
        {**BASE, "seed": "0"},
        {**BASE, "plan": {"epochs": 2, "rate": 0.1000001}},
        {**BASE, "methods": ["fitnet", "kd"]},
        {**BASE, "more": None},
    ],
    ids=lambda p: str(p)[-30:],
)
def test_every_part_of_a_key_matters(other: dict, store: Store) -> None:
    first = store.step("train", BASE, write("a"))
    assert store.step("train", other, write("b")).key != first.key
    assert store.step("prune", BASE, write("c")).key != first.key
    assert store.step("train", dict(reversed(BASE.items())), write("d")).reused


def test_digest_is_that_of_canonical_json() -> None:
    import hashlib

    assert digest({"b": [1, 2.5], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,2.5]}').hexdigest()


def test_a_step_killed_in_the_middle_is_made_again_from_what_it_left(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from compress.store import Store\n"
        "def make(folder):\n    (folder / 'checkpoint').write_text('half'); os.kill(os.getpid(), 9)\n"
        "Store(Path(sys.argv[1])).step('train', {'seed': 0}, make)"
    )
    assert run(code, store.root).wait() == -9
    assert store.find("train", digest({"step": "train", "seed": 0})) is None
    found: list[str] = []

    def make(folder: Path) -> dict:
        found.append((folder / "checkpoint").read_text())
        return {}

    assert not store.step("train", {"seed": 0}, make).reused and found == ["half"]


def test_the_manifest_comes_last(store: Store, monkeypatch) -> None:
    order: list[str] = []
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), original(a, b)))

    def make(folder: Path) -> dict:
        write_atomic(folder / "weights", b"w")
        assert not (folder / "manifest.json").exists()
        return {}

    store.step("train", {}, make)
    assert order == ["weights", "manifest.json"]


def test_a_failing_step_leaves_no_manifest(store: Store) -> None:
    def fail(folder: Path) -> dict:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.step("train", {}, fail)
    assert not store.step("train", {}, write("a")).reused


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_the_wrong_size_is_not_found(change: str, store: Store) -> None:
    step = store.step("train", {}, write("abc"))
    path = step.folder / "out"
    path.unlink() if change == "gone" else path.write_text("ab" if change == "shorter" else "abcd")
    assert store.find("train", step.key) is None
    assert not store.step("train", {}, write("abc")).reused


def test_a_key_of_the_same_beginning_is_not_taken_for_it(store: Store) -> None:
    step = store.step("train", {}, write("abc"))
    assert store.find("train", step.key[:20] + "0" * 44) is None


def test_a_damaged_manifest_is_named(store: Store) -> None:
    step = store.step("train", {}, write("abc"))
    (step.folder / "manifest.json").write_text("{")
    with pytest.raises(InputRejected, match="manifest.json"):
        store.find("train", step.key)


def test_two_processes_make_a_step_once(store: Store, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from compress.store import Store\n"
        "def make(folder):\n"
        "    open(sys.argv[2], 'a').write('x'); time.sleep(0.5); (folder / 'out').write_text('a'); return {}\n"
        "step = Store(Path(sys.argv[1])).step('train', {}, make, lambda text: print(text, flush=True))\n"
        "print(step.reused)"
    )
    processes = [run(code, store.root, tmp_path / "made") for _ in range(3)]
    texts = sorted(p.communicate(timeout=60)[0] for p in processes)
    assert (tmp_path / "made").read_text() == "x"
    assert sorted(t.split()[-1] for t in texts) == ["False", "True", "True"]


def test_a_lock_says_who_holds_it_and_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from compress.store import exclusive\n"
        "with exclusive(Path(sys.argv[1]), print):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = run(code, tmp_path / "locks" / "a")
    assert holder.stdout.readline() == "held\n"

    def busy(who: str) -> None:
        raise CompressError(who)

    with pytest.raises(CompressError, match=f"process {holder.pid}"), exclusive(tmp_path / "locks" / "a", busy):
        pass
    holder.kill()
    holder.wait()
    with exclusive(tmp_path / "locks" / "a", busy):
        pass


def test_writes_are_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(kinds[os.path.isdir(f"/proc/self/fd/{fd}")]), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(str(Path(a).parent)), replace(a, b)))
    write_atomic(tmp_path / "a", b"new")
    assert order == ["file", str(tmp_path), "folder"]
    assert (tmp_path / "a").read_bytes() == b"new" and (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def refuse(number: int):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("where", ["mkstemp", "fdopen", "fsync", "chmod", "replace"])
def test_a_refused_write_keeps_the_old_bytes(number: int, where: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "weights"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(stores.tempfile if where == "mkstemp" else os, where, refuse(number))
        with pytest.raises(CompressError) as caught:
            write_atomic(path, b"new")
    print(caught.value)
    assert str(path) in caught.value.message and " MB free" in caught.value.message and caught.value.hint
    assert os.strerror(number) in caught.value.message
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_folder_that_is_not_there_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="No such file") as caught:
        write_atomic(tmp_path / "a" / "b" / "c", b"")
    print(caught.value)


def test_a_process_killed_while_writing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from compress.store import write_atomic\n"
        "print('ready', flush=True)\n"
        "while True:\n    for c in b'ab': write_atomic(Path(sys.argv[1]), bytes([c]) * 300_000)"
    )
    path = tmp_path / "weights"
    for delay_s in (0.002, 0.005, 0.011, 0.023):
        process = run(code, path)
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        data = path.read_bytes()
        assert len(data) == 300_000 and len(set(data)) == 1


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == json.dumps({"a": [2], "b": 1}, indent=2) + "\n"
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(InputRejected, match="nowhere.json"):
        read_json(tmp_path / "nowhere.json")


def aged(store: Store, name: str, size: int, hours: float) -> Path:
    step = store.step(name, {}, lambda folder: {"n": (folder / "out").write_bytes(bytes(size))})
    moment = time.time() - 3600 * hours
    os.utime(step.folder / "manifest.json", (moment, moment))
    return step.folder


def test_the_least_recently_used_go_first_and_the_recent_stay(store: Store, monkeypatch) -> None:
    old, older, new = aged(store, "old", 400_000, 14), aged(store, "older", 400_000, 30), aged(store, "new", 400_000, 0)
    monkeypatch.setenv("COMPRESS_STORE_GB", "0.001")
    assert store.trim() == [older] and old.exists() and new.exists()
    monkeypatch.setenv("COMPRESS_STORE_GB", "0.0001")
    assert store.trim(keep=old) == [] and old.exists()
    assert store.trim() == [old] and new.exists(), "what was used in the last twelve hours stays"
    rows = store.entries()
    assert [(r[0], r[3]) for r in rows] == [(new, True)] and rows[0][1] > 400_000


def test_reports_of_bugs_go_after_a_month_or_with_all(store: Store) -> None:
    folder = store.root / "bugs"
    folder.mkdir(parents=True)
    for name, days in (("old", 31), ("new", 1)):
        (folder / f"{name}.txt").write_text("report")
        os.utime(folder / f"{name}.txt", (time.time() - days * 86400,) * 2)
    store.trim()
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    store.clear()
    assert not folder.exists()


def test_finding_a_step_counts_as_using_it(store: Store, monkeypatch) -> None:
    first, second = aged(store, "first", 400_000, 30), aged(store, "second", 400_000, 26)
    assert store.step("first", {}, write("never")).reused
    monkeypatch.setenv("COMPRESS_STORE_GB", "0.0005")
    assert store.trim() == [second] and first.exists()


@pytest.mark.parametrize("text", ["0", "-3", "many", "", "nan", "inf"])
def test_a_bad_limit_is_named(text: str, monkeypatch) -> None:
    monkeypatch.setenv("COMPRESS_STORE_GB", text)
    with pytest.raises(UsageError, match="COMPRESS_STORE_GB must be a positive number") as caught:
        stores.limit_bytes()
    print(caught.value)


def test_the_limit_has_a_default(monkeypatch) -> None:
    monkeypatch.delenv("COMPRESS_STORE_GB", raising=False)
    assert stores.limit_bytes() == 20_000_000_000


def test_the_place_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("COMPRESS_STORE", raising=False)
    assert Store.default().root == tmp_path / "xdg" / "compress"
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "named"))
    assert Store.default().root == tmp_path / "named" and (tmp_path / "named" / "steps").is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "file"))
    with pytest.raises(CompressError, match="cannot make the store") as caught:
        Store.default()
    print(caught.value)


def test_a_look_makes_nothing(store: Store) -> None:
    peek = stores.Peek(store.root)
    with pytest.raises(stores.NotThere):
        peek.step("train", {}, write("a"))
    assert not store.folder("train", digest({"step": "train"})).exists()
    store.step("train", {}, write("a"))
    assert peek.step("train", {}, write("b")).reused


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
