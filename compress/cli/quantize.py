"""`compress quantize`: an ONNX file of the user's own, quantized and judged."""

from pathlib import Path
from typing import Any

import click

from compress.cli import options


@click.command(short_help="An ONNX file of your own in int8 (or float16), and what that cost.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data set: a name, or a folder of images; train calibrates, report judges.")
@click.option(
    "--quantize",
    default="int8_auto",
    show_default=True,
    help="Quantizer: see `compress list quantizers`.",
    shell_complete=options.completion("quantizers"),
)
@click.option("--mean", default="", help="Mean of the images in [0,1], if the file does not normalise by itself.")
@click.option("--std", default="", help="Their standard deviation.")
@click.option("--max-drop", default="1", show_default=True, help="Points of top-1 that it may cost on select.")
@click.option("--target", default="generic", show_default=True, help="Where it will run: see `compress list targets`.")
@click.option("--on-bad", default="fail", show_default=True, help="An unreadable image: fail or skip.")
@click.option("--out", default=None, type=click.Path(path_type=Path), help="File to write [MODEL.PRECISION.onnx].")
def command(
    model: Path, data: str, quantize: str, mean: str, std: str, max_drop: str, target: str, on_bad: str,
    out: Path | None,
) -> None:  # fmt: skip
    """Quantize an ONNX classifier, calibrated on the data's train images, and count what it costs on the report split.

    \b
    compress quantize model.onnx --data PHOTOS
    compress quantize model.onnx --data PHOTOS --mean .5,.5,.5 --std .5,.5,.5
    """
    from compress import catalog, files, out_place, qdq, quantize_file, stats
    from compress.recipe import as_dict, from_values
    from compress.report import format as fmt
    from compress.report.estimates import measured
    from compress.report.rows_elsewhere import elsewhere_rows
    from compress.report.rows_ladder import ladder_rows
    from compress.store import Store

    precision = catalog.load("quantizers", quantize).module.PRECISION
    written = out or model.with_suffix(f".{precision}.onnx")
    if out or model.exists():  # of a model that is not there its reader says so
        out_place.check_file(written, model)
    store = Store.default()
    found = files.open_onnx(model, store.root / "scratch")
    known = files.data_for((), [found], data, on_bad)
    values: dict[str, Any] = {"quantize": quantize, "target": target, "max_drop": max_drop}
    values |= {"teacher_mean": [mean], "teacher_std": [std]}
    recipe = from_values({**as_dict(known), **values})
    done = quantize_file.quantize_file(found, recipe, written, store=store)
    for row in ladder_rows({"stages": [{"ladder": done.rungs}]}):
        cost = fmt.points_interval(row["cost_on_select_fraction"]) if row["word"] != "left out" else ""
        click.echo(f"{row['word']:<9} {row['rung']:<28} {cost:<26} {row['what']}")
    counts = done.counts
    lost = stats.paired_difference(counts["baseline_only"], counts["this_only"], counts["n"])
    top1 = measured(counts["correct"] / counts["n"], *stats.wilson(counts["correct"], counts["n"]))
    kinds = qdq.in_float(written) if done.artifact.precision == "int8" else {}
    floats = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    click.echo(
        f"{written}: {done.artifact.size_bytes:,} bytes of {done.parent.size_bytes:,}; top-1 "
        f"{fmt.percent_interval(top1)} of {fmt.count(counts['n'])} report images, "
        f"{fmt.points_interval(measured(*lost))}"
    )
    click.echo(f"it {'pays' if done.pays else 'does not pay'}: it {done.figures}")
    if done.lost_on_select_points > recipe.max_drop:
        click.echo(
            f"warning: it loses {done.lost_on_select_points:.2f} points on the select images, allowed were "
            f"{recipe.max_drop:g}; " + _further(quantize)
        )
    if floats:
        click.echo(f"in float: {floats}")
    for row in elsewhere_rows({"elsewhere": done.elsewhere}):
        cost = f", {fmt.points_interval(row['cost_fraction'])} on {row['n']} images" if row["n"] else ""
        click.echo(f"{row['where']}: {row['how']}{cost}" + (f"; {row['words']}" if row["words"] else ""))
    options.next_step("compress", "bench", model, written, "--data", data)


def _further(quantize: str) -> str:
    if quantize.startswith("int8_auto"):
        return "the network behind the file could be repaired further by `compress run`"
    return "--quantize int8_auto tries repairs"
