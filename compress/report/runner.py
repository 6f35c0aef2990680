"""Who took the times, where it was not our own worker: the first thing that a reader has to know of them."""

from typing import Any


def runner_sentences(facts: dict[str, Any]) -> list[str]:
    """One line for each runtime of a document (or its facts) that was timed by a program of its own."""
    found = {}
    for measurement in facts["measurements"]:
        visit = next((v for v in measurement["visits"] if "runner" in v["effective"]), None)
        if visit:
            found[measurement["runtime"]] = _sentence(measurement, visit)
    return list(found.values())


def _sentence(measurement: dict[str, Any], visit: dict[str, Any]) -> str:
    effective = visit["effective"]
    warmup = f", warm-up of {visit['warmup_runs']} runs" if "warmup_runs" in visit else ""
    mean = "" if visit["median_ns"] else "; a round counts by the mean of its queries, for no single ones are told"
    return (
        f"{measurement['runtime']} was timed by a program of its own, {measurement['runtime_version']}, over "
        f"{effective['runner']}, not in an app, which Android may clock otherwise: threads where the system puts "
        f"them{warmup}; "
        f"{effective.get('note') or 'no more is known of it'}{mean}"
    )
