"""`compress eval`: accuracy of files on a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli import options
from compress.progress import say

if TYPE_CHECKING:
    from compress.types import Artifact


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
@click.option("--corruptions", is_flag=True, help="On noisy, blurred, JPEG, bright and flat images too.")
@options.on
@click.option("--on-bad", default="fail", show_default=True, help="An unreadable image: fail or skip.")
@click.option("--json", "as_json", is_flag=True, help="Counts as JSON instead of the table.")
def command(
    artifacts: tuple[Path, ...], data: str, split: str, runtime: str, corruptions: bool, on: str, on_bad: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Accuracy of the very bytes of ONNX files, or of a run's, on every image of a split.

    \b
    compress eval models/RUN
    compress eval a.onnx b.onnx --data PHOTOS
    compress eval models/RUN --corruptions
    compress eval models/RUN --on ssh://pi@board.local
    """
    import json

    from compress import adb, catalog, conversion, files, plan, robustness
    from compress.errors import UsageError
    from compress.store import Store

    if adb.is_address(on):
        raise UsageError(
            "a phone's benchmark programs tell how long a file takes, not what it answers: eval takes no --on adb:",
            code="E-OPTION-CONFLICT",
            hint="`compress verify --arch arm64 models/RUN` asks its files on that instruction set, emulated",
        )
    catalog.load("runtimes", runtime)
    files.require_data(artifacts, data)
    store = Store.default()
    scratch = store.root / "scratch"
    found = files.open_any(artifacts, scratch)
    known = files.data_for(artifacts, found, data, on_bad)
    dataset = getattr(plan.load_data(known, store), split)
    rows, base, stood = [], None, []
    with options.host(on) as host:
        for artifact in found:
            files.refuse_other_classes(artifact, artifact.path, dataset)
            made = conversion.converted(store, artifact, runtime)[0] if conversion.converts(runtime) else artifact
            row, logits = files.accuracy_row(made, runtime, dataset, scratch, base, host)
            base = logits if base is None else base
            rows.append(row)
            if corruptions:
                right = robustness.right_answers(made, runtime, dataset, scratch, host=host)
                stood.append((logits.argmax(1) == dataset.labels, right))
                row["corruptions"] = robustness.facts(*stood[-1], *stood[0])
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _show(found, rows)
    if corruptions and not as_json:
        _show_corruptions(found, rows)
    _say_verdicts(found, rows, known.max_drop)
    options.next_step("compress", "bench", *artifacts, *(["--data", data] if data else []))


def _show(found: "list[Artifact]", rows: list[dict[str, Any]]) -> None:
    from compress import stats
    from compress.report import format as fmt
    from compress.report.estimates import measured

    click.echo(f"{'file':<22} {'images':>7} {'right':>7}  top-1 (95 %)          same as first")
    for artifact, row in zip(found, rows, strict=True):
        interval = fmt.percent_interval(measured(row["correct"] / row["n"], *stats.wilson(row["correct"], row["n"])))
        agree = f"{row['agree'] / row['n']:.2%}"
        click.echo(f"{artifact.path.name[:22]:<22} {row['n']:>7} {row['correct']:>7}  {interval:<21} {agree}")


def _say_verdicts(found: "list[Artifact]", rows: list[dict[str, Any]], margin_points: float) -> None:
    """Of each file but the first, whether its top-1 is the first's but for `margin_points`, on the same images."""
    from compress import stats
    from compress.report import format as fmt
    from compress.report.estimates import measured

    for artifact, row in list(zip(found, rows, strict=True))[1:]:
        lost = stats.paired_difference(row["teacher_only"], row["this_only"], row["n"])
        verdict = stats.accuracy_verdict(*lost[1:], margin_points / 100)
        said = f"{verdict}, {fmt.points_interval(measured(*lost))}; allowed to lose {margin_points:g}"
        say(f"{artifact.path.name} against {found[0].path.name}: {said}")


def _show_corruptions(found: "list[Artifact]", rows: list[dict[str, Any]]) -> None:
    """Top-1 by kind, of three severities together; what the mean corruption costs, and how much more than the first."""
    kinds = list(rows[0]["corruptions"]["kinds"])
    click.echo(f"\n{'top-1, %':<18}" + "".join(f"{kind:>11}" for kind in kinds) + "   lost")
    for artifact, row in zip(found, rows, strict=True):
        facts = row["corruptions"]
        shares = [100 * sum(right) / (len(right) * facts["n"]) for right in facts["kinds"].values()]
        values = "".join(f"{share:>11.1f}" for share in shares)
        click.echo(f"{artifact.path.name[:18]:<18}{values}{facts['lost_points']:>7.1f}")
    for artifact, row in list(zip(found, rows, strict=True))[1:]:
        facts = row["corruptions"]
        if facts["low"] is not None:
            extra = f"{facts['extra_points']:+.1f} points ({facts['low']:+.1f} to {facts['high']:+.1f})"
            click.echo(f"{artifact.path.name[:24]} loses {extra} against the first")
