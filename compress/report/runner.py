"""Who took the times, where it was not our own worker: the first thing that a reader has to know of them."""

from typing import Any


def runner_sentences(facts: dict[str, Any]) -> list[str]:
    """One line for each runtime of a document (or its facts) that was timed by a program of its own."""
    found = {}
    for measurement in facts["measurements"]:
        visit = next((v for v in measurement["visits"] if "runner" in v["effective"]), None)
        if visit:
            found[measurement["runtime"]] = _sentence(measurement, visit)
    return [*found.values(), *_proxies(facts)]


def _proxies(facts: dict[str, Any]) -> list[str]:
    """What times on a desktop's processor are not, of runtimes whose own formats are made for phones."""
    timed = {m["runtime"] for m in facts["measurements"] if m["visits"] and "runner" not in m["visits"][0]["effective"]}
    made = {each["runtime"] for each in facts.get("converted") or [] if each["files"]} & timed
    if not made or "x86_64" not in facts["environment"]["system"]:
        return []
    names = ", ".join(sorted(made))
    return [f"{names}: timed on an x86 processor, whose kernels are others than ARM's; a proxy that ranks no phones"]


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
