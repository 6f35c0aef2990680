"""`compress bench`: latency of files, interleaved, with an A/A control."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compress.cli import options
from compress.progress import say

if TYPE_CHECKING:
    from compress.types import Scenario

MOST_FPS = 10_000


@click.command(short_help="Latency of ONNX files, or of a run: interleaved rounds, intervals, A/A control.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", default="", help="Data set that the images come from; a run knows its own.")
@click.option("--synthetic", is_flag=True, help="Random images instead of real ones; the report says so.")
@click.option("--tier", default="quick", show_default=True, help="smoke, quick, standard or rigorous.")
@click.option(
    "--runtimes",
    default="ort_cpu",
    show_default=True,
    help="Runtimes, apart by commas.",
    shell_complete=options.completion("runtimes"),
)
@options.threads
@click.option("--batch", "batches", default="1", show_default=True, help="Batch sizes, apart by commas.")
@click.option("--fps", type=float, default=0.0, help="Queries at this rate too, counted from when they were due.")
@click.option("--deadline", default="", help="With --fps, the time for an answer: 33ms [until the next is due].")
@click.option(
    "--sustained",
    default="",
    metavar="TIME",
    help="Each cell without a pause too, for so long: 10m; 20 s more where energy is counted.",
)
@options.on_or_phone
@click.option(
    "--tools",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --on adb:, the runtimes' own benchmark programs for Android.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the order of visits and of the inputs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report and samples.npz, every query.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON instead of the table.")
def command(
    artifacts: tuple[Path, ...], data: str, synthetic: bool, tier: str, runtimes: str, threads: str, batches: str,
    fps: float, deadline: str, sustained: str, on: str, tools: Path | None, seed: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Latency of ONNX files, or of a run's; the first file is the baseline and is measured twice (A/A).

    \b
    compress bench models/RUN --data digits --tier standard
    compress bench a.onnx b.onnx --synthetic --batch 1,8,32 --out reports/ab
    compress bench models/RUN --fps 30 --deadline 33ms
    compress bench models/RUN --sustained 10m
    compress bench models/RUN --on ssh://pi@board.local --runtimes ort_cpu,litert
    compress bench models/RUN --on adb:SERIAL --tools android --runtimes ncnn

    Exit code 4 when the A/A control is invalid: one file, measured twice, was faster than itself.
    """
    from dataclasses import replace

    from compress import adb, bench, facts, files, gate, measuring, out_place
    from compress.config import typed
    from compress.errors import UsageError, unknown
    from compress.recipe import Recipe
    from compress.report import summary, to_json, write
    from compress.store import Store
    from compress.types import SINGLE_STREAM

    on_phone = adb.is_address(on)
    scenario = _scenario(batches, fps, deadline, sustained)
    if on_phone:
        _refuse_on_phone(bool(data or synthetic or scenario != SINGLE_STREAM))
    if data and synthetic:
        raise UsageError(
            "--data and --synthetic exclude each other: name the images, or take random ones", code="E-OPTION-CONFLICT"
        )
    if not synthetic and not on_phone:
        files.require_data(artifacts, data)
    if tier not in bench.TIERS:
        raise unknown("tier", tier, list(bench.TIERS))
    if out:
        out_place.check_report(out)
    store = Store.default()
    found = files.open_any(artifacts, store.root / "scratch")
    base = Recipe() if synthetic or on_phone else files.data_for(artifacts, found, data)
    chosen = replace(
        base, **typed(Recipe, {"runtimes": runtimes, "threads": threads, "seed": seed}, "the command line")
    )
    with options.host(on, tools) as host:
        document, measurements = measuring.bench_files(
            found, chosen, tier=tier, synthetic=synthetic, store=store, command=_spoken(on, on_phone),
            scenario=scenario, host=host, own_inputs=on_phone,
        )  # fmt: skip
    click.echo(to_json(document) if as_json else summary(document), nl=not as_json)
    if out:
        write({k: v for k, v in document.items() if k != "derived"}, out)
        facts.write_samples(out / "samples.npz", measurements)
        say(f"wrote  {out / 'report.html'}")
    unnamed = not data and files.knows_data(artifacts)
    options.next_step("compress", "eval", *artifacts, *([] if unnamed else ["--data", data or "NAME"]))
    if document["derived"]["aa"]["verdict"] == "invalid":
        sys.exit(gate.EXIT_UNCLEAR)


def _refuse_on_phone(asked: bool) -> None:
    from compress.errors import UsageError

    if asked:
        raise UsageError(
            "programs on a phone ask one input of their own after another: no --data, --synthetic, --batch, --fps or "
            "--sustained with --on adb:",
            code="E-OPTION-CONFLICT",
            hint="leave these out, or measure on a board by ssh, where our own worker runs",
        )


def _spoken(on: str, on_phone: bool) -> str:
    """The command, for reports, which are meant to be shared: without the name of the other machine and its user."""
    kind = "adb:…" if on_phone else f"{on.partition(':')[0]}://…"
    return shlex.join(["compress", *sys.argv[1:]]).replace(on or "\0", kind)


def _scenario(batches: str, fps: float, deadline: str, sustained: str) -> "Scenario":
    """Raises UsageError naming the flag."""
    from compress import units
    from compress.errors import UsageError
    from compress.types import Scenario

    sizes = [part.strip() for part in batches.split(",")]
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(
            f"--batch takes different whole numbers, at least 1, got `{batches}`",
            code="E-OPTION-VALUE",
            hint="for example 1,8,32",
        )
    if deadline and not fps:
        raise UsageError("--deadline is for queries at a rate", code="E-OPTION-CONFLICT", hint="add --fps 30, say")
    if fps < 0 or fps > MOST_FPS:
        raise UsageError(f"--fps must be between 0 and {MOST_FPS:,}, got {fps:g}", code="E-OPTION-VALUE")
    allowed_ns = units.latency_ns(deadline, "--deadline") if deadline else 1e9 / fps if fps else 0.0
    sustained_s = units.duration_s(sustained, "--sustained") if sustained else 0.0
    return Scenario(batches=tuple(map(int, sizes)), fps=fps, deadline_ns=allowed_ns, sustained_s=sustained_s)
