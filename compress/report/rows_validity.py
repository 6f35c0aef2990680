"""What speaks against a cell's latency: rules on its rounds, each with a limit that warns and one that invalidates."""

from typing import Any

import numpy as np

from compress.report import format as fmt
from compress.report.estimates import Estimate, measured, middle_ns, missing

# rule → (what it says, limit that warns, limit that invalidates; None: it only warns)
RULES: dict[str, tuple[str, float, float | None]] = {
    "spread": ("its round medians spread by {} (coefficient of variation)", 0.05, 0.10),
    "drift": ("its rounds became {} from the first to the last", 0.03, 0.10),
    "two_levels": ("its rounds lie on two levels, {} apart", 0.0, None),
    "throttled": ("the CPU quota stopped it in {} of the scheduler's periods", 0.0, 0.01),
    "steal": ("other virtual machines took {} of the CPU's time meanwhile", 0.01, 0.05),
    "clock": ("the processor's clock fell by {} inside a round", 0.05, 0.15),
    "battery": ("the machine ran from its battery in {} of the rounds", 0.0, None),
    "powersave": ("the governor of the clock was powersave in {} of the rounds", 0.0, None),
    "timer": ("reading the clock takes {} of its median", 0.005, 0.01),
    "same_input": ("one image asked again and again takes {} less time: it may keep answers", 0.10, None),
    "rounding": ("its program's digits may be off by {} of its middle", 0.005, 0.01),
    "hot": ("the phone was slowed down for heat in {} of the rounds", 0.0, None),
    "elsewhere": ("{} of its nodes run on the CPU all the same", 0.0, None),
    "not_steady": ("its warm-up had not become steady in {} of the rounds", 0.5, None),
}
DRIFT_CORRELATION = 0.6
# Cutting rounds of one level at their widest gap leaves halves whose means are up to four spreads apart.
LEAST_SHARE, LEAST_GAP = 0.2, 6.0
PERIOD_NS = 100_000_000  # of the kernel's bandwidth control, as it is by default


def flags(measurement: dict[str, Any]) -> list[dict[str, str]]:
    """`code`, `severity` (warn or invalid) and `text` of each rule that the visits break. None without visits."""
    visits = sorted(measurement["visits"], key=lambda visit: visit["round"])
    if not visits:
        return []
    found = []
    for code, share in _shares(visits).items():
        words, warn, invalid = RULES[code]
        if abs(share) > warn:
            severity = "invalid" if invalid is not None and abs(share) > invalid else "warn"
            said = fmt.percent(abs(share))
            if code == "drift":
                said += " slower" if share > 0 else " faster"
            found.append({"code": code, "severity": severity, "text": words.format(said)})
    return found


def harness_ns(facts: dict[str, Any]) -> Estimate:
    """What the harness adds to a query: the median over all visits of one that does nothing, in the same loop."""
    found = [visit["harness_ns"] for m in facts["measurements"] for visit in m["visits"] if visit.get("harness_ns")]
    return measured(float(np.median(found))) if found else missing("this version of the benchmark did not say")


def _shares(visits: list[dict[str, Any]]) -> dict[str, float]:
    medians = np.array([middle_ns(visit) for visit in visits], float)
    # periods are counted from the start of the visit's process to its end; older facts know the timed block alone
    visits_ns = sum(visit.get("visit_ns") or visit.get("block_ns", 0) for visit in visits)
    throttled = sum(visit.get("throttled_periods", 0) for visit in visits)
    return {
        "spread": float(medians.std(ddof=1) / medians.mean()) if len(medians) > 1 else 0.0,
        "drift": _drift(medians),
        "two_levels": _levels(medians),
        "throttled": min(1.0, throttled * PERIOD_NS / visits_ns) if visits_ns else 0.0,
        "steal": max(visit.get("steal_fraction", 0.0) for visit in visits),
        "clock": max(_fall(visit.get("megahertz") or [None]) for visit in visits),
        "battery": sum(True in visit.get("on_battery", ()) for visit in visits) / len(visits),
        "powersave": sum("powersave" in visit.get("governor", ()) for visit in visits) / len(visits),
        "timer": max(visit.get("timer_ns", 0.0) / middle_ns(visit) for visit in visits),
        "same_input": max(0.0, 1 - _repeated(visits)),
        "rounding": max(visit.get("rounding_ns", 0.0) / middle_ns(visit) for visit in visits),
        "hot": sum(visit.get("thermal_status", 0) > 0 for visit in visits) / len(visits),
        "elsewhere": max(_on_the_cpu(visit.get("effective", {}).get("nodes", [])) for visit in visits),
        "not_steady": sum(not visit.get("steady", True) for visit in visits) / len(visits),
    }


def _fall(ends: list[float | None]) -> float:
    """What the clock lost from the start of the timed block to its end, as a share; 0 where it was not told."""
    before, after = ends[0], ends[-1]
    return 1 - after / before if before is not None and after is not None and after < before else 0.0


def _on_the_cpu(nodes: list[dict[str, Any]]) -> float:
    """The share of a GPU runtime's nodes that it left to the CPU; 0 where nobody looked."""
    left = sum(row["count"] for row in nodes if row["provider"] == "CPUExecutionProvider")
    return left / max(1, sum(row["count"] for row in nodes))


def _repeated(visits: list[dict[str, Any]]) -> float:
    """Time of one image asked again and again, over that of images in turn; 1 where nobody looked."""
    found = [visit["repeated_median_ns"] / middle_ns(visit) for visit in visits if visit.get("repeated_median_ns")]
    return float(np.median(found)) if found else 1.0


def _drift(medians: np.ndarray) -> float:
    """Change from the first third to the last, where the order of the rounds and of the medians go together, else 0."""
    if len(medians) < 5:
        return 0.0
    ranks = np.argsort(np.argsort(medians))
    if abs(np.corrcoef(np.arange(len(medians)), ranks)[0, 1]) <= DRIFT_CORRELATION:
        return 0.0
    third = len(medians) // 3
    first, last = np.median(medians[:third]), np.median(medians[-third:])
    return float(last / first - 1)


def _levels(medians: np.ndarray) -> float:
    """The gap between two groups of rounds, as a share of the lower one, where each has a fifth of the rounds and the
    gap is six times the spread inside; 0 where there are no two such groups.
    """
    ordered = np.sort(medians)
    least = max(2, int(np.ceil(LEAST_SHARE * len(ordered))))
    if len(ordered) < 2 * least:
        return 0.0
    cut = least + int(np.argmax(np.diff(ordered)[least - 1 : len(ordered) - least]))
    low, high = ordered[:cut], ordered[cut:]
    inside = np.sqrt((low.var() * len(low) + high.var() * len(high)) / len(ordered))
    gap = high.mean() - low.mean()
    return float(gap / low.mean()) if gap > LEAST_GAP * inside and gap > 0.01 * low.mean() else 0.0


def sentences(cells: list[dict[str, Any]]) -> list[str]:
    """A line for each cell that has something against it, the worst first."""
    said = [(cell, cell["flags"]) for cell in cells if cell["flags"]]
    said.sort(key=lambda pair: all(flag["severity"] == "warn" for flag in pair[1]))
    return [f"{cell['cell']}: {_words(flags)}" for cell, flags in said]


def _words(flags: list[dict[str, str]]) -> str:
    texts = [flag["text"] for flag in flags]
    invalid = any(flag["severity"] == "invalid" for flag in flags)
    return "; ".join(texts) + (": not valid" if invalid else "")
