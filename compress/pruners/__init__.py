"""Pruners: one file each. `scores(config) → importance`, a Torch-Pruning importance: coupled channels → one score each."""
