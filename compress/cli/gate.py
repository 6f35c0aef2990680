"""`compress gate`: may what a report speaks of ship? For continuous integration."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from compress.cli import options
from compress.progress import say

UNCLEAR = ("inconclusive", "invalid")
LONGER = {"smoke": "standard", "quick": "standard", "standard": "rigorous"}


@click.command(short_help="Judge a report by limits: latency, p99, accuracy, bytes; exit code 3 when one fails.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--max-latency", default="", help="Most that the median may be, with its unit: 3ms.")
@click.option("--max-p99", default="", help="Most that 99 % of the queries may take: 20ms.")
@click.option("--max-drop", type=float, help="Most points of top-1 below the teacher.")
@click.option("--max-size", default="", help="Most bytes of the file: 500kB.")
@click.option("--min-speedup", type=float, default=0.0, help="Least times faster than the teacher there.")
@click.option("--against", type=click.Path(path_type=Path), help="An earlier report: nothing may have become worse.")
@click.option(
    "--runtime",
    default="",
    help="Judge this runtime's cell [the one of the report's verdict].",
    shell_complete=options.completion("runtimes"),
)
@click.option("--threads", type=int, default=0, help="Judge the cell with so many threads.")
@click.option("--junit", type=click.Path(path_type=Path), help="JUnit XML to write.")
@click.option("--summary", type=click.Path(path_type=Path), help="File to add a Markdown table to.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(
    source: Path, max_latency: str, max_p99: str, max_drop: float | None, max_size: str, min_speedup: float,
    against: Path | None, runtime: str, threads: int, junit: Path | None, summary: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Judge what ships in SOURCE (report.json, or its folder) by limits. An interval has to lie on one side of a limit.

    \b
    compress gate reports/RUN --max-p99 20ms --max-drop 1 --max-size 500kB
    compress gate reports/RUN --against main/report.json --junit gate.xml
    compress gate reports/RUN --max-latency 3ms --summary "$GITHUB_STEP_SUMMARY"

    Exit codes: 0 all pass, 3 one fails, 4 one cannot be told: not measured, its interval too wide, the machine too
    noisy, or the benchmark's tier (smoke, quick) too short to decide anything.
    """
    from compress import gate, report, units

    limits = gate.Limits(
        max_latency_ns=units.latency_ns(max_latency, "--max-latency") if max_latency else 0.0,
        max_p99_ns=units.latency_ns(max_p99, "--max-p99") if max_p99 else 0.0,
        max_drop_points=max_drop,
        max_size_bytes=units.size_bytes(max_size, "--max-size") if max_size else 0,
        min_speedup=min_speedup,
    )
    path = options.report_file(source)
    document = report.load(path)
    base = report.load(options.report_file(against)) if against else None
    gates = gate.judge(document, limits, runtime=runtime, threads=threads, against=base)
    name = f"{document['run']['name']}: {document['shipped']}"
    _write(junit, gate.junit(gates, name), "wb")
    _write(summary, gate.summary(gates, name).encode(), "ab")
    if as_json:
        click.echo(json.dumps(gates, indent=1))
    else:
        for row in gates:
            click.echo(click.wrap_text(f"{row['status']:<13} {row['limit']}: {row['value']}", 80, "", " " * 14))
    code = gate.exit_code(gates)
    for written in filter(None, (junit, summary)):
        say(f"wrote  {written}")
    say(f"{name} {gate.WORDS[code]}")
    _next(path, document, gates, code)
    sys.exit(code)


def _next(path: Path, document: dict[str, Any], gates: list[dict[str, str]], code: int) -> None:
    """Measuring longer where that could tell, a look at the files where they may ship, at the report where not."""
    from compress.gate import EXIT_UNCLEAR

    # where `compress run` puts both, unless --out or --set name= said otherwise
    models = path.parents[2] / "models" / path.parent.name if len(path.parents) > 2 else path
    recipe = models / "recipe.toml"
    longer, timed = LONGER.get(document["run"]["tier"]), ("max_latency", "max_p99", "min_speedup")
    unclear = any(g["name"] in timed and g["status"] in UNCLEAR for g in gates)
    if code == EXIT_UNCLEAR and longer and recipe.is_file() and unclear:
        options.next_step("compress", "run", "--recipe", recipe, "--set", f"tier={longer}")
    elif code == EXIT_UNCLEAR:
        say("next   measure again, on a quieter machine or with more images")
    elif code == 0 and recipe.is_file():
        options.next_step("compress", "verify", models)
    else:
        options.next_step("compress", "report", path)


def _write(path: Path | None, content: bytes, mode: str) -> None:
    """Writes, or with `ab` adds to, a file that was asked for. Raises UsageError where that is not possible."""
    from compress.errors import UsageError

    if path is None:
        return
    try:
        with path.open(mode) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", code="E-OUT-PLACE") from error
