"""`compress kit`: what one runtime or check needs and pip does not have, fetched once."""

from pathlib import Path

import click

from compress.cli import options
from compress.progress import say


@click.command(short_help="Fetch what pip does not have: an emulated ARM64, or ONNX Runtime Web.")
@click.argument("kind", type=click.Choice(["arm64", "web"]))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--mirror", default="", help="arm64: URI of a Debian archive [that of this machine's apt].")
def command(kind: str, folder: Path | None, mirror: str) -> None:
    """Make a folder of files that come from elsewhere than the Python index.

    \b
    arm64  qemu, a small Debian and the runtimes' aarch64 wheels, of the versions
           installed here; 182 MB. Needs x86-64 Linux, apt-get and pip, no root.
    web    ONNX Runtime Web for a browser or Node; 14 MB. Needs npm.

    Without FOLDER it goes where it is looked for: $COMPRESS_ARM64_KIT, $COMPRESS_WEB_KIT, or the store.

    \b
    compress kit arm64
    compress kit web
    """
    if kind == "web":
        _web(folder, mirror)
    else:
        _arm64(folder, mirror)


def _arm64(folder: Path | None, mirror: str) -> None:
    from compress import arm64, arm64_verify
    from compress.environment import versions

    packages = {name.lower(): number for name, number in versions(*arm64_verify.PACKAGES, "MNN").items()}
    place = folder or arm64.default_folder()
    arm64.build(place, packages, mirror=mirror, tell=_tell)
    click.echo(place)
    options.next_step("compress", "verify", "--arch", "arm64", "models/RUN")


def _web(folder: Path | None, mirror: str) -> None:
    from compress import web_kit

    if mirror:
        raise click.BadParameter(
            "is for the arm64 kit; npm's own configuration names the registry", param_hint="--mirror"
        )
    place = folder or web_kit.default_folder()
    web_kit.build(place, tell=_tell)
    click.echo(place)
    options.next_step("compress", "doctor", "--probe")


def _tell(text: str) -> None:
    say(f"  {text}")
