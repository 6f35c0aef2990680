"""`compress kit`: what one runtime or check needs and pip does not have, fetched once."""

from pathlib import Path

import click

from compress.cli import options
from compress.progress import say


@click.command(short_help="Fetch emulated ARM64, ONNX Runtime Web, or an environment for LiteRT's converter.")
@click.argument("kind", type=click.Choice(["arm64", "web", "litert"]))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--mirror", default="", help="arm64: URI of a Debian archive [that of this machine's apt].")
def command(kind: str, folder: Path | None, mirror: str) -> None:
    """Make a folder of what cannot be installed beside this package.

    \b
    arm64   qemu, a small Debian and the runtimes' aarch64 wheels, of the versions
            installed here; 182 MB. Needs x86-64 Linux, apt-get and pip, no root.
    web     ONNX Runtime Web for a browser or Node; 14 MB. Needs npm.
    litert  an environment of its own for LiteRT's converter, with the torch
            that it wants; 6.6 GB. Where it is made, it converts. Not
            needed where pip install 'compress-to-onnx[litert-convert]' left
            your torch as it was.

    Without FOLDER it goes where it is looked for: $COMPRESS_ARM64_KIT, $COMPRESS_WEB_KIT, $COMPRESS_LITERT_KIT, or the
    store.

    \b
    compress kit arm64
    compress kit web
    compress kit litert
    """
    if mirror and kind != "arm64":
        raise click.BadParameter(
            "is for the arm64 kit; npm's and pip's own configurations name their registries", param_hint="--mirror"
        )
    if kind == "arm64":
        _arm64(folder, mirror)
    elif kind == "web":
        _web(folder)
    else:
        _litert(folder)


def _arm64(folder: Path | None, mirror: str) -> None:
    from compress import arm64, arm64_verify
    from compress.environment import versions

    packages = {name.lower(): number for name, number in versions(*arm64_verify.PACKAGES, "MNN").items()}
    place = folder or arm64.default_folder()
    arm64.build(place, packages, mirror=mirror, tell=_tell)
    click.echo(place)
    options.next_step("compress", "verify", "--arch", "arm64", "models/RUN")


def _web(folder: Path | None) -> None:
    from compress import web_kit

    place = folder or web_kit.default_folder()
    web_kit.build(place, tell=_tell)
    click.echo(place)
    options.next_step("compress", "doctor", "--probe")


def _litert(folder: Path | None) -> None:
    from compress import litert_kit
    from compress.runtimes import litert

    place = folder or litert_kit.default_folder()
    litert_kit.build(place, litert.CONVERTS_WITH, tell=_tell)
    click.echo(place)
    options.next_step("compress", "convert", "models/RUN", "--to", "litert", "--out", "app")


def _tell(text: str) -> None:
    say(f"  {text}")
