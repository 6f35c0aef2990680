"""`compress verify`: is this copy of an artifact whole, and does it answer here as it did where it was made?"""

from pathlib import Path

import click

from compress.cli import options


@click.command(short_help="Check a run's files against its manifest, and its golden samples on this machine.")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Check every file of models/RUN against its manifest, then ask the golden samples of each ONNX file here.

    \b
    compress verify models/RUN
    """
    from compress import files
    from compress.store import Store

    for name, found in files.verify(folder, Store.default().root / "scratch"):
        click.echo(f"ok  {name:<22} {found}")
    click.echo(f"{folder} is whole and answers here as it did where it was made", err=True)
    options.next_step(f"compress bench {folder} --tier standard")
