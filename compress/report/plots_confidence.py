"""Reliability: how often answers of a certain probability are right."""

from typing import Any

from compress.report import format as fmt
from compress.report import svg
from compress.report.labels import MOST_DRAWN, Labels
from compress.report.markup import Markup


def shown(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of the rows that are drawn: one a stage, the first runtime that answered."""
    found: dict[str, dict[str, Any]] = {}
    for row in document["accuracy"]:
        if row.get("confidence"):
            found.setdefault(row["stage"], row)
    return list(found.values())[:MOST_DRAWN]


@svg.settings()
def reliability(document: dict[str, Any], labels: Labels) -> Markup | None:
    """Share of right answers against their mean probability, by bins of equally many images; on the diagonal answers
    are as good as they say (DeGroot and Fienberg 1983). None where it was not counted.
    """
    rows = shown(document)
    if not rows:
        return None
    bins = {row["stage"]: [(100 * b["probability"], 100 * b["correct"] / b["n"]) for b in row["confidence"]["bins"]]
            for row in rows}  # fmt: skip
    low, _ = svg.spread([v for points in bins.values() for point in points for v in point] + [100.0], least=20)
    low = max(0.0, low)
    ax = svg.axes(
        svg.Span(low=low, high=101, title="probability that the answer claims, %"),
        svg.Span(low=low, high=101, title="answers that are right, %"),
    )
    svg.line(ax, [low, 100], [low, 100], "roof d2")
    for stage, points in bins.items():
        colour, (claimed, right) = labels.colour(stage), zip(*points, strict=True)
        svg.line(ax, claimed, right, f"line thin {colour}")
        svg.marks(ax, "circle", claimed, right, 3.4, f"mark {colour}")
    derived = {(r["stage"], r["runtime"]): r for r in document["derived"]["accuracy"]}
    errors = [(row["stage"], derived[row["stage"], row["runtime"]]["calibration_error"]) for row in rows]
    description = "; ".join(f"{stage}: calibration error {fmt.percent_interval(error)}" for stage, error in errors)
    return svg.drawing("reliability", "Reliability of the answers", description, ax)
