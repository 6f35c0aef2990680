"""Quantizers: one file each. `apply(config, source, target, calibration, scratch)` writes the quantized ONNX file.

`PRECISION` names what it makes; `CALIBRATES = False` says that it looks at no images, `FOR_BYTES = True` that it is
taken for small files, not for speed. One that only turns the knobs of another names that in `FIRST`, the rungs that it
climbs in `RUNGS` (all without it), and has no `apply`: the ladder (`ladder.py`) does it. `check(config)`, where there
is one, raises UsageError for knobs that exclude each other.
"""
