"""Latency rows: one for each cell (artifact × runtime × threads × batch), from the raw visits."""

from typing import Any

import numpy as np

from compress import stats
from compress.report.estimates import Estimate, baseline, measured, middle_ns, missing
from compress.report.rows_validity import flags

PERCENTILES = (90, 95, 99, 99.9)
NATIVE_RUNTIME = "torch_eager"
RESAMPLES = 1000  # of rounds, for the interval of a percentile
_ENOUGH = 1_000_000  # more queries than any percentile shown here needs


def queries_needed(percentile: float) -> int:
    """The fewest pooled queries at which `percentile` may be printed."""
    low, high = 0, _ENOUGH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stats.percentile_allowed(percentile / 100, middle) else (middle, high)
    return high


def pooled_quantiles(visits: list[dict[str, Any]], fractions: np.ndarray) -> np.ndarray:
    """Quantiles (ns) at `fractions` in [0,1] of all visits together, each weighted by its number of queries.

    Every visit brings its own quantiles on a grid that is even, and finer over the slowest 1 %; the pooled distribution
    is their mixture, inverted.
    """
    levels = [_levels(v) for v in visits]
    weights = np.array([v["n"] for v in visits], float)
    support = np.unique(np.concatenate([level for level, _ in levels]))
    shares = np.zeros_like(support)
    for weight, (level, grid) in zip(weights / weights.sum(), levels, strict=True):
        shares += weight * _share_below(support, level, grid)
    return np.interp(fractions, shares, support)


