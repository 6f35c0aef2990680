"""Texts with units as numbers: `3ms`, `500kB`. A number without its unit is refused, since a thousandfold error of a
limit would pass for a choice.
"""

import math
import re

from compress.errors import UsageError

LATENCIES = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
DURATIONS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SIZES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def latency_ns(text: str, where: str) -> float:
    """`800us` → 800000.0. Raises UsageError naming `where` and the units."""
    return _parse(text, LATENCIES, where, "a time", "3ms")


def duration_s(text: str, where: str) -> float:
    """`10m` → 600.0. Raises UsageError naming `where` and the units."""
    return _parse(text, DURATIONS, where, "a duration", "10m")


def size_bytes(text: str, where: str) -> int:
    """`1.5MB` → 1500000; kB, MB and GB are powers of 1000. Raises UsageError naming `where` and the units."""
    return math.floor(_parse(text, SIZES, where, "a size", "500kB"))


def _parse(text: str, units: dict[str, float], where: str, what: str, example: str) -> float:
    plain = text.replace("\u03bc", "\u00b5")  # two letters look like this one
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(\D*?)\s*", plain)
    # 500KB and 3MS are what people type, and mean nothing else
    named = {unit.lower(): scale for unit, scale in units.items()}
    if not found or found[2].lower() not in named:
        raise UsageError(
            f"{where} must be {what} with its unit ({', '.join(units)}), got `{text}`",
            code="E-UNIT",
            hint=f"for example {example}",
        )
    value = float(found[1]) * named[found[2].lower()]
    if not 0 < value < math.inf:
        raise UsageError(f"{where} must be more than 0, got `{text}`", code="E-UNIT")
    return value
