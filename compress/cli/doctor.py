"""`compress doctor`: what is this machine, which runtimes work here, and where is the store?"""

from typing import TYPE_CHECKING, Any

import click

from compress.cli import options

if TYPE_CHECKING:
    from compress.store import Store
    from compress.types import Environment


@click.command(short_help="This machine, the runtimes that work here, versions known to be bad, the store.")
@click.option("--probe", is_flag=True, help="Run a tiny network in each: the settings that they really take. Minutes.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, when all is known.")
def command(probe: bool, as_json: bool) -> None:
    """Show this machine, the runtimes that work here with the pip line of those that do not, and the store.

    \b
    compress doctor
    compress doctor --probe

    Exit code 1 when something that every run needs is missing or known to be bad.
    """
    import json
    import sys
    from concurrent.futures import ThreadPoolExecutor

    from compress import bench, catalog, environment
    from compress.store import Store

    store, env = Store.default(), environment.capture()
    machine = _machine(env, store)
    bad = environment.known_bad(env.packages)
    if not as_json:
        for sentence in [*_of_machine(machine), *(f"bad        {sentence}" for sentence in bad)]:
            click.echo(sentence)
    names = catalog.names("runtimes")
    runtimes, width = [], max(map(len, names)) + 2
    # each is asked in a process of its own, which spends seconds on imports
    with ThreadPoolExecutor(machine["threads"]) as pool:
        for name, state in zip(names, pool.map(bench.runtime_state, names), strict=True):
            runtimes.append(_runtime(name, state, store, probe))
            if not as_json:
                for sentence in _of_runtime(runtimes[-1], width):
                    click.echo(sentence)
    if as_json:
        click.echo(json.dumps({"machine": machine, "known_bad": bad, "runtimes": runtimes}, indent=1))
    run = ("compress", "run", "--student", "mobilenet", "--kd", "fitnet")
    options.next_step(*(run if probe else ("compress", "doctor", "--probe")))
    # every run exports, and checks what it exported there
    needed = next(row for row in runtimes if row["name"] == "ort_cpu")
    if bad or needed["unavailable"] or any("error" in row for row in needed.get("settings", [])):
        sys.exit(1)


def _machine(env: "Environment", store: "Store") -> dict[str, Any]:
    import shutil

    from compress import environment
    from compress.store import limit_bytes

    return {
        "cpu_model": env.cpu_model, "isa": list(env.isa), "threads": environment.allowed_threads(),
        "cores_allowed": env.cores_allowed, "cpu_quota": env.cpu_quota, "memory_bytes": env.memory_bytes,
        "gpu": env.gpu, "python": env.python, "governor": environment.governor(), "store": str(store.root),
        "store_bytes": sum(size for _, size, _, _ in store.entries()), "store_limit_bytes": limit_bytes(),
        "disk_free_bytes": shutil.disk_usage(store.root).free,
    }  # fmt: skip


def _of_machine(found: dict[str, Any]) -> list[str]:
    quota = f"quota {found['cpu_quota']:g}" if found["cpu_quota"] else "no quota"
    governor = f"; CPU governor {found['governor']}" if found["governor"] else ""
    used, limit, free = (found[key] / 1e9 for key in ("store_bytes", "store_limit_bytes", "disk_free_bytes"))
    return [
        f"processor  {found['cpu_model']}; {', '.join(found['isa']) or 'no instruction sets of interest'}",
        f"threads    {found['threads']} allowed ({found['cores_allowed']} cores, {quota})",
        f"memory     {found['memory_bytes'] / 1e9:.1f} GB; gpu {found['gpu'] or 'none'}; Python {found['python']}",
        f"store      {found['store']}: {used:.2f} of {limit:.0f} GB (COMPRESS_STORE, COMPRESS_STORE_GB)",
        f"disk       {free:.1f} GB free for it{governor}",
    ]


def _runtime(name: str, state: dict[str, Any], store: "Store", probe: bool) -> dict[str, Any]:
    """`unavailable` (the reason, or ""), version, precisions, notes; probed, the settings in effect or the error."""
    from compress import catalog

    module = catalog.load("runtimes", name).module
    row = {"name": name, "unavailable": state["unavailable"], "version": state["version"]}
    if state["unavailable"]:
        return row
    row |= {"precisions": list(module.TOLERANCE), "notes": notes(module, state["version"])}
    if probe and module.TOLERANCE and module.FORMAT != "torch":
        row["settings"] = _probed(name, store)
    return row


def _of_runtime(row: dict[str, Any], width: int) -> list[str]:
    if row["unavailable"]:
        return [f"{row['name']:<{width}}{row['unavailable']}"]
    takes = f"; takes {', '.join(row['precisions'])}" if row["precisions"] else ""
    lines = [f"{row['name']:<{width}}ok, version {row['version']}{takes}"]
    margin = " " * width
    lines += [click.wrap_text(sentence, 80, margin, margin) for sentence in row["notes"]]
    for found in row.get("settings", []):
        said = found.get("error") or ", ".join(f"{key} {value}" for key, value in found["in_effect"].items())
        asked = f"{found['asked_threads']}" + " threads" * ("error" in found)
        lines.append(click.wrap_text(f"asked for {asked}: {said}", 80, margin, margin + "  "))
    return lines


def _probed(name: str, store: "Store") -> list[dict[str, Any]]:
    """For 1 and 2 threads, the settings in effect, up to the first error."""
    from compress import probing
    from compress.errors import CompressError

    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        try:
            rows.append({"asked_threads": threads, "in_effect": probing.settings(name, store, threads)})
        except CompressError as error:
            return [*rows, {"asked_threads": threads, "error": error.message}]
    return rows


def notes(module: Any, version: str) -> list[str]:
    """What a user of this runtime should know: a converter that is missing, an error of this version."""
    from importlib import util

    needed, note = getattr(module, "CONVERTS_WITH", ""), getattr(module, "CONVERTER_NOTE", "")
    name = needed.partition(">")[0].replace("-", "_")
    said = "; ".join(filter(None, (f"to convert for it: pip install '{needed}'", note)))
    kit = module.kit() if hasattr(module, "kit") else None
    missing = [said] if needed and not util.find_spec(name) and not kit else []
    missing += [f"converts in the environment {kit}"] if kit else []
    known = getattr(module, "KNOWN_ISSUES", {})
    return missing + ([known[version]] if version in known else [])
