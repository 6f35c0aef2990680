"""Pruners: one file each. `scores(config)` gives a Torch-Pruning importance: coupled channels → one score each."""
