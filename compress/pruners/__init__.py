"""Pruners: one file each.

`saliency(config, network, samples) → {parameter name: tensor of its shape}` says how much each weight matters, in any
unit; names that are left out do not count. Then either, for pruners that remove whole channels,

- `scores(config, parts) → [float64 [units], …]`: of each family of channels, of `parts` float64 `[weights, units]` (the
  saliency that goes with a unit, weight by weight); scores of all families are compared with each other, and the lowest
  go. Optional: `penalty(config, network) → scalar`, added to the objective of a training that comes first
  (`config.epochs`);

or, for pruners that set single weights to zero,

- `masks(config, saliency, ratio) → {parameter name: bool tensor}`: True where a weight stays. Optional:
  `ratio_at(ratio, step, steps)`, how the part grows over several steps.

`check(config, ratio, steps)` may refuse what is asked (UsageError). `samples` are train images with labels; `SAMPLES`
says how many are wanted (none without it).
"""
