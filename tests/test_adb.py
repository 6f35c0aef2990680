"""Measuring on a phone, by adb: against a stand-in that checks every word (stand_in_adb.py), for want of a phone. The
programs on it print what the real ones print, by their sources.
"""

import ast
import dataclasses
import json
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stand_in_adb import SERIAL
from test_bench import TIER, artifact, artifact_of, cell, images  # noqa: F401 (fixtures)

from compress import adb, bench, catalog, facts, phone, report
from compress.child import ChildFailed
from compress.cli.main import compress as group
from compress.errors import InputRejected, Unmeasurable, UsageError
from compress.report import html, markdown, rows_validity, runner
from compress.store import folder_digest

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"
NATIVE = [name for name in catalog.names("runtimes") if hasattr(catalog.load("runtimes", name).module, "NATIVE")]

PROPERTIES = {
    "ro.product.manufacturer": "Google", "ro.product.model": "Pixel 8", "ro.soc.manufacturer": "Google",
    "ro.soc.model": "Tensor G3", "ro.hardware": "shiba", "ro.build.version.release": "14", "ro.build.version.sdk": "34",
    "ro.product.cpu.abi": "arm64-v8a",
}  # fmt: skip
BATTERY = "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  level: 84\n  temperature: {}\n"
THERMAL = "IsStatusOverride: false\nThermal Status: {}\nCached temperatures:\n\tTemperature{{mValue=98.0, mType=3}}\n"

# program → what it does with its words, in Python: prints of the real ones, from their sources
PLAYED = {
    "benchmark_model": """
want("--graph=HOME/model\\d+/model\\.tflite", "--num_threads=2", "--warmup_runs=(\\d+)", "--warmup_min_secs=0",
     "--num_runs=(\\d+)", "--min_secs=0")
warmup, runs = (int(re.search("=(.*)", words[i])[1]) for i in (2, 4))
open(words[0].partition("=")[2]).read()
print("INFO: STARTING!\\nINFO: Log parameter values verbosely: [0]\\nINFO: Min num runs: [%d]" % runs)
print("INFO: Initialized session in 12.345ms.", file=sys.stderr)
print("INFO: count=%d first=2310 curr=1010 min=1001 max=2310 avg=1141.5 std=390\\n" % warmup)
print("INFO: count=%d first=1010 curr=1008 min=998 max=1120 avg=1003.25 std=11\\n" % runs)
print("INFO: Inference timings in us: Init: 12345, First inference: 2310, Warmup (avg): 1141.5, "
      "Inference (avg): 1003.25\\nINFO: Note: as the benchmark tool itself affects memory footprint")
""",
    "benchncnn": """
want("\\d+", "2", "0", "-1", "0", "param=HOME/model\\d+/model\\.ncnn\\.param", "shape=\\[8,8,3\\]")
open(words[5].partition("=")[2]).read()
sys.stdout = sys.stderr
print("loop_count = %s\\nnum_threads = 2\\npowersave = 0\\ngpu_device = -1\\ncooling_down = 0" % words[0])
print("%20s  min = %7.2f  max = %7.2f  avg = %7.2f" % (words[5][6:], 0.98, 1.2, 1.0))
""",
    "benchmark.out": """
want("HOME/model\\d+", "\\d+", "\\d+", "0", "2", "1")
name, = os.listdir(words[0])
print("MNN benchmark\\nForward type: CPU thread=2 precision=1 sparsity=0 sparseBlockOC=1 testQuantizedModel=0")
print("--------> Benchmarking... loop = %s, warmup = %s" % (words[1], words[2]))
print("[-INFO-]: precision!=2, use fp32 inference.")
print("[ - ] %-24s    max = %8.3f ms  min = %8.3f ms  avg = %8.3f ms" % (name, 1.2, 0.981, 1.003))
""",
    "onnxruntime_perf_test": """
want("-I", "-S", "1", "-e", "cpu", "-m", "times", "-r", "\\d+", "-x", "2", "-y", "1",
     "HOME/model\\d+\\.onnx", "HOME/result")
open(words[-2], "rb").read()
runs = int(words[8])
print("Session creation time cost: 0.0123 s\\nFirst inference time cost: 2 ms")
with open(words[-1], "a") as result:
    for run in range(runs):
        seconds = 0.002 if run < 3 else 0.001 + 1e-6 * run
        result.write("%s,%.6g,45678592,99,%d\\n" % (words[-2].split("/")[-2], seconds, run))
print("Total inference requests: %d\\nAverage inference time cost: 1.01 ms" % runs)
""",
}  # fmt: skip
HEAD = f"""#!{sys.executable} -IS
import os, re, sys, time, signal
words = sys.argv[1:]
home = os.path.dirname(os.path.abspath(sys.argv[0]))
def want(*patterns):
    wanted = [pattern.replace("HOME", re.escape(home)) for pattern in patterns]
    if len(words) != len(wanted) or not all(map(re.fullmatch, wanted, words)) or os.getcwd() != home:
        sys.exit("not asked as the real one is: %r, wanted %r" % (words, wanted))
    if not os.environ["LD_LIBRARY_PATH"] == home or not os.path.exists(home + "/libc++_shared.so"):
        sys.exit("no library")
"""


