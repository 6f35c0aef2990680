"""The learning experiments: what is compared with what, and how it is trained. `learning.py` runs them.

A variant is what it changes in a recipe. Everything else is equal in all variants of an experiment: the data, the
initial weights, the order of the images and their views, seed by seed.
"""

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """`variants` name → what it adds to `common`, a recipe. `compared` are (ours, baseline), each "variant" or
    "variant/outcome"; an outcome is a stage of the schedule, an ensemble of generations, or one class of the images.
    Variants outside `paired` get one seed; `images` is how many train images are used, 0 for all.
    """

    about: str
    common: Values
    variants: dict[str, Values]
    compared: tuple[tuple[str, str], ...]
    seeds: int = 5
    images: int = 0
    paired: tuple[str, ...] | None = None
    published: dict[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # whose images are counted apart


def cifar10(data: str, teacher_checkpoint: str) -> Values:
    """The real teacher, and a schedule that two cores can repeat a hundred times. AdamW, since it does not feel the
    size of an objective: with SGD so few steps would compare learning rates.
    """
    return {
        "data": data, "teacher": ["resnet56"], "teacher_checkpoint": [teacher_checkpoint],
        "teacher_mean": [".485,.456,.406"], "teacher_std": [".229,.224,.225"], "epochs": 3, "batch_size": 64,
        "optimizer": "adamw", "learning_rate": 0.003,
    }  # fmt: skip


CIFAR10_IMAGES = 4000
NAMED = ("kd", "dkd", "dist", "fitnet", "attention", "similarity", "rkd", "crd")
OTHERS = (
    "logits", "noisy", "pkt", "vid", "nst", "factor", "reviewkd", "mgd", "attention_gradient",
    "kd:temperature=2,kd_weight=9,standardise=true", "dkd:temperature=2,standardise=true",
)  # fmt: skip
# top-1 % of MobileNetV2 taught by VGG13 on CIFAR-100, 240 epochs: the tables of RepDistiller (last epoch), of
# mdistiller (dkd, best epoch) and of the paper on logit standardisation
PUBLISHED = {
    "cross_entropy": 64.60, "kd": 67.37, "fitnet": 64.14, "attention": 59.40, "similarity": 66.30, "vid": 65.56,
    "rkd": 64.52, "pkt": 67.13, "factor": 61.78, "nst": 58.16, "crd": 69.73, "dkd": 69.71,
    "kd:temperature=2,kd_weight=9,standardise=true": 68.61,
}  # fmt: skip

NOISE = {
    "regression": {"kd": ["logits"]},
    "noisy, alpha .15, sigma .5": {"kd": ["noisy:alpha=0.15,sigma=0.5"]},
    "noisy, alpha .5, sigma .1": {"kd": ["noisy:alpha=0.5,sigma=0.1"]},
    "noisy, alpha .5, sigma .5": {"kd": ["noisy:alpha=0.5,sigma=0.5"]},
    "noisy, alpha 1, sigma .5": {"kd": ["noisy:alpha=1,sigma=0.5"]},
    "noise in the student, alpha .5, sigma .5": {"kd": ["noisy:alpha=0.5,sigma=0.5,where=student"]},
}


def noise(common: Values, student: str, about: str, images: int = 0, seeds: int = 5) -> Experiment:
    """The paper's comparison for one pair of networks: noise in the teacher, in the student, dropout."""
    dropped = {"dropout .5": {"kd": ["logits"], "student": f"{student}:dropout=0.5"}}
    variants = {name: {"student": student} | values for name, values in NOISE.items()} | dropped
    compared = tuple((name, "regression") for name in variants if name != "regression")
    return Experiment(
        about=about, common=common, variants=variants, compared=compared, images=images, seeds=seeds
    )  # fmt: skip


def all_of(data: str, teacher_checkpoint: str) -> dict[str, Experiment]:
    """Every experiment; those on CIFAR-10 want its folder and the weights of resnet56."""
    cifar = cifar10(data, teacher_checkpoint)
    eight = {**cifar, "epochs": 4, "student": "resnet_cifar:depth=8"}
    digits: Values = {"data": "digits"}
    tree = {**digits, "teacher": ["lenet"], "student": "soft_tree", "epochs": 60}
    missing = {
        **digits,
        "teacher": ["mlp:hidden=1200,dropout=0.5"],
        "student": "mlp:hidden=64",
        "kd": ["kd:temperature=8"],
    }
    methods = {name: {"kd": [name]} for name in ("cross_entropy", *NAMED)}
    by_index = {"attention, paired by index": {"kd": ["attention"], "pairing": ["index"]}}
    others = {name: {"kd": [name]} for name in OTHERS}
    first = (*methods, *by_index)
    return {
        "methods": Experiment(
            about="every method, resnet56 teaching MobileNetV2 (width 0.5) on CIFAR-10",
            common={**cifar, "student": "mobilenet"},
            variants={**methods, **by_index, **others},
            compared=(
                *((name, "cross_entropy") for name in (*methods, *by_index, *others) if name != "cross_entropy"),
                ("attention", "attention, paired by index"),
            ),
            images=CIFAR10_IMAGES, paired=first, published=PUBLISHED,
        ),
        "born_again": Experiment(
            about="born-again generations of ResNet-8 on CIFAR-10, from labels on, and their ensembles",
            common={**eight, "kd": ["cross_entropy"]},
            variants={"born again": {"generations": 3}},
            compared=(
                ("born again/generation-1", "born again/distilled"),
                ("born again/generation-3", "born again/distilled"),
                ("born again/ensemble of 2", "born again/generation-2"),
                ("born again/ensemble of 3", "born again/generation-3"),
            ),
            images=CIFAR10_IMAGES,
        ),
        "mutual": Experiment(
            about="two ResNet-8 that learn together against one that learns alone, CIFAR-10, labels only",
            common={**eight, "kd": ["cross_entropy"]},
            variants={"alone": {}, "together": {"peer": ["resnet_cifar:depth=8"]}},
            compared=(("together", "alone"), ("together/peer-1", "alone")),
            images=CIFAR10_IMAGES,
        ),
        "assistant": Experiment(
            about="resnet56 teaches ResNet-8 directly, or through resnet20, CIFAR-10",
            common={**eight, "kd": ["kd"]},
            variants={"labels only": {"kd": ["cross_entropy"]}, "direct": {}, "assistant": {"assistant": ["resnet20"]}},
            compared=(("direct", "labels only"), ("assistant", "direct")),
            images=CIFAR10_IMAGES,
        ),
        "noisy_cifar10": noise(
            cifar, "lenet_cifar", "noisy teacher: resnet56 teaches LeNet on CIFAR-10", CIFAR10_IMAGES, seeds=3
        ),
        "noisy_mlp": noise({**digits, "teacher": ["lenet"]}, "mlp", "noisy teacher: LeNet teaches an MLP, digits"),
        "noisy_lenet": noise(
            {**digits, "teacher": ["nin"]}, "lenet_cifar", "noisy teacher: network in network teaches LeNet, digits"
        ),
        "missing_class": Experiment(
            about="a transfer set of digits without threes, and the correction of the bias",
            common=missing,
            variants={
                "all classes": {},
                "no threes": {"transfer_lacks": ["3"]},
                "no threes, labels only": {"transfer_lacks": ["3"], "kd": ["cross_entropy"]},
            },
            compared=(
                ("no threes", "all classes"),
                ("no threes/corrected", "no threes"),
                ("no threes/corrected, of class 3", "no threes/distilled, of class 3"),
                ("no threes/corrected", "no threes, labels only/corrected"),
            ),
            classes=("3",),
        ),
        "soft_tree": Experiment(
            about="a soft decision tree of depth 5 on digits, from a LeNet's answers or from labels",
            common=tree,
            variants={
                "labels": {"kd": ["soft_tree:ce_weight=1,kd_weight=0"]},
                "distilled": {"kd": ["soft_tree"]},
                "both": {"kd": ["soft_tree:ce_weight=0.5,kd_weight=0.5"]},
            },
            compared=(("distilled", "labels"), ("both", "labels")),
        ),
    }  # fmt: skip
