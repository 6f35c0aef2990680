"""Packages of any Debian suite and architecture, fetched and unpacked beside the system: no root, nothing installed.

The mirror, proxies and credentials are those of this machine's apt; apt checks every signature and hash itself.
"""

import os
import signal
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from compress.errors import CompressError

STEP_TIMEOUT_S = 1800.0
KEYRINGS = tuple(Path("/usr/share/keyrings", f"debian-archive-keyring.{end}") for end in ("gpg", "pgp"))
# A source that names one of these is Debian's own archive; other archives use "stable" too, hence the ranking below.
CODENAMES = frozenset("bullseye bookworm trixie forky duke sid".split())
ALIASES = frozenset("oldstable stable testing unstable".split())
# What a tool's output says -> what to do about it. The first that matches counts.
HINTS = (
    (("No space left on device", "not enough free space"), "free some disk space, or choose a folder on another disk"),
    (("NO_PUBKEY", "not signed", "EXPKEYSIG"), "bring the package debian-archive-keyring up to date"),
    (("No matching distribution", "No such option"), "check that this version has an aarch64 wheel; or update pip"),
    (("No module named pip",), "add pip to this environment: python -m ensurepip"),
    (("404  Not Found", "Unable to locate", "does not have a Release"), "the mirror lacks this suite; use another one"),
    (
        ("resolving", "Could not connect", "Failed to establish", "Unable to connect", "timed out", "unreachable"),
        "there is no way to the mirror; check the network, and the proxy that apt and pip are told to use",
    ),
)


class Source(NamedTuple):
    """One `deb` entry of apt's configuration."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str


def parse_list(text: str) -> list[Source]:
    """The binary sources of a one-line-style file (sources.list(5)). Lines that break its form are left out."""
    found = []
    for line in text.splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        options, rest = rest.strip(), rest.strip()
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
        words = rest.split()
        if kind == "deb" and len(words) >= 3:
            signed = next((o.partition("=")[2] for o in options.split() if o.startswith("signed-by=")), "")
            found.append(Source(words[0], (words[1],), tuple(words[2:]), signed))
    return found


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary sources of a deb822-style file (sources.list(5)), one for each of an entry's URIs."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = []
    for stanza in "\n".join(line if line.strip() else "" for line in lines).split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            suites, components = (tuple(fields.get(key, "").split()) for key in ("suites", "components"))
            signed = fields.get("signed-by", "")
            found += [Source(uri, suites, components, signed) for uri in fields.get("uris", "").split()]
    return found


def sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """All binary sources that apt is told to use. Read from the files: apt lists them only after an update."""
    parts = sorted((etc / "sources.list.d").glob("*"))
    found = []
    for file in (etc / "sources.list", *parts):
        parse = {".list": parse_list, ".sources": parse_deb822}.get(file.suffix)
        if parse and file.is_file():
            found += parse(file.read_text(errors="replace"))
    return found


def mirror(found: list[Source]) -> str:
    """The URI of Debian's main archive among these sources. Raises CompressError when there is none."""

    def rank(source: Source) -> int:
        if "main" not in source.components:
            return 0
        return 2 * bool(CODENAMES & {*source.suites}) + ("debian-archive" in source.signed_by and _plain(source))

    best = max(found, key=rank, default=None)
    if best is None or not rank(best):
        listing = ", ".join(f"{s.uri} {' '.join(s.suites)}" for s in found) or "none"
        raise CompressError(
            f"apt is not told of a mirror of Debian; its sources are: {listing}",
            code="E-DEBIAN",
            hint="add Debian's archive to apt's sources and install debian-archive-keyring, or name a mirror's URI",
        )
    return best.uri


