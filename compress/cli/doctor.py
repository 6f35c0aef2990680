"""`compress doctor`: what is this machine, which runtimes work here, and where is the store?"""

from typing import Any

import click

from compress.cli import options


@click.command(short_help="This machine, the runtimes that work here, versions known to be bad, the store.")
@click.option("--probe", is_flag=True, help="Run a tiny network in each: the settings that they really take. Minutes.")
def command(probe: bool) -> None:
    """Show this machine, the runtimes that work here with the pip line of those that do not, and the store.

    \b
    compress doctor
    compress doctor --probe

    Exit code 1 when something that every run needs is missing or known to be bad.
    """
    import shutil
    import sys

    from compress import bench, catalog, environment
    from compress.store import Store, limit_bytes

    env = environment.capture()
    click.echo(f"processor  {env.cpu_model}; {', '.join(env.isa) or 'no instruction sets of interest'}")
    quota = f"quota {env.cpu_quota:g}" if env.cpu_quota else "no quota"
    click.echo(f"threads    {environment.allowed_threads()} allowed ({env.cores_allowed} cores, {quota})")
    click.echo(f"memory     {env.memory_bytes / 1e9:.1f} GB; gpu {env.gpu or 'none'}; Python {env.python}")
    store = Store.default()
    used = sum(size for _, size, _, _ in store.entries())
    click.echo(
        f"store      {store.root}: {used / 1e9:.2f} of {limit_bytes() / 1e9:.0f} GB (COMPRESS_STORE, COMPRESS_STORE_GB)"
    )
    free = shutil.disk_usage(store.root).free
    governor = environment.governor()
    click.echo(f"disk       {free / 1e9:.1f} GB free for it" + (f"; CPU governor {governor}" if governor else ""))
    bad = environment.known_bad(env.packages)
    for sentence in bad:
        click.echo(f"bad        {sentence}")
    width = max(map(len, catalog.names("runtimes"))) + 2
    for name in catalog.names("runtimes"):
        state = bench.runtime_state(name)
        if name == "ort_cpu" and state["unavailable"]:
            bad.append(name)  # every run exports, and checks what it exported there
        if state["unavailable"]:
            click.echo(f"{name:<{width}}{state['unavailable']}")
            continue
        module = catalog.load("runtimes", name).module
        takes = f"; takes {', '.join(module.TOLERANCE)}" if module.TOLERANCE else ""
        click.echo(f"{name:<{width}}ok, version {state['version']}{takes}")
        for sentence in notes(module, state["version"]):
            click.echo(click.wrap_text(sentence, 80, " " * width, " " * width))
        if probe and module.TOLERANCE and module.FORMAT != "torch":
            _probe(name, store, bad, " " * width)
    run = ("compress", "run", "--student", "mobilenet", "--kd", "fitnet")
    options.next_step(*(run if probe else ("compress", "doctor", "--probe")))
    if bad:
        sys.exit(1)


def notes(module: Any, version: str) -> list[str]:
    """What a user of this runtime should know: a converter that is missing, an error of this version."""
    from importlib import util

    needed, note = getattr(module, "CONVERTS_WITH", ""), getattr(module, "CONVERTER_NOTE", "")
    name = needed.partition(">")[0].replace("-", "_")
    said = "; ".join(filter(None, (f"to convert for it: pip install '{needed}'", note)))
    missing = [said] if needed and not util.find_spec(name) else []
    known = getattr(module, "KNOWN_ISSUES", {})
    return missing + ([known[version]] if version in known else [])


def _probe(name: str, store: Any, bad: list[str], margin: str) -> None:
    from compress import probing
    from compress.errors import CompressError

    for threads in (1, 2):
        try:
            found = probing.settings(name, store, threads)
        except CompressError as error:
            if name == "ort_cpu":
                bad.append(name)
            click.echo(click.wrap_text(f"asked for {threads} threads: {error.message}", 80, margin, margin + "  "))
            return
        words = f"asked for {threads}: " + ", ".join(f"{key} {value}" for key, value in found.items())
        click.echo(click.wrap_text(words, 80, margin, margin + "  "))
