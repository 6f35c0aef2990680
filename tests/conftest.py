"""The order of the files: what takes minutes begins first, so that no worker is left alone with it at the end."""

LONGEST = (
    "test_pipeline", "test_screen", "test_nets_mobile", "test_pruning_steps", "test_prune", "test_schedules",
    "test_quantize", "test_export", "test_soft_tree", "test_transfer", "test_resume", "test_readme",
)  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