class StandIn:
    """The folder behind the stand-in: the phone's files, its mode, and what was asked of it."""

    def __init__(self, folder: Path):
        self.folder, self.tools = folder, folder / "tools"
        for name in ("fs/data/local/tmp", "fs/proc", "fs/sys/devices/system/cpu/cpu0/cpufreq", "bin", "tools"):
            (folder / name).mkdir(parents=True)
        self.mode()
        self.devices(f"{SERIAL}\tdevice\n")
        self.heat()
        cases = "".join(f"{name}) echo '{value}';; " for name, value in PROPERTIES.items())
        self._program("bin/getprop", f'#!/bin/sh\ncase "$1" in {cases} esac\n')
        self._program("bin/uname", "#!/bin/sh\necho 5.15.137-android14\n")
        self._program("bin/nproc", "#!/bin/sh\necho 9\n")
        (folder / "fs/proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16 sve2\n")
        (folder / "fs/proc/meminfo").write_text("MemTotal:        7654321 kB\n")
        (folder / "fs/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("sched_pixel\n")
        (self.tools / "libc++_shared.so").write_text("a library")
        for name, body in PLAYED.items():
            self.play(name, body)

    def mode(self, mode: str = "well") -> None:
        (self.folder / "mode").write_text(mode)

    def devices(self, listed: str) -> None:
        (self.folder / "devices").write_text(listed)

    def heat(self, tenths: int = 274, status: int = 0) -> None:
        said = {"battery": BATTERY.format(tenths), "thermalservice": THERMAL.format(status)}
        cases = "".join(f"{name}) echo '{text}';; " for name, text in said.items())
        self._program("bin/dumpsys", f'#!/bin/sh\ncase "$1" in {cases} esac\n')

    def play(self, tool: str, body: str) -> None:
        self._program(f"tools/{tool}", HEAD + body)

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def calls(self) -> list[list[str]]:
        return [ast.literal_eval(line) for line in (self.folder / "calls").read_text().splitlines()]

    def left(self) -> list[Path]:
        return list((self.folder / "fs/data/local/tmp").iterdir())


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    found = StandIn(tmp_path / "phone")
    script = Path(__file__).with_name("stand_in_adb.py")
    monkeypatch.setenv(adb.ADB_VARIABLE, f"{sys.executable} -IS {script} {found.folder}")
    yield found
    refused = found.folder / "refused"
    assert not refused.exists(), refused.read_text()


@pytest.fixture
def attached(stand_in):
    with phone.connected(f"adb:{SERIAL}", stand_in.tools) as there:
        yield there
    assert stand_in.left() == []


def measured(there, cells, images, tmp_path, tier=TIER):  # noqa: F811
    return bench.measure(cells, images, tier, seed=1, scratch=tmp_path / "scratch", host=there)


def folder_artifact(tmp_path, artifact, format: str, *names: str):  # noqa: F811
    """As a conversion leaves it; the program only looks whether the files are there."""
    folder = tmp_path / format
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return dataclasses.replace(artifact, path=folder, digest=folder_digest(folder), format=format, stage=format)


@pytest.fixture
def cells(artifact, tmp_path):  # noqa: F811
    made = {
        "ort_cpu": artifact,
        "litert": folder_artifact(tmp_path, artifact, "tflite", "model.tflite"),
        "ncnn": folder_artifact(tmp_path, artifact, "ncnn", "model.ncnn.param", "model.ncnn.bin"),
        "mnn": folder_artifact(tmp_path, artifact, "mnn", "model.mnn"),
    }
    return [cell(name, made[name], name, threads=2) for name in NATIVE]


def test_every_runtime_with_a_program_is_played_here():
    assert sorted(NATIVE) == ["litert", "mnn", "ncnn", "ort_cpu"]
    assert {catalog.load("runtimes", name).module.NATIVE["tool"] for name in NATIVE} == set(PLAYED)


def test_the_same_protocol_and_what_each_program_tells(attached, cells, images, tmp_path):  # noqa: F811
    found = {m.cell: m for m in measured(attached, cells, images, tmp_path)}
    order = [bench.visit_order(1, number, len(cells)) for number in range(TIER.rounds)]
    for index, each in enumerate(cells):
        one = found[each.name]
        assert not one.failure, one.failure
        assert [v["position"] for v in one.visits] == [o.index(index) for o in order]
        assert re.fullmatch(r"\S+ \(sha256 [0-9a-f]{12}\)", one.runtime_version)
        for visit in one.visits:
            assert visit["effective"]["runner"] == "adb shell" and visit["celsius"] == [27.4, 27.4]
            assert visit["import_ns"] is None and visit["cpu_ns_per_inference"] is None and visit["cooled_s"] == 0
    litert, ncnn, mnn, ort = (found[name].visits[0] for name in ("litert", "ncnn", "mnn", "ort_cpu"))
    # a block of 20 ms at about 1 ms each, told by the first look; ONNX Runtime's took 1.3 ms in the middle
    assert (litert["n"], litert["mean_ns"], litert["min_ns"], litert["max_ns"]) == (20, 1003250, 998e3, 1120e3)
    assert (litert["load_ns"], litert["first_inference_ns"], litert["warmup_runs"]) == (12.345e6, 2.31e6, 10)
    assert (ncnn["n"], ncnn["mean_ns"], ncnn["rounding_ns"], ncnn["warmup_runs"]) == (20, 1e6, 5e3, 8)
    assert (mnn["n"], round(mnn["mean_ns"]), mnn["warmup_runs"]) == (20, 1_003_000, 10) and mnn["load_ns"] is None
    for visit in (litert, ncnn, mnn):
        assert "samples_ns" not in visit and "median_ns" not in visit and visit["warmup_ns"] == []
    assert ort["warmup_ns"][:3] == [2_000_000] * 3 and ort["samples_ns"][0] > ort["warmup_ns"][3] > 1_000_000
    assert ort["load_ns"] == 12.3e6 and ort["peak_rss_bytes"] == 45678592 and ort["steady"] is True


def test_all_that_is_sent_is_sent_once_and_taken_away(stand_in, cells, images, tmp_path):  # noqa: F811
    with phone.connected("adb:", stand_in.tools) as there:
        measured(there, cells, images, tmp_path)
        (folder,) = stand_in.left()
        assert str(there.folder).endswith(folder.name) and stat.S_IMODE((folder / "benchncnn").stat().st_mode) == 0o755
    assert stand_in.left() == []
    sent = [call[-1] for call in stand_in.calls() if call[2:3] == ["push"]]
    assert len(sent) == len(set(sent)) == 4 + 1 + 5, "programs, a library, files of models"
    with pytest.raises(ZeroDivisionError), phone.connected("adb:", stand_in.tools):
        assert stand_in.left() and 1 / 0
    assert stand_in.left() == []


def test_a_report_of_a_phone_says_who_took_the_times(attached, cells, images, tmp_path):  # noqa: F811
    twin = dataclasses.replace(cells[0], name=cells[0].name + " again")
    found = measured(attached, [*cells, twin], images, tmp_path)
    written = json.loads((RUN.parents[1] / "reports" / "digits-mobilenet" / "report.json").read_text())
    kept = {k: v for k, v in written.items() if k != "derived"}
    shown = [facts.measurement_facts(m, "litert" if m.cell.endswith("again") else "") for m in found]
    for one in shown:
        one["stage"] = kept["shipped"]
    document = report.document_of(
        {**kept, "measurements": shown, "environment": dataclasses.asdict(attached.environment())}
    )
    rows = {row["cell"]: row for row in document["derived"]["cells"]}
    assert rows["ncnn"]["latency_ns"]["value"] == 1e6 and rows["ncnn"]["ecdf"] is None
    assert rows["ncnn"]["percentiles_ns"]["p90"]["reason"] == "its program tells no single queries"
    assert (
        rows["mnn"]["load_ns"]["reason"] == "the runtime did not say" and rows["litert"]["load_ns"]["value"] == 12.345e6
    )
    assert rows["ort_cpu"]["ecdf"] is not None
    assert document["derived"]["aa"]["value"] == 1.0
    assert document["environment"]["cpu_model"] == "Google Tensor G3 in Google Pixel 8"
    assert document["environment"]["isa"] == ["asimd", "asimddp", "bf16", "i8mm"]
    assert document["environment"]["system"] == (
        "Android 14 (SDK 34) arm64-v8a, Linux 5.15.137-android14, governor sched_pixel"
    )
    for text in (html.render(document), markdown.render(document), markdown.summary(document)):
        plain = " ".join(text.replace("\\", "").split())
        assert "ncnn was timed by a program of its own, benchncnn (sha256" in plain
        assert "over adb shell, not in an app" in plain
        assert SERIAL not in text
    assert "no single ones are told" in runner.runner_sentences(document)[2]
    assert len(runner.runner_sentences(document)) == 4


def test_rules_that_only_a_phone_breaks():
    fixed = {"median_ns": None, "n": 9, "rounding_ns": 5e3}
    visits = [{**fixed, "round": i, "mean_ns": 1e6 + i, "thermal_status": i % 2} for i in range(4)]
    found = {flag["code"]: flag["severity"] for flag in rows_validity.flags({"visits": visits})}
    assert found == {"hot": "warn"}
    small = [{**visit, "mean_ns": 4e5} for visit in visits]
    assert {"code": "rounding", "severity": "invalid", "text": rows_validity.RULES["rounding"][0].format("1.2 %")} in (
        rows_validity.flags({"visits": small})
    )


def test_a_visit_that_counts_by_nothing_is_a_contradiction():
    written = json.loads((RUN.parents[1] / "reports" / "digits-mobilenet" / "report.json").read_text())
    next(m for m in written["measurements"] if m["visits"])["visits"][0]["median_ns"] = None
    with pytest.raises(InputRejected, match="neither `median_ns` nor `mean_ns`"):
        report.document_of({k: v for k, v in written.items() if k != "derived"})


@pytest.mark.parametrize(
    ("body", "reason", "kind"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "benchncnn was killed by SIGSEGV", "crashed"),
        (
            "sys.exit('dlopen failed: library \"libomp.so\" not found')",
            'exit status 1 (last words: dlopen failed: library "l',
            "ended-early",
        ),
        (
            "os.write(1, bytes(range(256)) * 9 + b'\\x1b]0;owned\\x07\\x1b[31mred\\n')",
            "says what cannot be read",
            "rubbish",
        ),
        (
            "print('loop_count = 10\\n model.ncnn.param  min = 0.00  max = 0.00  avg = 0.00')",
            "a time that is not above 0",
            "rubbish",
        ),
        (
            "print('loop_count = 10\\n model.ncnn.param  min = 1  max = 1  avg = 1.2.3')",
            "could not convert string",
            "rubbish",
        ),
        ("print('loop_count = 0\\n model.ncnn.param  min = 1  max = 1  avg = 1')", "it made no run", "rubbish"),
        ("print('no such model')", "versions that take no `param=` say none; its last words: no such model", "rubbish"),
        ("print()", "its last words: ", "rubbish"),
        ("while True: os.write(1, b'x' * 65536)", "it says more than 16 MB", "rubbish"),
        ("time.sleep(60)", "was killed: no result within 1 s", "killed"),
    ],
    ids=["segfault", "library", "rubbish", "zero", "digits", "none", "other", "empty", "huge", "hang"],
)
def test_a_program_that_fails_is_a_row_and_stops_no_other(stand_in, cells, images, tmp_path, body, reason, kind):  # noqa: F811
    stand_in.play("benchncnn", body)
    wanted = [each for each in cells if each.name in ("ncnn", "mnn")]
    with phone.connected("adb:", stand_in.tools) as there:
        found = bench.measure(wanted, images, TIER, seed=1, scratch=tmp_path / "s", host=there, timeout_s=1.0)
    mnn, ncnn = sorted(found, key=lambda m: m.cell)
    print(ncnn.failure)
    assert reason in ncnn.failure and not ncnn.visits and ncnn.failure.isprintable() and len(ncnn.failure) <= 600
    assert ncnn.failure_kind == kind
    assert not mnn.failure and len(mnn.visits) == TIER.rounds
    assert stand_in.left() == []


