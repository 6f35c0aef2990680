"""`compress report`: print a report or render it again, and compare two."""

from pathlib import Path

import click

from compress.cli import options
from compress.progress import say


class _Default(click.Group):
    """`compress report FOLDER` is `compress report show FOLDER`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = (*self.commands, *self.get_help_option_names(ctx))
        return super().parse_args(ctx, args if args and args[0] in own else ["show", *args])


@click.group(cls=_Default, short_help="Print a run's report, render it again, or compare two.")
def command() -> None:
    """Print the report in SOURCE (report.json, or the folder that holds it), or compare two.

    \b
    compress report reports/RUN
    compress report reports/RUN --format md > summary.md
    compress report diff reports/BEFORE reports/AFTER
    """


@command.command(short_help="Print a report (the default); with --out render its pages again.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to render into; without, nothing is written.")
@click.option("--format", "kind", default="text", show_default=True, type=click.Choice(["text", "md", "json"]))
def show(source: Path, out: Path | None, kind: str) -> None:
    """Print the report in SOURCE (report.json, or the folder that holds it)."""
    from compress import report
    from compress.report import markdown

    path = options.report_file(source)
    document = report.load(path)
    render = {"text": report.summary, "md": markdown.render, "json": report.to_json}[kind]
    click.echo(render(document))
    if out:
        report.write({k: v for k, v in document.items() if k != "derived"}, out)
        say(f"wrote  {out / 'report.html'}")
    limit = ("--max-drop", "1") if document["accuracy"] else ("--max-latency", "3ms")
    options.next_step("compress", "gate", out or source, *limit)


@command.command(short_help="Two reports: what became faster, better or smaller.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="text", show_default=True, type=click.Choice(["text", "md", "json"]))
def diff(before: Path, after: Path, kind: str) -> None:
    """Compare two reports, each a report.json or the folder that holds it.

    Latency is compared as the speed-up over the teacher in the same runtime, which changes least from hour to hour and
    from machine to machine; each change has its interval, and what cannot be compared says why.
    """
    import json

    from compress import report
    from compress.report import compared, compared_text

    found = compared.compare_reports(report.load(options.report_file(before)), report.load(options.report_file(after)))
    if kind == "json":
        click.echo(json.dumps(found, indent=1, sort_keys=True, allow_nan=False))
    else:
        click.echo({"text": compared_text.text, "md": compared_text.markdown}[kind](found))
    options.next_step("compress", "gate", after, "--against", before)