def fetch(names: list[str], suite: str, architecture: str, uri: str, work: Path, *, closure: bool) -> list[Path]:
    """The .deb files of `names` (with all that they depend on, if `closure`) in the new folder `work`, sorted.

    Raises CompressError: no apt-get, no network, a wrong signature, no such package.
    """
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    keyring = next((f"signed-by={path} " for path in KEYRINGS if path.exists()), "")
    # target, lang: the package index alone, no translations, no descriptions for a software centre
    options = f"{keyring}arch={architecture} target=Packages lang=none"
    (work / "sources.list").write_text(f"deb [{options}] {uri} {suite} main\n")
    (work / "apt.conf").write_text(_configuration(work, architecture))
    apt = ["apt-get", "-q", "-c", str(work / "apt.conf")]
    step(f"reading Debian {suite}'s index", [*apt, "update"], work)
    if closure:
        step(f"fetching {names[0]} for {architecture}", [*apt, "-y", "--download-only", "install", *names], work)
        return sorted((work / "archives").glob("*.deb"))
    step(f"fetching {names[0]} for {architecture}", [*apt, "download", *names], work)
    return sorted(work.glob("*.deb"))


def unpack(deb: Path, target: Path) -> None:
    """All files of a package into `target`; its scripts do not run."""
    step(f"unpacking {deb.name}", ["dpkg-deb", "-x", str(deb), str(target)], deb.parent)


def unpack_one(deb: Path, member: str, target: Path) -> None:
    """The one file `member` of a package as the executable file `target`."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as reader:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.name.removeprefix("./") == member else None
                if content:
                    target.write_bytes(content.read())
                    target.chmod(0o755)
                    break
        reader.kill()
    if not target.exists():
        raise CompressError(f"{deb.name} does not hold {member}", code="E-DEBIAN")


def step(what: str, command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """What the command wrote. Whatever it started is gone on return. Raises CompressError with its last lines."""
    log = folder / "log.txt"
    try:
        status = supervise(command, folder, environment or {**os.environ, "LC_ALL": "C"}, STEP_TIMEOUT_S, log)
    except FileNotFoundError as error:
        raise CompressError(
            f"{what}: there is no `{command[0]}` here",
            code="E-DEBIAN",
            hint="the kit is made on Debian, with its apt-get and dpkg-deb",
        ) from error
    text = log.read_text(errors="replace")
    if status is None:
        raise CompressError(f"{what}: not done within {STEP_TIMEOUT_S:g} s; stopped", code="E-DEBIAN")
    if status:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines
        reason = "; ".join(errors[-3:])[:600] or f"exit status {status}"
        hint = next((hint for signs, hint in HINTS if any(sign in text for sign in signs)), "")
        raise CompressError(f"{what}: {reason}", code="E-DEBIAN", hint=hint)
    return text


def supervise(command: list[str], folder: Path, environment: dict[str, str], timeout_s: float, log: Path) -> int | None:
    """The exit status, None when it took too long. Output goes to `log`; its process group is gone on return."""
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # The group may be empty already when the child was the only one in it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _plain(source: Source) -> bool:
    """Whether it holds a suite itself, not just its updates (`bookworm-security`)."""
    return bool((CODENAMES | ALIASES) & {*source.suites})


def _configuration(work: Path, architecture: str) -> str:
    """An apt of its own in `work`, to be read after the machine's configuration, whose proxies and logins stay."""
    return "\n".join(
        (
            # The machine's hooks after an update and its lists of architectures are not for this apt.
            "#clear APT::Update;",
            "#clear APT::Architectures;",
            'APT::Update::Error-Mode "any";',
            f'APT::Architecture "{architecture}";',
            f'APT::Architectures {{ "{architecture}"; }};',
            'APT::Default-Release "";',
            'APT::Install-Recommends "false";',
            'APT::Install-Suggests "false";',
            # Run as root, apt would download as another user, who may not be able to enter this folder.
            'APT::Sandbox::User "root";',
            'Acquire::Retries "3";',
            f'Dir::State "{work}";',
            'Dir::State::lists "lists/";',
            f'Dir::State::status "{work}/status";',
            f'Dir::Cache "{work}";',
            'Dir::Cache::archives "archives/";',
            f'Dir::Etc::sourcelist "{work}/sources.list";',
            'Dir::Etc::sourceparts "/dev/null";',
            'Dir::Etc::preferences "/dev/null";',
            'Dir::Etc::preferencesparts "/dev/null";',
            "",
        )
    )
