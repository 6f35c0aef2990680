"""Settings that were in effect, as far as each runtime tells them: what was really measured."""

from typing import Any

# said elsewhere (with the cell, its warnings, and who took the times), or no setting but a time
_ASIDE = ("nodes", "runner", "note", "create_ms")


def settings_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each runtime, number of threads and settings: `runtime`, `threads`, the `stages` that ran so, and
    `settings` in words; a cell that did not run alike in every visit has a row for each way.
    """
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for measurement in facts["measurements"]:
        runtime, threads, stage = (measurement[key] for key in ("runtime", "threads", "stage"))
        for words in {} if measurement["control"] else _ways(measurement):
            row = {"runtime": runtime, "threads": threads, "stages": [], "settings": words}
            stages = rows.setdefault((runtime, threads, words), row)["stages"]
            stages += [stage] if stage not in stages else []
    return list(rows.values())


def _ways(measurement: dict[str, Any]) -> dict[str, None]:
    """The different settings of a cell's visits, in words, the first first."""
    said = ("; ".join(_words(visit.get("effective", {}))) for visit in measurement["visits"])
    return dict.fromkeys(filter(None, said))


def _words(effective: dict[str, Any]) -> list[str]:
    said = []
    for key, value in effective.items():
        if key == "fixed_batch":
            said += [f"batches of {value} only"] if value else []
        elif key not in _ASIDE:
            said.append(f"{key.replace('_', ' ')} {_value(value)}")
    return said


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{_value(each)} {key}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)


def sentences(facts: dict[str, Any]) -> list[str]:
    """What a reader is warned of: cells whose rounds are not of one kind."""
    return [
        f"{measurement['cell']}: its settings were not the same in every round: {' | '.join(ways)}"
        for measurement in facts["measurements"]
        if len(ways := _ways(measurement)) > 1
    ]