def test_a_cut_connection_ends_all_that_was_not_done(stand_in, cells, images, tmp_path, capsys):  # noqa: F811
    stand_in.mode("cut")
    with phone.connected("adb:", stand_in.tools) as there:
        found = measured(there, cells, images, tmp_path)
    for one in found:
        assert one.failure.startswith("the adb connection ended") and not one.visits and SERIAL not in one.failure
        assert one.failure_kind == "lost"
    print(found[0].failure)
    # nobody can clean up there now, which is said
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {there.folder} is still on the phone") and "adb shell rm -r" in said
    assert len([c for c in stand_in.calls() if " timeout -s KILL " in c[-1]]) == 1


def test_a_phone_that_is_back_is_cleaned_but_not_taken_up_again(stand_in, cells, images, tmp_path):  # noqa: F811
    stand_in.mode("cut")
    with phone.connected("adb:", stand_in.tools) as there:
        with pytest.raises(ChildFailed, match="the adb connection ended: error: closed"):
            there._timed(
                catalog.load("runtimes", "mnn").module, {"images": _npy(tmp_path, images), "threads": 2}, "m", 1, 1, 9
            )
        stand_in.mode()
        with pytest.raises(ChildFailed, match="the adb connection ended"):
            there._heat()
    assert stand_in.left() == []


