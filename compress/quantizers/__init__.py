"""Quantizers: one file each. `apply(config, source, target, calibration, scratch)` writes the quantized ONNX file."""
