"""Networks: one file each. `build(config, num_classes, input_shape) → nn.Module` takes normalised images, gives logits."""
