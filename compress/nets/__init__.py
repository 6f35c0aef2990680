"""Networks: one file each. `build(config, num_classes, input_shape) → nn.Module`: normalised images in, logits out."""
