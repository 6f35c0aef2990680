"""`compress convert`: files for other runtimes, each in a folder that an app developer can take."""

from pathlib import Path

import click

from compress.cli import options
from compress.progress import say


@click.command(short_help="An ONNX file for ncnn, LiteRT, ExecuTorch, MNN …, checked, with an example that runs.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    help="Runtimes, apart by commas: see `compress list runtimes`.",
    shell_complete=options.completion("runtimes"),
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder; each runtime gets one in it.")
@click.option("--stage", default="", help="Which file of a run: student, int8 … [the one that ships].")
@click.option("--data", default="", help="Data set to compare the answers on; a run knows its own.")
@click.option("--on-bad", default="fail", show_default=True, help="An unreadable image: fail or skip.")
def command(model: Path, to: str, out: Path, stage: str, data: str, on_bad: str) -> None:
    """Convert an ONNX file, or what a run ships, and keep what answers as the ONNX file does on real images.

    \b
    compress convert models/RUN --to ncnn,litert --out app
    compress convert model.onnx --to executorch --data PHOTOS --out app
    """
    from compress import convert_file, files
    from compress.errors import Unmeasurable
    from compress.report import format as fmt
    from compress.store import Store

    store = Store.default()
    files.require_data((model,), data)
    found = files.open_any((model,), store.root / "scratch")
    artifact = convert_file.pick(found, stage)
    recipe = files.data_for((model,), found, data, on_bad)
    runtimes = tuple(dict.fromkeys(filter(None, (name.strip() for name in to.split(",")))))
    done = convert_file.convert_file(artifact, runtimes, recipe, out, store)
    for one in done:
        gate = one.offer.gate
        compared = (
            f"; same answer as {gate['reference']} on {gate['agreement_fraction']:.2%} of {gate['images']} images, "
            f"logits within {fmt.power(gate['difference_of_spread'])} of their spread"
            if gate and one.folder
            else ""
        )
        notes = "".join(f"; {note}" for note in one.offer.conversion.get("notes", []))
        said = f"{fmt.size(one.offer.artifact.size_bytes)}{compared}{notes}" if one.folder else one.offer.failure
        click.echo(f"{'ok' if one.folder else 'failed':<7} {one.offer.runtime:<12} {said}")
    failed = [one.offer.runtime for one in done if not one.folder]
    written = [one.folder for one in done if one.folder]
    if written:
        say(f"wrote  {', '.join(f'{folder}/' for folder in written)}")
        python = written[0] / "example.py"
        options.next_step(*(("python", python) if python.exists() else ("node", written[0] / "example.mjs")))
    if failed:
        raise Unmeasurable(
            f"no file for {', '.join(failed)}", code="E-CONVERSION", hint="the reason is above; see `compress doctor`"
        )
