"""The order of the files: what takes minutes begins first, so that no worker is left alone with it at the end. And
fewer rounds for chains that are run for what they make, not for how fast that is.
"""

import dataclasses

import pytest

from compress import bench

LONGEST = (
    "test_pipeline", "test_convert", "test_screen", "test_nets_mobile", "test_arm64_emulated", "test_nets_exported",
    "test_pruning_steps", "test_prune", "test_schedules", "test_quantize", "test_export", "test_soft_tree",
    "test_transfer", "test_resume", "test_readme",
)  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module")
def few_rounds():
    """The tier `smoke` with three rounds instead of five: each visit is a process, which takes a second to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.TIERS, "smoke", dataclasses.replace(bench.TIERS["smoke"], rounds=3))
        yield
