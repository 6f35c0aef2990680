"""`compress report`: render a report again, or print it."""

from pathlib import Path

import click

from compress.cli import options


@click.command(short_help="Print a run's report; render its Markdown and HTML again.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to render into; without, nothing is written.")
@click.option("--format", "kind", default="text", show_default=True, type=click.Choice(["text", "md", "json"]))
def command(source: Path, out: Path | None, kind: str) -> None:
    """Print the report in SOURCE (report.json, or the folder that holds it).

    \b
    compress report reports/RUN
    compress report reports/RUN --format md > summary.md
    """
    from compress import report
    from compress.report import markdown

    path = source / "report.json" if source.is_dir() else source
    document = report.load(path)
    show = {"text": report.summary, "md": markdown.render, "json": report.to_json}[kind]
    click.echo(show(document))
    if out:
        report.write({k: v for k, v in document.items() if k != "derived"}, out)
        click.echo(f"wrote  {out / 'report.html'}", err=True)
    options.next_step(f"open {path.with_name('report.html')}")
