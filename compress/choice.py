"""Which of several candidates becomes the student: pure functions of what is known of each, and the words for it.

More multiply-accumulates (MACs) stand for more capacity: of what fits the limits, the most are taken, unless a short
training has shown which learns best.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from compress.report import format as fmt
from compress.report.estimates import Estimate

WIDTH = 80
TOO_LARGE, TOO_SLOW, CANNOT = "too large", "too slow", "cannot"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """0: no limit."""

    latency_ns: float = 0.0
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is known so far. `size_bytes` is of the file in the precision that ships or, unless `exported`, a bound
    below it. `out` is a word for why it is not taken, `reason` the sentence; `correct` are right answers on select.
    """

    label: str
    spec: str
    parameters: int = 0
    macs: int = 0
    size_bytes: int = 0
    exported: bool = False
    latency: Estimate | None = None
    correct: int | None = None
    out: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and in which precision candidates are measured."""

    runtime: str
    threads: int
    precision: str

    def words(self) -> str:
        return f"{self.precision} in {self.runtime}, {fmt.threads(self.threads)}"


def sized(candidate: Candidate, limits: Limits) -> Candidate:
    """The candidate, marked where its file is larger than what is allowed, or certain to be."""
    if candidate.out or not limits.size_bytes or candidate.size_bytes <= limits.size_bytes:
        return candidate
    least = "" if candidate.exported else "at least "
    reason = f"its file has {least}{fmt.size(candidate.size_bytes)}; allowed: {fmt.size(limits.size_bytes)}"
    return replace(candidate, out=TOO_LARGE, reason=reason)


def timed(candidate: Candidate, limits: Limits) -> Candidate:
    """The candidate, marked where the upper end of its latency's interval is beyond what is allowed, or where a limit
    cannot be checked.
    """
    if candidate.out or not candidate.latency:
        return candidate
    if candidate.latency["value"] is None:
        return replace(candidate, out=CANNOT, reason=f"its latency was {fmt.absent(candidate.latency['reason'])}")
    high = candidate.latency["high"] or candidate.latency["value"]
    if not limits.latency_ns or high <= limits.latency_ns:
        return candidate
    reason = f"its latency goes up to {fmt.latency(high)}; allowed: {fmt.latency(limits.latency_ns)}"
    return replace(candidate, out=TOO_SLOW, reason=reason)


def by_macs(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing rules out, the most MACs first; of equals the smaller file, then by name."""
    return sorted((c for c in candidates if not c.out), key=lambda c: (-c.macs, c.size_bytes, c.label))


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one to take: the most accurate of those that were tried, of equals the fewest MACs; without a trial the one
    with the most MACs.
    """
    tried = [c for c in candidates if c.correct is not None and not c.out]
    if tried:
        return min(tried, key=lambda c: (-(c.correct or 0), c.macs, c.size_bytes, c.label))
    return next(iter(by_macs(candidates)), None)


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in latency, bytes and MACs at once, smallest first: of those with a latency where any
    has one, else of those with a file, else of all that could be built.
    """
    built = [c for c in candidates if c.macs and c.out != CANNOT]
    exported = [c for c in built if c.exported]
    measured = [c for c in exported if c.latency and c.latency["value"] is not None]
    known = measured or exported or built

    def costs(c: Candidate) -> tuple[float, float, float]:
        return (c.latency["value"] if c.latency else 0.0, c.size_bytes, -c.macs)

    def beaten(c: Candidate) -> bool:
        mine = costs(c)
        others = (costs(other) for other in known)
        return any(theirs != mine and all(t <= m for t, m in zip(theirs, mine, strict=True)) for theirs in others)

    return sorted((c for c in known if not beaten(c)), key=lambda c: (c.size_bytes, c.label))


def limit_words(limits: Limits) -> str:
    """`at most 3 ms (the upper end of the interval) and 500 kB`; empty without limits."""
    words = [f"{fmt.latency(limits.latency_ns)} (the upper end of the interval)"] if limits.latency_ns else []
    words += [fmt.size(limits.size_bytes)] if limits.size_bytes else []
    return f"at most {' and '.join(words)}" if words else ""


