"""Distillation methods: one file each.

An entry has `loss(config, student, teacher, batch, adapters) → scalar`, the objective as published with its own hard
label term; several methods add up. `NEEDS` names the signals that it reads: "teacher", "maps", "pooled", "inputs" (the
images as a leaf, for methods that match gradients). Optional, `setting` being a `types.Setting`:

- `adapters(config, setting) → nn.Module`: what is trained with the student and is never part of it, or is kept with
  the checkpoints (buffers).
- `stages(config, setting) → tuple[Stage, …]`: phases that come before the common one.
- `check(config, setting)`: raises UsageError where the method is undefined; called before any training.
- `scale(config) → float`: how large the gradient of `loss` is against that of plain cross-entropy (1 without it);
  SGD's learning rate is divided by the sum over the methods.

Noise is drawn from torch's generator: the training loop seeds it for each step.
"""
