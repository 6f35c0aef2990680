"""`compress eval`: accuracy of files on a data set."""

from pathlib import Path

import click

from compress.cli import options


@click.command(short_help="Accuracy of ONNX files, or of a run, on a data set.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", default="", help="Data set: a name, or a folder of images; a run knows its own.")
@click.option("--split", default="report", show_default=True, type=click.Choice(["report", "select", "train"]))
@click.option(
    "--runtime",
    default="ort_cpu",
    show_default=True,
    help="Runtime to ask.",
    shell_complete=options.completion("runtimes"),
)
@options.on
@click.option("--on-bad", default="fail", show_default=True, help="An unreadable image: fail or skip.")
@click.option("--json", "as_json", is_flag=True, help="Counts as JSON instead of the table.")
def command(
    artifacts: tuple[Path, ...], data: str, split: str, runtime: str, on: str, on_bad: str, as_json: bool
) -> None:  # fmt: skip
    """Accuracy of the very bytes of ONNX files, or of a run's, on every image of a split.

    \b
    compress eval models/RUN
    compress eval a.onnx b.onnx --data PHOTOS
    compress eval models/RUN --on ssh://pi@board.local
    """
    import json

    from compress import catalog, conversion, files, plan, stats
    from compress.store import Store

    catalog.load("runtimes", runtime)
    files.require_data(artifacts, data)
    store = Store.default()
    scratch = store.root / "scratch"
    found = files.open_any(artifacts, scratch)
    dataset = getattr(plan.load_data(files.data_for(artifacts, found, data, on_bad), store), split)
    rows, base = [], None
    with options.host(on) as host:
        for artifact in found:
            files.refuse_other_classes(artifact, artifact.path, dataset)
            made = conversion.converted(store, artifact, runtime)[0] if conversion.converts(runtime) else artifact
            row, logits = files.accuracy_row(made, runtime, dataset, scratch, base, host)
            base = logits if base is None else base
            rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'file':<28} {'images':>7} {'right':>7}  top-1 (95 %)          same answer as the first")
    for artifact, row in zip(found, rows, strict=True):
        low, high = stats.wilson(row["correct"], row["n"])
        interval = f"{row['correct'] / row['n']:.2%} ({low:.1%}-{high:.1%})"
        agree = f"{row['agree'] / row['n']:.2%}"
        click.echo(f"{artifact.path.name[:28]:<28} {row['n']:>7} {row['correct']:>7}  {interval:<21} {agree}")
    options.next_step(f"compress bench {' '.join(map(str, artifacts))}" + (f" --data {data}" if data else ""))
