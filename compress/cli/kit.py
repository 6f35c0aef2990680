"""`compress kit arm64`: what `compress verify --arch arm64` runs in, made once."""

from pathlib import Path

import click

from compress.cli import options


@click.command(short_help="Fetch what emulates ARM64: qemu, a small Debian, the runtimes' wheels; 182 MB.")
@click.argument("arch", type=click.Choice(["arm64"]))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--mirror", default="", help="URI of a Debian archive [that of this machine's apt].")
def command(arch: str, folder: Path | None, mirror: str) -> None:
    """Make the folder in which the runtimes' aarch64 wheels run under qemu, of the versions that are installed here.

    Needs x86-64 Linux with apt-get and pip, no root, and 800 MB of disk for a minute or two. Without FOLDER it goes
    where `compress verify --arch arm64` looks for it: $COMPRESS_ARM64_KIT, or the store.

    \b
    compress kit arm64
    """
    from compress import arm64, arm64_verify
    from compress.environment import versions

    packages = {name.lower(): number for name, number in versions(*arm64_verify.PACKAGES, "MNN").items()}
    place = folder or arm64.default_folder()
    arm64.build(place, packages, mirror=mirror, tell=lambda text: click.echo(f"  {text}", err=True))
    click.echo(place)
    options.next_step("compress verify --arch arm64 models/RUN")