def _npy(tmp_path, images) -> str:  # noqa: F811
    np.save(tmp_path / "images.npy", images)
    return str(tmp_path / "images.npy")


def test_an_adb_that_does_not_answer(stand_in, cells, images, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(phone, "GRACE_S", 0.5)
    stand_in.mode("deaf")
    with phone.connected("adb:", stand_in.tools) as there:
        found = bench.measure(cells, images, TIER, seed=1, scratch=tmp_path / "s", host=there, timeout_s=0.5)
        assert {(one.failure, one.failure_kind) for one in found} == {("no answer in time over adb", "lost")}
        stand_in.mode()
    assert stand_in.left() == []


def test_a_full_phone_is_a_reason(stand_in, cells, images, tmp_path):  # noqa: F811
    stand_in.mode("full")
    with phone.connected("adb:", stand_in.tools) as there:
        found = {m.cell: m.failure for m in measured(there, cells, images, tmp_path)}
    assert found["ort_cpu"].startswith("cannot send model.onnx: ") and "No space left" in found["ort_cpu"]
    assert found["litert"] == "" and stand_in.left() == []


def test_runtimes_that_cannot_be_timed_there(stand_in, artifact, cells, images, tmp_path):  # noqa: F811
    (stand_in.tools / "benchncnn").unlink()
    more = [
        cell("e", dataclasses.replace(artifact, format="pte"), "executorch"),
        dataclasses.replace(cells[0], batch=8),
    ]
    with phone.connected("adb:", stand_in.tools) as there:
        ncnn = next(each for each in cells if each.name == "ncnn")
        found = measured(there, [*more, ncnn], images, tmp_path)
    e, eight, none = (m.failure for m in found)
    assert [m.failure_kind for m in found] == ["unavailable", "refused", "unavailable"]
    assert e == "executorch has no benchmark program for Android that is known here"
    assert "one by one, not 8 at once" in eight
    assert none.startswith("the folder of --tools has no `benchncnn`: built from ncnn's source")


def test_it_waits_until_the_phone_is_cool_but_not_for_ever(stand_in):
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            stand_in.heat(300)

    there = phone.Phone(SERIAL, stand_in.tools, sleep)
    assert there._cool() == 0
    stand_in.heat(350)
    assert there._cool() == 15 and len(slept) == 3
    stand_in.heat(274, status=2)
    assert there._cool() == phone.COOL_S and there._heat() == {"celsius": 27.4, "status": 2}
    stand_in._program("bin/dumpsys", "#!/bin/sh\necho Can\\'t find service: $1\n")
    assert there._heat() == {"celsius": None, "status": 0} and there._cool() == 0
    there.close()


@pytest.mark.parametrize(
    ("listed", "address", "message", "hint"),
    [
        ("", "adb:", "adb sees no phone", "USB debugging"),
        ("", "adb:10.0.0.5:5555", "adb sees no phone 10.0.0.5:5555", "adb connect 10.0.0.5:5555"),
        (f"{SERIAL}\tdevice\n", "adb:OTHER", f"adb sees no phone OTHER, but {SERIAL}", "USB debugging"),
        (f"{SERIAL}\tunauthorized\n", "adb:", "adb calls it `unauthorized`", "accept the key"),
        (f"{SERIAL}\toffline\n", f"adb:{SERIAL}", "adb calls it `offline`", "adb reconnect"),
        (f"{SERIAL}\trecovery\n", "adb:", "adb calls it `recovery`", "into Android"),
        (f"{SERIAL}\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n", "adb:",
         "adb calls it `no permissions`", "udev rules"),
    ],
)  # fmt: skip
def test_a_phone_that_cannot_be_used_is_explained(stand_in, listed, address, message, hint):
    stand_in.devices(listed)
    with pytest.raises(Unmeasurable) as caught, phone.connected(address, stand_in.tools):
        pass
    print(caught.value)
    assert message in caught.value.message and hint in caught.value.hint


def test_several_phones_are_a_question(stand_in):
    stand_in.devices(f"{SERIAL}\tdevice\nemulator-5554\tdevice\n")
    with pytest.raises(Unmeasurable, match="2 phones are attached") as caught, phone.connected("adb:", stand_in.tools):
        pass
    assert "adb:SERIAL" in caught.value.hint
    with phone.connected(f"adb:{SERIAL}", stand_in.tools) as there:
        assert there.environment().cores_allowed == 9


def test_an_adb_that_is_not_there_or_broken(monkeypatch, tmp_path):
    monkeypatch.setenv(adb.ADB_VARIABLE, "no-such-adb")
    with pytest.raises(Unmeasurable, match="cannot run `no-such-adb`") as caught, phone.connected("adb:", tmp_path):
        pass
    assert "platform-tools" in caught.value.hint
    monkeypatch.setenv(adb.ADB_VARIABLE, "false")
    with pytest.raises(Unmeasurable, match="ended with 1"):
        adb.choose("")
    monkeypatch.setattr(adb, "LIST_S", 0.2)
    monkeypatch.setenv(adb.ADB_VARIABLE, "sleep 9;:")
    monkeypatch.setenv(adb.ADB_VARIABLE, f"{sys.executable} -c 'import time; time.sleep(9)'")
    with pytest.raises(Unmeasurable, match="no answer in time"):
        adb.choose("")
    with pytest.raises(UsageError, match="--tools: there is no folder"), phone.connected("adb:", tmp_path / "none"):
        pass


@pytest.mark.parametrize("serial", [SERIAL, "emulator-5554", "192.168.1.5:5555", "adb-1-x._adb-tls-connect._tcp", ""])
def test_serials(serial):
    assert adb.serial_of(f"adb:{serial}") == serial


@pytest.mark.parametrize(
    "text", ["adb", "adb:-s", "adb:a b", "adb:$(reboot)", "adb:a;b", "adb:a'b", "adb:a\n", "adb:é", "adb://x", "ssh:x"]
)
def test_what_is_no_serial_is_refused(text):
    with pytest.raises(UsageError, match="--on takes adb:SERIAL"):
        adb.serial_of(text)


@pytest.mark.parametrize(
    "word", ["", "a b", "a;b", "$(reboot)", "`x`", "a'b", 'a"b', "a\nb", "é", "a|b", "a>b", "*", "~", "\\", "a&b", "#"]
)
def test_words_for_the_shell_of_a_phone(word):
    with pytest.raises(ValueError, match="no word for a phone's shell"):
        adb.quoted(["ls", word])


def test_brackets_are_no_pattern_there(tmp_path):
    import subprocess

    (tmp_path / "shape=8").touch()
    said = subprocess.run(
        ["/bin/sh", "-c", f"echo {adb.quoted(['shape=[8]', 'a=b,c', '-1'])}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "shape=[8] a=b,c -1\n"


@pytest.mark.parametrize(
    ("runtime", "said", "expected"),
    [
        ("litert", "count=1 curr=5\ncount=50 curr=12(all same)\n"
         "Inference timings in us: Init: 3, First inference: 4, W", {"n": 50, "mean_ns": 12e3, "min_ns": 12e3}),
        ("litert", "I tflite  : count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602\n"
         "I tflite  : count=50 first=1249964 curr=1240143 min=1238588 max=1252566 avg=1.24027e+06 std=2565 p5=1238753 "
         "median=1239807 p95=1247415\nInference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1",
         {"n": 50, "mean_ns": 1.24027e9, "median_ns": 1.239807e9, "first_inference_ns": 1.357602e9}),
        ("mnn", "Benchmarking... loop = 10, warmup = 5\n[ - ] model.mnn                   max =   14.200 ms  "
         "min =   12.000 ms  avg =   12.600 ms\n",
         {"n": 10, "mean_ns": 12.6e6, "max_ns": 14.2e6, "warmup_runs": 5}),
    ],
)  # fmt: skip
def test_what_real_programs_have_printed(runtime, said, expected):
    found = catalog.load("runtimes", runtime).module.native_facts(said, 5)
    assert {key: pytest.approx(found[key]) for key in expected} == expected


@pytest.mark.parametrize("runtime", NATIVE)
@pytest.mark.parametrize("said", ["", "count=", "x,1e,5,5,5\n", "\x00" * 99, "count=9 curr=9" * 2])
def test_other_words_are_a_value_error(runtime, said):
    with pytest.raises(ValueError):
        catalog.load("runtimes", runtime).module.native_facts(said, 5)


def invoke(*words: str):
    return CliRunner().invoke(group, list(words), catch_exceptions=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "adb:"], "name the folder that holds them, --tools"),
        (["--tools", "."], "--tools is for phones"),
        (["--on", "adb:", "--tools", ".", "--fps", "30"], "ask one input of their own"),
        (["--on", "adb:", "--tools", ".", "--batch", "1,8"], "ask one input of their own"),
        (["--on", "adb:", "--tools", ".", "--synthetic"], "ask one input of their own"),
        (["--on", "adb:;reboot", "--tools", "."], "--on takes adb:SERIAL"),
    ],
)
def test_flags_that_make_no_sense(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path))
    done = invoke("bench", str(RUN), *words)
    assert isinstance(done.exception, UsageError) and message in done.exception.message


