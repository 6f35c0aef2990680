"""Distillation methods: one file each.

An entry has `loss(config, student, teacher, batch, adapters) → scalar`, the objective as published with its own hard
label term; several methods add up. `NEEDS` names the signals that it reads: "teacher", "maps", "pooled". Optional:
`adapters(config, pairs) → nn.Module`, trained with the student, never part of it; `pairs` are the (student tap, teacher
tap) of equal stride. `stages(config, pairs) → tuple[Stage, …]`, phases that come before the common one.
`scale(config) → float`, how large the gradient of `loss` is against that of plain cross-entropy (1 without it): SGD's
learning rate is divided by the sum over the methods.
"""
