"""A stand-in for `adb`, for test_adb.py: it knows one phone, whose files lie in a folder, and refuses every word that
it was not told of. `python stand_in_adb.py FOLDER WORDS…`; scripts for the phone's shell are run by this machine's,
with the phone's paths put below FOLDER/fs and its programs in FOLDER/bin. It is started a thousand times: pathlib,
subprocess and the like would take longer than all that it does.
"""

import os
import re
import sys

SERIAL = "R5CT10ABCDE"
HOME = r"/data/local/tmp/compress-([0-9a-f]{16})"
TOOLS = r"benchmark_model|benchncnn|benchmark\.out|onnxruntime_perf_test"
ALLOWED = [
    rf"timeout 9 mkdir {HOME}",
    rf"mkdir {HOME}/model\d+",
    rf"chmod 755 {HOME}/({TOOLS})",
    rf"rm -rf {HOME}",
    r"getprop ro\.[a-z.]+",
    r"uname -r",
    r"nproc",
    r"cat /proc/(cpuinfo|meminfo)",
    r"cat /sys/devices/system/cpu/cpu\[0-9\]\*/cpufreq/scaling_governor",
    r"dumpsys (battery|thermalservice)",
    rf"cd {HOME} && LD_LIBRARY_PATH={HOME} timeout -s KILL \d+ {HOME}/({TOOLS})( [\w./=,'\[\]-]+)+ < /dev/null; "
    rf"status=\$\?; cat {HOME}/result 2> /dev/null; rm -f {HOME}/result; \(exit \$status\)",
]


def refuse(why: str) -> None:
    note("refused", why)
    sys.exit(f"stand-in: {why}")


def read(name: str) -> str:
    with open(f"{FOLDER}/{name}", encoding="utf-8") as file:
        return file.read()


def note(name: str, text: str, how: str = "w") -> None:
    with open(f"{FOLDER}/{name}", how, encoding="utf-8") as file:
        file.write(text)


def below(text: str) -> str:
    """The phone's paths in a script, as those of this machine."""
    return re.sub(r"(?<![\w.])/(data/local/tmp|proc|sys)/", lambda found: f"{FOLDER}/fs{found[0]}", text)


def push(local: str, remote: str) -> int:
    if not re.fullmatch(rf"{HOME}/[\w.+-]+(/[\w.-]+)?", remote) or not os.path.isabs(local):
        refuse(f"push {local} {remote}")
    if MODE == "full" and remote.endswith((".onnx", ".bin")):
        print(f"adb: error: failed to copy '{local}' to '{remote}': remote couldn't write: No space left on device")
        return 1
    with open(local, "rb") as source, open(below(remote), "wb") as target:
        target.write(source.read())
    print(f"{local}: 1 file pushed, 0 skipped. 21.4 MB/s (1024 bytes in 0.000s)")
    return 0


def shell(script: str) -> int:
    found = re.fullmatch(r"\{ (.*); \} 2>&1; echo ([0-9a-f]{16}) \$\?", script)
    if not found or not any(re.fullmatch(pattern, found[1]) for pattern in ALLOWED):
        refuse(f"shell {script}")
    # every path is in the one folder of this session
    if {token for token in re.findall(r"compress-([0-9a-f]+)", found[1])} - {found[2]}:
        refuse(f"another folder: {script}")
    if MODE == "cut" and " timeout -s KILL " in script:
        note("mode", "gone")  # for all that follows
        print("loop_count = 10\nerror: closed")
        return 1
    if MODE == "deaf" and " timeout -s KILL " in script:
        import time

        time.sleep(60)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve("/bin/sh", ["/bin/sh", "-c", below(script)], {"PATH": f"{FOLDER}/bin:/usr/bin:/bin"})


def main(words: list[str]) -> int:
    note("calls", f"{words!r}\n", "a")
    if words == ["devices"]:
        print("* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached")
        print(read("devices"))
        return 0
    if words[:2] != ["-s", SERIAL]:
        refuse(" ".join(words))
    if MODE == "gone":
        print(f"adb: error: device '{SERIAL}' not found", file=sys.stderr)
        return 1
    known = {("push", 3): push, ("shell", 2): shell}
    action = known.get((words[2], len(words) - 2))
    if action is None:
        refuse(" ".join(words))
    return action(*words[3:])


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    MODE = read("mode")
    sys.exit(main(sys.argv[2:]))
