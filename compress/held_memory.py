"""What a cell holds of the memory: visits of their own, in which nothing is timed (see `worker.py`)."""

from pathlib import Path
from typing import Any

from compress.child import ChildFailed, Host, readable
from compress.worker import load_adapter

_TOLD = ("peak_rss_bytes", "empty_rss_bytes", "pss_bytes", "gpu_bytes")


def of_cell(
    spec: dict[str, Any], artifact: Path, work: Path, plugins: tuple[Path, ...], host: Host, *, compare: bool
) -> dict[str, Any]:
    """Bytes, or the reason in `failure`: the most that was resident, what was before a runtime was known, the part of
    what is shared, and GPUs'; and, with `compare`, of a runtime that can do without its arena, the most without one.
    """
    asked = spec | {"mode": "memory"}
    try:
        visit = host.run(asked, work, 2 * spec["start_allowance_s"], plugins)
        found = {key: visit[key] for key in _TOLD}
        if compare and hasattr(load_adapter(spec["adapter"]), "open_without_arena"):
            visit = host.run(asked | {"arena": False}, work, 2 * spec["start_allowance_s"], plugins)
            found["arena_off_peak_rss_bytes"] = visit["peak_rss_bytes"]
    except ChildFailed as failure:
        return {"failure": readable(failure, spec["model"], artifact)}
    return found | {"failure": ""}
