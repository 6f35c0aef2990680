"""`compress list`: what there is to choose from."""

from pathlib import Path

import click

from compress import catalog, config
from compress.cli import options


@click.command(
    name="list", short_help="List data sets, networks, methods, pruners, quantizers, runtimes; or recipe keys."
)
@click.argument("kind", required=False)
@click.argument("name", required=False)
@options.plugin
def command(kind: str | None, name: str | None, plugins: tuple[Path, ...]) -> None:
    """List what there is to choose from; with a NAME, its documentation and knobs.

    \b
    compress list
    compress list methods
    compress list methods fitnet
    compress list recipe
    """
    files = options.existing_plugins(plugins)
    if kind == "recipe":
        from compress.recipe import Recipe

        _knobs(Recipe)
        return
    if kind is not None and kind not in catalog.KINDS:
        from compress.errors import unknown

        raise unknown("kind", kind, [*catalog.KINDS, "recipe"])
    if kind and name:
        entry = catalog.load(kind, name, files)
        click.echo((entry.module.__doc__ or "").strip() + "\n")
        _knobs(getattr(entry.module, "Config", config.NoKnobs))
        return
    for each in [kind] if kind else catalog.KINDS:
        click.echo(each)
        for entry_name in catalog.names(each, files):
            click.echo(f"  {entry_name:<14} {catalog.summary(each, entry_name, files)[:62]}")


def _knobs(config_class: type) -> None:
    for knob, default, sentence in config.describe(config_class):
        shown = ",".join(default) if isinstance(default, tuple) else default
        click.echo(f"  {knob:<20} {shown!s:<28} {sentence}")
