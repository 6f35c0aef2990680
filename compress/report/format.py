"""The only place that turns numbers into text, so that the page, the Markdown and the terminal show the same words.

An estimate is a dict `{"value", "low", "high", "reason"}`: `low` and `high` bound its 95 % interval (None without one),
and a `value` of None is shown as its reason, never as a zero.
"""

from collections.abc import Callable
from typing import Any

Estimate = dict[str, Any]


def absent(reason: str) -> str:
    """What stands where a number is missing."""
    return f"not measured ({reason or 'no reason was recorded'})"


def significant(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits, never in exponent form."""
    magnitude = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    decimals = max(0, digits - magnitude)
    return f"{value:,.{decimals}f}"


def _latency_unit(latency_ns: float) -> tuple[float, str]:
    return (1e9, "s") if latency_ns >= 1e9 else (1e6, "ms")


def latency(latency_ns: float) -> str:
    """`1234567` → `1.23 ms`; seconds from one second on."""
    scale, unit = _latency_unit(latency_ns)
    return f"{significant(latency_ns / scale)} {unit}"


def power(value: float) -> str:
    """A small number of any size: `1.2e-06`."""
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float) -> str:
    return f"{number:,.0f}"


def about(number: int) -> str:
    """A rough count, with two significant digits: `54936` → `55,000`."""
    return f"{int(float(f'{number:.1e}')):,}"


def size(size_bytes: float) -> str:
    """`1234567` → `1.23 MB`, in powers of 1000."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= scale:
            return f"{significant(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def quantity(number: float) -> str:
    """Parameters and MACs: `855770` → `856 k`, `126000000` → `126 M`."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{significant(number / scale)} {unit}"
    return count(number)


def rate(images_per_second: float) -> str:
    return f"{significant(images_per_second)} img/s"


def gmacs(gmacs_per_second: float) -> str:
    return f"{significant(gmacs_per_second)} GMAC/s"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def temperature_words(row: dict[str, Any]) -> str:
    """What a fitted temperature leaves of a calibration error."""
    if row["temperature"] is None:
        return ""
    return f"{percent(row['scaled_error']['value'])} at temperature {significant(row['temperature'])}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def shown(estimate: Estimate, one: Callable[[float], str]) -> str:
    """An estimate without an interval through `one`, or the reason why there is none."""
    return absent(estimate["reason"]) if estimate["value"] is None else one(estimate["value"])


def _interval(estimate: Estimate, value: str, bound: Callable[[float], str], join: str = "-") -> str:
    if estimate["low"] is None:
        return f"{value} (no interval: {estimate['reason']})" if estimate["reason"] else value
    return f"{value} ({bound(estimate['low'])}{join}{bound(estimate['high'])})"


def latency_interval(estimate: Estimate, *, unit: bool = True) -> str:
    """`0.123 ms (0.120-0.127)`."""
    if estimate["value"] is None:
        return absent(estimate["reason"])
    scale, name = _latency_unit(estimate["value"])
    number = significant(estimate["value"] / scale)
    decimals = len(number.partition(".")[2])
    value = f"{number} {name}" if unit else number
    return _interval(estimate, value, lambda ns: f"{ns / scale:,.{decimals}f}")


def percent_interval(estimate: Estimate, *, unit: bool = True) -> str:
    """`93.4 % (92.9-93.8)`."""
    if estimate["value"] is None:
        return absent(estimate["reason"])
    value = percent(estimate["value"]) if unit else f"{100 * estimate['value']:.1f}"
    return _interval(estimate, value, lambda fraction: f"{100 * fraction:.1f}")


def _signed_points(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def points_interval(estimate: Estimate, *, unit: bool = True) -> str:
    """`-0.6 points (-1.9 to +0.7)`; an estimate that is the baseline itself says so."""
    if estimate.get("is_baseline"):
        return "baseline"
    if estimate["value"] is None:
        return absent(estimate["reason"])
    value = _signed_points(estimate["value"]) + (" points" if unit else "")
    return _interval(estimate, value, _signed_points, " to ")


def _ratio_decimals(ratio: float) -> int:
    return 2 if ratio < 2 else 1 if ratio < 100 else 0


def ratio(value: float) -> str:
    """`3.1x`, `0.81x`, `120x`."""
    return f"{value:.{_ratio_decimals(value)}f}x"


def ratio_interval(estimate: Estimate) -> str:
    """`3.1x (2.9-3.3)`; an estimate that is the baseline itself says so."""
    if estimate.get("is_baseline"):
        return "baseline"
    if estimate["value"] is None:
        return absent(estimate["reason"])
    decimals, bounds = _ratio_decimals(estimate["value"]), (estimate["low"], estimate["high"])
    if None not in bounds and len({f"{bound:.{decimals}f}" for bound in bounds}) == 1:
        decimals += 1  # a tight interval is not shown as a point
    return _interval(estimate, f"{estimate['value']:.{decimals}f}x", lambda bound: f"{bound:.{decimals}f}")


def threads(number: int) -> str:
    return plural(number, "thread")


def short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def control_words(control: Estimate | None) -> list[str]:
    """What the same bytes, measured twice, say of the machine: a line, or none without a control."""
    if control is None:
        return []
    words = f"A/A control ({control['of']} again): {ratio_interval(control)}, {control['verdict']}"
    return [words + (": the machine was too noisy to trust these" if control["verdict"] == "invalid" else "")]


def celsius(degrees: float) -> str:
    return f"{degrees:.0f} °C"


def energy(joules: float) -> str:
    """`4.20 mJ`."""
    unit, factor = next(((u, f) for u, f in (("J", 1.0), ("mJ", 1e3)) if abs(joules) * f >= 1), ("µJ", 1e6))
    return f"{significant(joules * factor)} {unit}"


def sustained_title(document: dict[str, Any]) -> str:
    """`Without a pause for 10 min 00 s`; the time is left out where no cell came to its end."""
    seconds = max(row["seconds"] for row in document["derived"]["sustained"])
    return f"Without a pause for {duration(seconds)}" if seconds else "Without a pause"


def sustained_words(row: dict[str, Any]) -> str:
    """What a row says in a line of text."""
    if row["last_of_first"]["value"] is None:
        return absent(row["last_of_first"]["reason"])
    said = [
        f"median {latency(row['first_ns']['value'])} at first, {latency(row['last_ns']['value'])} at the end "
        f"({ratio(row['last_of_first']['value'])})",
        f"slowest window {latency(row['worst_ns']['value'])}",
    ]
    if row["slower_after_s"]["value"] is not None:
        said.append(f"10 % slower after {duration(row['slower_after_s']['value'])}")
    if row["celsius"]["value"] is not None:
        said.append(f"hottest {celsius(row['celsius']['value'])}")
    said.append(f"processor's energy per query {shown(row['joules_per_query'], energy)}")
    return "; ".join(said)


def paced_title(document: dict[str, Any]) -> str:
    """`At 30 frames per second, answers due within 33.3 ms`."""
    run = document["run"]
    return f"At {run['fps']:g} frames per second, answers due within {latency(run['deadline_ns'])}"


def harness_words(document: dict[str, Any]) -> str:
    """`The harness adds 1.2 µs to a query, 0.4 % of the fastest cell's.`"""
    derived = document["derived"]
    added, medians = derived["harness_ns"], [cell["latency_ns"]["value"] for cell in derived["cells"]]
    if added["value"] is None or not any(medians):
        return f"What the harness adds to a query was {absent(added['reason'])}."
    share = added["value"] / min(filter(None, medians))
    return (
        f"The harness adds {significant(added['value'] / 1e3)} µs to a query, {percent(share)} of the fastest cell's."
    )


def flips_words(flips: dict[str, int]) -> str:
    """`flips: 5 right to wrong, 3 wrong to right, 2 wrong to wrong`."""
    parts = (("lost", "right to wrong"), ("won", "wrong to right"), ("other", "wrong to wrong"))
    return "flips: " + ", ".join(f"{count(flips[key])} {words}" for key, words in parts)


def divergence_words(found: dict[str, float | None]) -> str:
    """`KL from the teacher 0.021 nats, 95 % of the images below 0.11`; endless where a class has probability 0."""
    mean, most = ("endless" if found[key] is None else f"{found[key]:.2g}" for key in ("mean", "p95"))
    return f"KL from the teacher {mean} nats, 95 % of the images below {most}"


def classes_words(found: dict[str, Any]) -> str:
    """What the worst class lost, beside what chance makes of the worst of so many."""
    rows = found["rows"]
    worst = rows[0]
    texts = [
        f"{found['stage']} in {found['runtime']}: the worst of {count(len(rows))} classes is "
        f"“{worst['name']}”, {_signed_points(worst['difference_fraction']['value'])} points against the teacher; by "
        f"chance alone the worst of them would reach {_signed_points(found['chance_fraction'])} in one of twenty cases",
        f"{found['worse']} of them {'is' if found['worse'] == 1 else 'are'} worse beyond chance",
    ]
    if found["without_images"]:
        texts.append(f"{found['without_images']} without an image")
    return "; ".join(texts) + "."
