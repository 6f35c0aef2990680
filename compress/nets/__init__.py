"""Networks: one file each. `build(config, num_classes, input_shape) → nn.Module`: normalised images in, logits out.

A network with a method `penalty() → scalar`, about its last training forward, has it added to every objective.
"""
