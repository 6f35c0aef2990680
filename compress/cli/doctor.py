"""`compress doctor`: what is this machine, which runtimes work here, and where is the store?"""

import click


@click.command(short_help="This machine, the runtimes that work here, versions known to be bad, the store.")
def command() -> None:
    """Show this machine, the runtimes that work here with the pip line of those that do not, and the store.

    Exit code 1 when something that every run needs is missing or known to be bad.
    """
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
    bad = environment.known_bad(env.packages)
    for sentence in bad:
        click.echo(f"bad        {sentence}")
    for name in catalog.names("runtimes"):
        state = bench.runtime_state(name, store.root / "scratch")
        if name == "ort_cpu" and state["unavailable"]:
            bad.append(name)  # every run exports, and checks what it exported there
        click.echo(
            f"{name:<12}{'ok, version ' + state['version'] if not state['unavailable'] else state['unavailable']}"
        )
    if bad:
        sys.exit(1)
