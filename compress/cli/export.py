"""`compress export`: a checkpoint of the user's own as a checked ONNX file."""

from pathlib import Path

import click

from compress.cli import options


@click.command(short_help="A checkpoint as an ONNX file, checked against torch on real images.")
@click.option(
    "--net",
    "spec",
    required=True,
    help="The network that the checkpoint belongs to.",
    shell_complete=options.completion("nets"),
)
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Its weights.")
@click.option(
    "--data", default="digits", show_default=True, help="Data set: gives classes, size and images to check with."
)
@click.option(
    "--mean", default="", help="Mean of the images that it was trained on; else that of the data's train split."
)
@click.option("--std", default="", help="Their standard deviation.")
@click.option("--out", default="model.onnx", show_default=True, type=click.Path(path_type=Path), help="File to write.")
@options.plugin
def command(
    spec: str, checkpoint: Path, data: str, mean: str, std: str, out: Path, plugins: tuple[Path, ...]
) -> None:  # fmt: skip
    """Export a checkpoint as ONNX; it is compared with torch on at least 1,000 real images before it is written.

    \b
    compress export --net resnet56 --checkpoint FILE --data cifar10 --out net.onnx
    """
    from compress import out_place, pipeline
    from compress.recipe import from_values

    recipe = from_values(
        {
            "data": data,
            "teacher": [spec],
            "teacher_checkpoint": [str(checkpoint)],
            "teacher_mean": [mean],
            "teacher_std": [std],
        }
    )
    out_place.check_file(out, checkpoint)
    parity = pipeline.export_teacher(recipe, out, plugins=options.existing_plugins(plugins))
    click.echo(
        f"{out}: top-1 agrees with torch on {parity['top1_agreement_fraction']:.2%} of {parity['images']} images, "
        f"largest difference {parity['max_difference']:.1e}"
    )
    options.next_step("compress", "eval", out, "--data", data)
