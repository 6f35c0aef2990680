"""How cells are called and which colour, shape and dash each has, the same in every table and plot."""

from dataclasses import dataclass
from typing import Any

COLOURS = 7  # classes s0 … s6 of style.css; s0 is the teacher's
SHAPES = ("circle", "square", "diamond", "triangle")
MOST_DRAWN = 16  # cells in a plot that has a line or a row for each: more cannot be told apart


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Names and looks of a document's stages and runtimes."""

    stages: tuple[str, ...]
    runtimes: tuple[str, ...]
    many_threads: bool
    many_batches: bool

    def cell(self, cell: dict[str, Any]) -> str:
        """`int8 · ort_cpu`, with threads and batch where a report has several."""
        stage = cell["stage"] + (" (A/A twin)" if cell["control"] else "")
        return " · ".join([stage, cell["runtime"], *self._sizes(cell)])

    def point(self, cell: dict[str, Any]) -> str:
        """`cell` without the runtime, for a plot whose shapes tell it."""
        return " · ".join([cell["stage"], *self._sizes(cell)])

    def _sizes(self, cell: dict[str, Any]) -> list[str]:
        parts = [f"{cell['threads']} thr"] if self.many_threads else []
        return parts + ([f"batch {cell['batch']}"] if self.many_batches else [])

    def colour(self, stage: str) -> str:
        """The class that colours `stage`: the first stage is the teacher's; the others take turns."""
        place = self.stages.index(stage) if stage in self.stages else len(self.stages)
        return f"s{place if place == 0 else 1 + (place - 1) % (COLOURS - 1)}"

    def shape(self, runtime: str) -> str:
        return SHAPES[self.runtimes.index(runtime) % len(SHAPES)]

    def dash(self, runtime: str) -> str:
        return f"d{self.runtimes.index(runtime) % len(SHAPES)}"


def labels_of(document: dict[str, Any]) -> Labels:
    derived = document["derived"]
    cells = derived["cells"]
    stages = [
        derived["teacher"],
        *(a["stage"] for a in document["artifacts"]),
        *(s["name"] for s in document["stages"]),
    ]
    return Labels(
        stages=tuple(dict.fromkeys(stages + [c["stage"] for c in cells])),
        runtimes=tuple(dict.fromkeys(c["runtime"] for c in cells)),
        many_threads=len({c["threads"] for c in cells}) > 1,
        many_batches=len({c["batch"] for c in cells}) > 1,
    )


def timed(document: dict[str, Any], *, controls: bool = False) -> list[dict[str, Any]]:
    """The cells that have a latency; A/A twins only when asked for."""
    cells = document["derived"]["cells"]
    return [c for c in cells if c["latency_ns"]["value"] is not None and (controls or not c["control"])]


def drawn(document: dict[str, Any], *, controls: bool = False) -> list[dict[str, Any]]:
    """The cells of `timed` that plots have room for: what the verdict speaks of, its baseline and control, the Pareto
    front, then the others in their order.
    """
    cells, derived = timed(document, controls=controls), document["derived"]
    primary = next((c for c in cells if c["cell"] == derived["primary_cell"]), None)
    front = {point["cell"] for point in derived["pareto"] if not point["dominated"]}

    def rank(cell: dict[str, Any]) -> int:
        if cell is primary:
            return 0
        if primary and (cell["stage"], cell["runtime"]) == (derived["teacher"], primary["runtime"]):
            return 1
        return 2 if cell["cell"] in front else 3

    chosen = {cell["cell"] for cell in sorted(cells, key=rank)[:MOST_DRAWN]}
    return [cell for cell in cells if cell["cell"] in chosen]
