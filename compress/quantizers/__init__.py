"""Quantizers: one file each. `apply(config, source, target, calibration, scratch)` writes the quantized ONNX file.

`PRECISION` names what it makes; `CALIBRATES = False` says that it looks at no images. One that only turns the knobs of
another names that in `FIRST` and has no `apply`: the ladder (`ladder.py`) does it.
"""
