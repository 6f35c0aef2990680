"""FitNet: a hint from the middle of the teacher first, then distillation. Two stages, as in the paper.

    stage 1, hint:   L_HT = ½ · mean (u_h(x) − r(v_g(x)))²      trains the student up to the guided layer, and r
    stage 2:         L = CE(z_s, y) + λ · T² · KL(softmax(z_t/T) ‖ softmax(z_s/T)),   λ from 4 to 1 linearly

u_h is the teacher's map at the hint layer, v_g the student's at the guided layer, r the regressor, λ `kd_weight`.
Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", eq. 3 and 4, section 3.1. What most code calls FitNet
adds the hint to the loss in a single stage; that is not the paper's algorithm.
Deviations: r is a 1×1 convolution with BatchNorm (the paper: a valid convolution whose size depends on the maps), the
larger map is average-pooled, and the squared distance is a mean, so that the learning rate suits every size. Hint and
guided layer are stages of equal stride: the middle pair, of two the deeper.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from compress.config import knob
from compress.errors import UsageError
from compress.losses import hard_label_loss, pool_to_smaller, soft_label_loss, soft_logits
from compress.taps import Tap
from compress.types import Batch, Setting, Signals, Stage

NEEDS = ("teacher",)


@dataclass(frozen=True, kw_only=True)
class Config:
    temperature: float = knob(3.0, "temperature T of stage 2 (the official code's)", low=0.05, high=1000)
    ce_weight: float = knob(1.0, "weight of the hard-label cross-entropy in stage 2", low=0, high=1e6)
    kd_weight_first: float = knob(4.0, "weight of the soft-label term at the start of stage 2", low=0, high=1e6)
    kd_weight_last: float = knob(1.0, "weight of the soft-label term at the end of stage 2", low=0, high=1e6)
    hint_share: float = knob(0.1, "share of the epochs spent on the hint stage", low=0.0, high=0.9)
    stride: int = knob(0, "stride of the hint and guided layers; 0: the middle pair", low=0, high=1024)


def guided_pair(config: Config, pairs: tuple[tuple[Tap, Tap], ...]) -> tuple[Tap, Tap]:
    """The (guided, hint) layers: the pair at `stride`, or the middle one, of two the deeper."""
    if config.stride:
        for student, teacher in pairs:
            if config.stride in (student.stride, teacher.stride):
                return student, teacher
        strides = ", ".join(str(student.stride) for student, _ in pairs)
        raise UsageError(
            f"fitnet: no stage of stride {config.stride} in both networks; they share {strides}",
            code="E-METHOD-NEEDS",
            hint="take one of these, or leave `stride` out",
        )
    if not pairs:
        raise UsageError(
            "fitnet needs networks with maps to pair; one of these has none", code="E-METHOD-NEEDS", hint="take --kd kd"
        )
    return pairs[len(pairs) // 2]


def adapters(config: Config, setting: Setting) -> nn.Module:
    """The regressor r: student channels → teacher channels."""
    student, teacher = guided_pair(config, setting.pairs)
    return nn.Sequential(nn.Conv2d(student.shape[0], teacher.shape[0], 1, bias=False), nn.BatchNorm2d(teacher.shape[0]))


def stages(config: Config, setting: Setting) -> tuple[Stage, ...]:
    if config.hint_share == 0:
        return ()
    pair = guided_pair(config, setting.pairs)
    return (Stage(name="hint", share=config.hint_share, loss=_hint_stage_loss, pairs=(pair,)),)


def _hint_stage_loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: nn.Module) -> Tensor:
    (guided,), (hint,) = student.maps.values(), teacher.maps.values()
    return hint_loss(adapters(guided), hint)


def scale(config: Config) -> float:
    """The weights of stage 2 on average: T² keeps the soft term's gradient at the size of the hard one's."""
    return max(1.0, config.ce_weight + (config.kd_weight_first + config.kd_weight_last) / 2)


def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """½ mean (u − r(v))² of maps `[B,C,H,W]` with equal channels; the larger is pooled."""
    student_map, teacher_map = pool_to_smaller(student_map, teacher_map)
    return (student_map - teacher_map).square().mean() / 2


def loss(config: Config, student: Signals, teacher: Signals, batch: Batch, adapters: nn.Module | None) -> Tensor:
    first, last = config.kd_weight_first, config.kd_weight_last
    kd_weight = first + (last - first) * batch.progress
    hard = hard_label_loss(student.logits, batch.labels)
    soft = soft_label_loss(student.logits, soft_logits(teacher, config.temperature), config.temperature)
    return config.ce_weight * hard + kd_weight * soft
