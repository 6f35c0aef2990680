"""Data sets: one file each, `load(config, *, download, on_bad, cache, progress) → Source`."""
