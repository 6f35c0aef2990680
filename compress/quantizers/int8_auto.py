"""The ladder: int8, repaired rung by rung until it costs no more than `--max-drop` on `select`.

It begins as `int8` does and tries, one after the other and each on top of what helped before: a better calibrator,
BatchNorm statistics for rounded weights, cross-layer equalisation, bias correction, weights that cannot saturate (where
this machine's products do), the most sensitive layers left in float, adaptive rounding, a short training through the
rounding. What each rung cost and gained is in the report; see `ladder.py`.
"""

from dataclasses import dataclass

from compress.config import knob

PRECISION = "int8"
# the quantizer that the ladder turns the knobs of
FIRST = "int8"


@dataclass(frozen=True, kw_only=True)
class Config:
    qat_share: float = knob(
        0.1, "epochs of training through the rounding, as a part of the recipe's and at least one; 0: none", low=0,
        high=10,
    )  # fmt: skip
    qat_learning_rate: float = knob(1e-4, "its learning rate, in parts of a channel's largest weight", low=1e-7, high=1)
    ce_weight: float = knob(0.1, "in training, weight of the labels", low=0, high=1e6)
    parent_weight: float = knob(1.0, "in training, weight of the float file as a teacher", low=0, high=1e6)
    teacher_weight: float = knob(0.1, "in training, weight of the recipe's teacher", low=0, high=1e6)
    temperature: float = knob(4.0, "in training, temperature of both teachers", low=0.05, high=1000)
    most_float: int = knob(4, "most layers that may be left in float", low=0, high=1000)
    rounding_steps: int = knob(500, "steps of adaptive rounding for each layer", low=1, high=100_000)
