"""`compress verify`: is this copy of an artifact whole, and does it answer here as it did where it was made?"""

from pathlib import Path

import click

from compress.cli import options
from compress.progress import say


@click.command(short_help="Check a run's files, and its golden samples on this machine or on emulated ARM64.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--arch", default="", type=click.Choice(["", "arm64"]), help="Ask on this instruction set, emulated.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: file, whether it is well, what was found.")
def command(folder: Path, arch: str, as_json: bool) -> None:
    """Check every file of models/RUN against its manifest, then ask the golden samples of each ONNX file here; or of
    all files that ARM64's runtimes read, converted ones too, emulated (answers only: no time is taken).

    \b
    compress verify models/RUN
    compress verify --arch arm64 models/RUN
    """
    import json

    from compress import arm64, arm64_verify, files
    from compress.errors import CompressError
    from compress.store import Store

    scratch = Store.default().root / "scratch"
    if not arch:
        checked = files.verify(folder, scratch)
        if as_json:
            click.echo(json.dumps([{"file": name, "ok": True, "found": found} for name, found in checked], indent=1))
        for name, found in [] if as_json else checked:
            click.echo(f"ok  {name:<22} {found}")
        say(f"{folder} is whole and answers here as it did where it was made")
        options.next_step("compress", "bench", folder, "--tier", "standard")
        return
    rows = arm64_verify.verify(folder, arm64.default_folder(), scratch)
    if as_json:
        click.echo(json.dumps([{"file": name, "ok": well, "found": said} for name, said, well in rows], indent=1))
    for name, said, well in [] if as_json else rows:
        click.echo(f"{'ok' if well else 'failed':<7} {name}: {said}")
    if bad := [name for name, _, well in rows if not well]:
        raise CompressError(
            f"{len(bad)} of {len(rows)} answer otherwise on ARM64: {'; '.join(bad)}",
            code="E-ARM64",
            hint="do not ship these to phones or boards; `compress convert` offers other runtimes",
        )
    if (folder / "manifest.json").is_file():  # what `compress convert` made is ready for an app
        options.next_step("compress", "bench", folder, "--tier", "standard")