def _levels(visit: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(latencies in ns, the shares of the queries that took at most so long); facts of old know no `tail_ns`."""
    level = np.asarray(visit["quantiles_ns"], float)
    grid = np.linspace(0.0, 1.0, len(level))
    if not visit.get("tail_ns"):
        return level, grid
    tail, begin = np.asarray(visit["tail_ns"], float), 0.99
    kept = grid < begin - 1e-9
    return np.concatenate([level[kept], tail]), np.concatenate([grid[kept], np.linspace(begin, 1.0, len(tail))])


def _share_below(support: np.ndarray, level: np.ndarray, grid: np.ndarray) -> np.ndarray:
    values, first = np.unique(level, return_index=True)
    last = np.append(first[1:] - 1, len(level) - 1)
    return np.interp(support, values, grid[last], left=0.0, right=1.0)


def _artifact_of(facts: dict[str, Any], measurement: dict[str, Any]) -> dict[str, Any]:
    """The artifact that was measured: what its stage's ONNX file says, with the bytes of what was made of it."""
    digest, made = measurement["artifact_digest"], facts.get("converted") or []
    of_stage = [a for a in facts["artifacts"] if a["stage"] == measurement["stage"]]
    same_bytes = [a for a in facts["artifacts"] if a["digest"] == digest]
    own_bytes = [{"size_bytes": c["size_bytes"]} for c in made if c["files"] and c["digest"] == digest]
    return {**next(iter(same_bytes + of_stage), {}), **next(iter(own_bytes), {})}


def _reason(measurement: dict[str, Any]) -> str:
    return measurement["failure"] or ("" if measurement["visits"] else "no visit was recorded")


def _over_visits(measurement: dict[str, Any], key: str) -> Estimate:
    values = [v[key] for v in measurement["visits"] if v.get(key)]
    return measured(stats.median(values)) if values else missing("the runtime did not say")


def _latency(measurement: dict[str, Any], seed: int) -> Estimate:
    medians = [middle_ns(v) for v in measurement["visits"]]
    if len(medians) < 2:
        return measured(medians[0], reason="one round only")
    return measured(stats.median(medians), *stats.bootstrap_median(medians, seed))


def _percentiles(measurement: dict[str, Any], seed: int) -> dict[str, Estimate]:
    found = {percentile: percentile_of(measurement["visits"], percentile) for percentile in PERCENTILES}
    known = tuple(percentile for percentile, estimate in found.items() if estimate["value"] is not None)
    if known and len(measurement["visits"]) > 1:
        intervals = percentile_intervals(measurement["visits"], known, seed)
        for percentile, (low, high) in zip(known, intervals, strict=True):
            value = found[percentile]["value"]
            found[percentile] = measured(value, min(value, float(low)), max(value, float(high)))
    return {f"p{percentile}": estimate for percentile, estimate in found.items()}


def percentile_of(visits: list[dict[str, Any]], percentile: float) -> Estimate:
    """A percentile (ns) of all visits together, or how many queries it needs."""
    queries = sum(visit["n"] for visit in visits)
    if not _of_single_queries(visits):
        return missing("its program tells no single queries")
    if not stats.percentile_allowed(percentile / 100, queries):
        return missing(f"have {queries:,} queries, need {queries_needed(percentile):,}")
    if percentile > 99 and not all(visit.get("tail_ns") for visit in visits):
        return missing("this version of the benchmark kept no finer quantiles")
    return measured(pooled_quantiles(visits, np.array([percentile / 100]))[0])


def _of_single_queries(visits: list[dict[str, Any]]) -> bool:
    return all(visit["quantiles_ns"] for visit in visits)


def percentile_intervals(visits: list[dict[str, Any]], percentiles: tuple[float, ...], seed: int) -> np.ndarray:
    """95 % intervals (ns) `[percentiles, 2]` of pooled percentiles, by resampling whole rounds: a neighbour's burst
    slows down all queries of a round, so that single queries would promise too much.
    """
    levels = [_levels(visit) for visit in visits]
    support = np.unique(np.concatenate([level for level, _ in levels]))
    if len(support) == 1:  # a clock so coarse that all queries took the same
        return np.full((len(percentiles), 2), support[0])
    below = np.stack([_share_below(support, level, grid) for level, grid in levels])
    picked = np.random.default_rng(seed).multinomial(len(visits), np.full(len(visits), 1 / len(visits)), RESAMPLES)
    weights = picked * np.array([visit["n"] for visit in visits], float)
    shares = weights / weights.sum(1, keepdims=True) @ below
    rows, ends = np.arange(RESAMPLES), []
    for percentile in percentiles:
        # the first value with so many queries below, and between it and the one before in proportion
        after = np.maximum(1, (shares >= percentile / 100 - 1e-12).argmax(1))
        low, high = shares[rows, after - 1], shares[rows, after]
        part = (percentile / 100 - low) / np.where(high > low, high - low, 1)
        values = support[after - 1] + part.clip(0, 1) * (support[after] - support[after - 1])
        ends.append(np.quantile(values, [0.025, 0.975]))
    return np.array(ends)


def _ecdf(measurement: dict[str, Any]) -> dict[str, list[float]] | None:
    if not _of_single_queries(measurement["visits"]):
        return None
    fractions = np.linspace(0.0, 1.0, 101)
    values = pooled_quantiles(measurement["visits"], fractions)
    return {"latency_ns": [float(v) for v in values], "fraction": [round(float(f), 2) for f in fractions]}


def _numbers(measurement: dict[str, Any], artifact: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything that comes from the visits of one cell that was measured."""
    latency = _latency(measurement, seed)
    images_per_second = measurement["batch"] * 1e9 / latency["value"]
    return {
        "latency_ns": latency,
        "percentiles_ns": _percentiles(measurement, seed),
        **_unevenness(measurement, latency),
        "ecdf": _ecdf(measurement),
        "rounds": [v["round"] for v in measurement["visits"]],
        "round_medians_ns": [middle_ns(v) for v in measurement["visits"]],
        "queries": sum(v["n"] for v in measurement["visits"]),
        **{k: _over_visits(measurement, k) for k in _PER_VISIT},
        **_memory(measurement),
        **_loads(measurement["visits"]),
        "images_per_second": measured(images_per_second),
        **_arithmetic(measurement, artifact, images_per_second),
    }


def _unevenness(measurement: dict[str, Any], latency: Estimate) -> dict[str, Estimate]:
    """How many times the median p99 is, and the shares of queries beyond Tukey's fences (all, and those far beyond)."""
    p99, visits = percentile_of(measurement["visits"], 99), measurement["visits"]
    jitter = missing(p99["reason"]) if p99["value"] is None else measured(p99["value"] / latency["value"])
    if not all(visit.get("outliers") for visit in visits):
        why = missing("this version of the benchmark did not count them")
        return {"jitter": jitter, "outliers_fraction": why, "severe_outliers_fraction": why}
    queries = sum(visit["n"] for visit in visits)
    severe, mild = (sum(visit["outliers"][kind] for visit in visits) for kind in ("severe", "mild"))
    return {
        "jitter": jitter,
        "outliers_fraction": measured((mild + severe) / queries),
        "severe_outliers_fraction": measured(severe / queries),
    }


def _memory(measurement: dict[str, Any]) -> dict[str, Estimate]:
    """The most memory that the process held, what of it came with the runtime and the model, its part of what is shared
    with other processes (PSS), the most that one held whose runtime kept no arena, and its part of GPUs'.
    """
    held = measurement.get("memory") or {"failure": "memory was not looked at"}
    if held.get("peak_rss_bytes"):
        peak, unsaid = held["peak_rss_bytes"], missing("the system does not say")
        own = measured(max(0, peak - held["empty_rss_bytes"])) if held.get("empty_rss_bytes") else unsaid
        pss = measured(held["pss_bytes"]) if held.get("pss_bytes") else unsaid
        frugal = held.get("arena_off_peak_rss_bytes")
        without = measured(frugal) if frugal else missing("the runtime has no such choice, or was not asked")
        gpu = measured(held["gpu_bytes"]) if held.get("gpu_bytes") else missing("no GPU's memory was counted as its")
        return dict(zip(_MEMORY, (measured(peak), own, pss, without, gpu), strict=True))
    if any(visit.get("peak_rss_bytes") for visit in measurement["visits"]):
        whole = _over_visits(measurement, "peak_rss_bytes")
        return dict.fromkeys(_MEMORY, missing("the whole process alone was looked at")) | {_MEMORY[0]: whole}
    return dict.fromkeys(_MEMORY, missing(held["failure"] or "the system does not say"))


def _loads(visits: list[dict[str, Any]]) -> dict[str, Estimate]:
    """Loading with the file in memory, and with nothing of it there: where that could be had."""
    told = [v for v in visits if v["load_ns"] is not None]
    if not told:
        return dict.fromkeys(("load_ns", "load_cold_ns"), missing("the runtime did not say"))
    warm = [v["load_ns"] for v in told if not v.get("cold")]
    cold = [v["load_ns"] for v in told if v.get("cold")]
    why = "the system kept the file in memory" if any("cold" in v for v in visits) else "every load was a warm one"
    return {
        "load_ns": measured(stats.median(warm)) if warm else missing("every load was a cold one"),
        "load_cold_ns": measured(stats.median(cold)) if cold else missing(why),
    }


_PEAKS = ("peak_gmacs_per_second", "peak_bytes_per_second")
_OF_MACS = ("gmacs_per_second", "peak_share", "macs_per_byte", *_PEAKS)


def _arithmetic(measurement: dict[str, Any], artifact: dict[str, Any], images_per_second: float) -> dict[str, Estimate]:
    """What the cell makes of the CPU: MACs a second, their share of the peak of a float32 matrix product at the same
    threads, and MACs for each byte of the file, which has to come from memory once a query if no cache holds it.
    """
    macs, size = artifact.get("macs"), artifact.get("size_bytes")
    peaks = {key: _over_visits(measurement, key) for key in _PEAKS}
    if not macs:
        return {**{key: missing("MACs were not counted") for key in _OF_MACS}, **peaks}
    reached, peak = macs * images_per_second / 1e9, peaks["peak_gmacs_per_second"]
    return {
        "gmacs_per_second": measured(reached),
        "peak_share": measured(reached / peak["value"]) if peak["value"] else missing("no peak was taken here"),
        "macs_per_byte": measured(macs * measurement["batch"] / size)
        if size
        else missing("the file's size is unknown"),
        **peaks,
    }


_PER_VISIT = (
    "import_ns", "first_inference_ns", "transfer_ns", "cpu_ns_per_inference"
)  # fmt: skip
_MEMORY = ("peak_rss_bytes", "own_rss_bytes", "pss_bytes", "arena_off_peak_rss_bytes", "gpu_bytes")


def _no_numbers(reason: str) -> dict[str, Any]:
    keys = (
        "latency_ns", *_PER_VISIT, *_MEMORY, "load_ns", "load_cold_ns", "images_per_second", *_OF_MACS, "jitter",
        "outliers_fraction", "severe_outliers_fraction",
    )  # fmt: skip
    return {
        **{key: missing(reason) for key in keys},
        "percentiles_ns": {f"p{p}": missing(reason) for p in PERCENTILES},
        "ecdf": None,
        "rounds": [],
        "round_medians_ns": [],
        "queries": 0,
    }


def compare(slow: dict[str, Any] | None, fast: dict[str, Any], what: str) -> Estimate:
    """How many times faster `fast` is than `slow` (measurements), paired by round; `what` names a missing `slow`."""
    if slow is None:
        return {**missing(f"no measurement of {what}"), "verdict": ""}
    if slow["cell"] == fast["cell"]:
        return {**baseline(), "verdict": "", "against": slow["cell"]}
    reason = _reason(fast) or (f"{slow['cell']}: {_reason(slow)}" if _reason(slow) else "")
    of_slow = {v["round"]: middle_ns(v) for v in slow["visits"]}
    pairs = [(of_slow[v["round"]], middle_ns(v)) for v in fast["visits"] if v["round"] in of_slow]
    if not reason and len(pairs) < 2:
        reason = f"needs 2 rounds in common, has {len(pairs)}"
    if reason:
        return {**missing(reason), "verdict": "", "against": slow["cell"]}
    ratio, low, high = stats.paired_ratio([p[0] for p in pairs], [p[1] for p in pairs])
    return {**measured(ratio, low, high), "verdict": stats.speed_verdict(low, high), "against": slow["cell"]}


def find(facts: dict[str, Any], stage: str, runtime: str, threads: int, batch: int) -> dict[str, Any] | None:
    """The measurement of `stage` in that runtime, A/A twins aside."""
    wanted = (stage, runtime, threads, batch)
    return next(
        (
            m
            for m in facts["measurements"]
            if not m["control"] and (m["stage"], m["runtime"], m["threads"], m["batch"]) == wanted
        ),
        None,
    )


def teacher_stage(facts: dict[str, Any]) -> str:
    return next((a["stage"] for a in facts["artifacts"] if a["role"] == "teacher"), "teacher")


def _row(facts: dict[str, Any], measurement: dict[str, Any]) -> dict[str, Any]:
    artifact, teacher, reason = _artifact_of(facts, measurement), teacher_stage(facts), _reason(measurement)
    where = (measurement["threads"], measurement["batch"])
    identity = ("cell", "stage", "runtime", "runtime_version", "threads", "batch", "control", "twin_of", "failure")
    baselines = {
        "speedup_same_runtime": measurement["runtime"],
        "speedup_native": NATIVE_RUNTIME,
    }
    return {
        **{key: measurement[key] for key in identity},
        "failure_kind": measurement.get("failure_kind", ""),  # reports of earlier versions have none
        "role": artifact.get("role", "student"),
        "flags": [] if reason else flags(measurement),
        "size_bytes": artifact.get("size_bytes"),
        **(_no_numbers(reason) if reason else _numbers(measurement, artifact, facts["run"]["seed"])),
        **{
            name: compare(find(facts, teacher, runtime, *where), measurement, f"{teacher} in {runtime}")
            for name, runtime in baselines.items()
        },
    }


def cell_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measurement, in the order of the facts."""
    return [_row(facts, m) for m in facts["measurements"]]


def aa_row(facts: dict[str, Any]) -> dict[str, Any]:
    """The control: the same bytes under two names. Its ratio should be 1; `verdict` judges the machine."""
    twin = next((m for m in facts["measurements"] if m["control"]), None)
    if twin is None:
        return {**missing("the run had no A/A control"), "verdict": "", "cell": "", "twin": ""}
    original = next((m for m in facts["measurements"] if m["cell"] == twin["twin_of"]), None)
    ratio = compare(original, twin, twin["twin_of"])
    verdict = stats.aa_verdict(ratio["low"], ratio["high"]) if ratio["value"] is not None else ""
    return {**ratio, "verdict": verdict, "cell": twin["twin_of"], "twin": twin["cell"]}
