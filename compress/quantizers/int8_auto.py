"""The ladder: int8, repaired rung by rung until it costs no more than `--max-drop` on `select`.

It begins as `int8` does and tries, one after the other and each on top of what helped before: a better calibrator,
BatchNorm statistics for rounded weights, cross-layer equalisation, bias correction, weights that cannot saturate (where
this machine's products do), the most sensitive layers left in float, adaptive rounding, a short training through the
rounding. What each rung cost and gained is in the report; see `ladder.py`.
"""

from dataclasses import dataclass

from compress import qat_knobs
from compress.config import knob

PRECISION = "int8"
# the quantizer that the ladder turns the knobs of
FIRST = "int8"
# when its knobs make no sense
check = qat_knobs.check


@dataclass(frozen=True, kw_only=True)
class Config(qat_knobs.Training):
    most_float: int = knob(4, "most layers that may be left in float", low=0, high=1000)
    rounding_steps: int = knob(500, "steps of adaptive rounding for each layer", low=1, high=100_000)