def sentence(
    chosen: Candidate, candidates: Sequence[Candidate], limits: Limits, place: Place, epochs: int, images: int
) -> str:
    """Why `chosen` is the student, in one sentence. `images` is the number of images of select."""
    fitting = [c for c in candidates if c.out not in (TOO_LARGE, TOO_SLOW, CANNOT)]
    tried = [c for c in candidates if c.correct is not None]
    said = f"{chosen.label} was chosen of {fmt.plural(len(candidates), 'candidate')}: "
    if limit_words(limits):
        verb = "keeps to" if len(fitting) == 1 else "keep to"
        said += f"{len(fitting)} of them {verb} {limit_words(limits)}, {place.words()}; "
    if chosen.correct is None:
        return said + ("it is the only one" if len(fitting) == 1 else "it has the most MACs of these")
    trial = f"{fmt.plural(epochs, 'epoch')} of labels"
    return said + (
        f"of the {len(tried)} of these with the most MACs it was the most accurate on select after {trial}, "
        f"{chosen.correct} of {images} images"
    )


def milliseconds(estimate: Estimate | None) -> str:
    """`12.3 (11.9-13.0)`, or what stands for a missing one."""
    if not estimate or estimate["value"] is None:
        return "-"
    value, low, high = (None if estimate[k] is None else _digits(estimate[k] / 1e6) for k in ("value", "low", "high"))
    return str(value) if low is None else f"{value} ({low}-{high})"


def _digits(number: float) -> str:
    """Three digits where that takes at most two decimals, which a latency deserves; more only below a tenth."""
    decimals = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 0.1 else 3
    return f"{number:,.{decimals}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of at most 80 columns. A row of two is a name and the reason why it has no numbers; a name too long for
    what the numbers leave stands on a line of its own.
    """
    full = [list(heads), *(list(row) for row in rows if len(row) > 2)]
    widths = [max(len(row[i]) for row in full) for i in range(1, len(heads))]
    left = min(max(len(row[0]) for row in full), max(8, WIDTH - sum(widths) - 2 * len(widths)))
    lines = []
    for name, *cells in [list(heads), *(list(row) for row in rows)]:
        if len(cells) == 1 < len(widths):
            lines += textwrap.wrap(f"{name}: {cells[0]}", WIDTH, subsequent_indent="  ")
            continue
        if len(name) > left:
            lines.append(name)
            name = ""
        lines.append("  ".join([name.ljust(left), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]).rstrip())
    return lines


def short(text: str) -> str:
    return text.replace(" ", "")


def size_words(candidate: Candidate) -> str:
    return ("" if candidate.exported else ">") + short(fmt.size(candidate.size_bytes))


def choice_table(candidates: Sequence[Candidate], chosen: Candidate | None, place: Place, images: int) -> list[str]:
    """One line a candidate, and the reasons of those that could not be looked at below."""
    tried = any(c.correct is not None for c in candidates)
    heads = ["candidate", "MACs", place.precision, "latency, ms", *(["top-1"] if tried else []), ""]
    rows: list[list[str]] = []
    for c in candidates:
        if not c.macs:
            rows.append([c.label, c.reason])
            continue
        accuracy = "-" if c.correct is None else f"{100 * c.correct / images:.1f}"
        word = "chosen" if chosen and c.label == chosen.label else c.out or "fits"
        cells = [short(fmt.quantity(c.macs)), size_words(c), milliseconds(c.latency)]
        rows.append([c.label, *cells, *([accuracy] if tried else []), word])
    cannot = [f"{c.label}: {c.reason}" for c in candidates if c.macs and c.out == CANNOT]
    below = [line for text in cannot for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
    return [*table(heads, rows), *below]


def frontier_table(candidates: Sequence[Candidate], place: Place) -> list[str]:
    rows = [
        [c.label, short(fmt.quantity(c.macs)), size_words(c), milliseconds(c.latency)] for c in frontier(candidates)
    ]
    return table(["frontier", "MACs", place.precision, "latency, ms"], rows)


def facts(
    chosen: Candidate, candidates: Sequence[Candidate], limits: Limits, place: Place, epochs: int, images: int,
    control: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """The choice as the report holds it: as it was judged."""
    return {
        "sentence": sentence(chosen, candidates, limits, place, epochs, images),
        "chosen": chosen.label,
        **asdict(place),
        "max_latency_ns": limits.latency_ns or None,
        "max_size_bytes": limits.size_bytes or None,
        "screen_epochs": epochs,
        "select": images,
        "control": control,
        "candidates": [asdict(c) for c in candidates],
    }
