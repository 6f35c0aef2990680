"""The order of the files: what takes minutes begins first, so that no worker is left alone with it at the end. A
processor for each worker, a short tier for chains, short probes, and torch's table of operators read once.
"""

import dataclasses
import functools
import os
import sys

import pytest

from compress import bench

LONGEST = (
    "test_convert", "test_pipeline", "test_prune", "test_nets_mobile", "test_arm64_emulated", "test_nets_exported",
    "test_screen", "test_adb", "test_page", "test_pruning_steps", "test_resume", "test_nets", "test_runtimes",
    "test_taps", "test_export", "test_ladder", "test_readme", "test_web", "test_bench", "test_schedules", "test_cli",
    "test_qat", "test_quantize_file", "test_bench_extras", "test_photos",
)  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_configure(config) -> None:
    """A processor for each worker: two that both train on all of them are slower than one after the other."""
    worker = getattr(config, "workerinput", {}).get("workerid", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[int(worker) % len(allowed)]})


@pytest.fixture(scope="session", autouse=True)
def shorter():
    """Less of what the tests do not look at. Tier `smoke` has fewer rounds: each visit is a process, which takes half a
    second to start. How a network runs fastest is asked in one round: it may be wrong. torch's exporter reads its table
    of operators once, instead of anew for every file, a third of a small network's export.
    """
    tier = dataclasses.replace(bench.TIERS["smoke"], rounds=2, warmup_s=0.02, block_s=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.TIERS, "smoke", tier)
        if "torch" in sys.modules:  # files of tests that do without are not to wait for it
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr("compress.execution.FEWEST_ROUNDS", 1)
            patch.setattr("compress.execution.ENOUGH_S", 0.0)
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
