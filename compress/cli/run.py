"""`compress run`: the whole chain."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from compress.cli import options
from compress.progress import say


@click.command(short_help="Run the whole chain: distil, prune, quantize, export, measure, report.")
@options.recipe_flags
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), metavar="FILE", help="A recipe of an earlier run."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of a recipe; see `compress list recipe`."
)
@click.option("--download", is_flag=True, help="Let a data set be fetched from the network.")
@options.plugin
@click.option("--dry-run", is_flag=True, help="Print the plan, what is done already and the time it would take.")
def command(
    recipe_file: Path | None, settings: tuple[str, ...], download: bool, plugins: tuple[Path, ...], dry_run: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Run the whole chain: distil, prune, quantize, export, measure, report.

    \b
    compress run --student mobilenet --kd fitnet --quantize int8
    compress run --data cifar10 --download --kd kd:temperature=4 --prune 0.3
    compress run --data PHOTOS --student shufflenet --set batch_size=32 --dry-run

    Writes models/RUN/ and reports/RUN/. Finished steps are kept in the store and never run again.
    """
    chosen = options.to_recipe(flags, recipe_file, settings, download)
    files = options.existing_plugins(plugins)
    if dry_run:
        from compress.pipeline import dry_run as plan_only

        with options.pointing_into(recipe_file):
            planned = plan_only(chosen, plugins=files)
        click.echo(planned)
        typed = [word for word in sys.argv[1:] if word != "--dry-run"]
        options.next_step("compress", *typed)
        return
    from compress.pipeline import run
    from compress.report import summary

    with options.pointing_into(recipe_file):
        result = run(chosen, plugins=files, command=shlex.join(["compress", *sys.argv[1:]]))
    click.echo(summary(result.document))
    if result.reused:
        say("nothing to do: this run was finished before")
    say(f"wrote  {result.models}/ and {result.reports}/report.html")
    options.next_step("compress", "verify", result.models)