def test_answers_are_not_to_be_had_from_such_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path))
    done = invoke("eval", str(RUN), "--on", f"adb:{SERIAL}")
    assert isinstance(done.exception, UsageError) and "not what it answers" in done.exception.message
    assert "compress verify --arch arm64" in done.exception.hint


@pytest.mark.slow
def test_the_command_measures_there_and_names_no_phone(stand_in, tmp_path, monkeypatch):
    """A file, converted here; its images are of 8x8 pixels and one channel, and one thread is asked."""
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    for tool, body in PLAYED.items():
        asked = body.replace('"2", "0", "-1"', '"1", "0", "-1"').replace('"-x", "2"', '"-x", "1"')
        stand_in.play(tool, asked.replace("shape=\\[8,8,3\\]", "shape=\\[8,8,1\\]"))
    wanted = ["bench", str(RUN / "student.onnx"), "--tier", "smoke", "--runtimes", "ncnn,ort_cpu,openvino",
              "--on", f"adb:{SERIAL}", "--tools", str(stand_in.tools), "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["compress", *wanted])
    done = CliRunner().invoke(group, wanted, catch_exceptions=False)
    assert done.exit_code in (0, 4), done.output
    document = report.load(tmp_path / "out" / "report.json")
    rows = document["derived"]["cells"]
    assert {row["runtime"] for row in rows if not row["failure"]} == {"ncnn", "ort_cpu"}
    assert all("no benchmark program" in row["failure"] for row in rows if row["runtime"] == "openvino")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "over adb shell, not in an app" in page and "weights, which are zeros" in page and "Pixel 8" in page
    assert document["dataset"]["report"] == 0 and "own" in document["run"]["data_note"]
    for path in (tmp_path / "out").glob("report.*"):
        assert SERIAL not in path.read_text() and "--on adb:" in path.read_text(), path
    assert "not in an app" in " ".join(done.output.split()) and stand_in.left() == []


@pytest.mark.parametrize(
    ("tier", "expected_ms", "runs"),
    [("quick", 100, 13), ("quick", 1000, 5), ("standard", 100, 67), ("standard", 1, 2000),
     ("standard", 1000, 10), ("rigorous", 100, 222)],
)  # fmt: skip
def test_a_block_has_the_queries_that_its_percentiles_want(tier, expected_ms, runs):
    """As here: ten rounds of 67 queries are the 662 of p99; a slow file has what five times the seconds give."""
    assert phone.block_runs(dataclasses.asdict(bench.TIERS[tier]), expected_ms * 1e6) == runs
