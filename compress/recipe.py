"""The Recipe: everything that the user asked for, in one frozen record that is written beside the result.

Each field is declared once; the command line, `--set`, TOML files and `--help` read it from here. A recipe is data: it
never names code (plugins come from the command line only).
"""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import config, recipe_places, units
from compress.config import knob
from compress.errors import InputRejected, UsageError
from compress.targets import TARGETS

AUTO = "auto"  # as the student: one of the candidates, chosen by what they cost here


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """0, "" and "auto" mean: chosen from the data; the chosen values are printed and written back."""

    data: str = knob("digits", "data set: a name, or a folder of images")
    image_size: int = knob(
        0, "side of the images of a folder in pixels, for folders only; 0: automatic", low=0, high=1024
    )
    on_bad: str = knob("fail", "an unreadable image: stop, or leave it out and list it", choices=("fail", "skip"))
    download: bool = knob(False, "let a data set be fetched from the network")
    select_fraction: float = knob(0.1, "part of train carved out for choices", low=0.01, high=0.5)
    unlabelled: str = knob("", "folder of images without labels, which students learn from too, by the soft losses")
    transfer_lacks: tuple[str, ...] = knob(
        (), "classes that students do not see; their bias is corrected on select", separator=";"
    )
    calibration_images: int = knob(512, "train images that int8 ranges come from", low=300, high=100_000)

    teacher: tuple[str, ...] = knob(
        ("auto",), "teacher: a network or an ONNX file; several teach together, the first is compared with",
        separator=";",
    )  # fmt: skip
    ensemble: str = knob(
        "probabilities", "several teachers: the mean of their probabilities or logits, or one at random each step",
        choices=("probabilities", "logits", "random"),
    )  # fmt: skip
    teacher_checkpoint: tuple[str, ...] = knob((), "its weights; without, it is trained on the spot", separator=";")
    teacher_mean: tuple[str, ...] = knob(
        (), "mean of the images that the teacher was trained on, one value a channel", separator=";"
    )
    teacher_std: tuple[str, ...] = knob((), "their standard deviation", separator=";")
    teacher_size: tuple[str, ...] = knob(
        (), "side in pixels of the images that it takes, where that is not the data's; they are resized", separator=";"
    )
    teacher_epochs: int = knob(
        0, "epochs of a teacher trained on the spot; 0: chosen from the data", low=0, high=100_000
    )
    student: str = knob("mobilenet", "student network; `auto`: the best of the candidates that the limits allow")
    max_latency: str = knob(
        "", "most that an image may take, by the upper end of the interval, such as 3ms; empty: no limit"
    )
    max_size: str = knob("", "most bytes of the file that ships, such as 500kB (kB: 1000 bytes); empty: no limit")
    screen_epochs: int = knob(
        0, "with `auto`, epochs of labels that candidates are tried for; 0: the most MACs win", low=0, high=100_000
    )
    width: float = knob(0.0, "width multiplier of the student, over its spec's; 0: its default", low=0, high=16)
    kd: tuple[str, ...] = knob(("kd",), "distillation methods, with knobs; they add up", separator=";")
    pairing: tuple[str, ...] = knob(
        ("stride",), "stages of student and teacher that are compared: `stride`, `index` (list positions), or pairs "
        "STUDENT_MODULE=TEACHER_MODULE", separator=";",
    )  # fmt: skip
    assistant: tuple[str, ...] = knob(
        (), "networks between teacher and student, the largest first: each is taught by the one before", separator=";"
    )
    peer: tuple[str, ...] = knob((), "networks that learn together with the student and from each other", separator=";")
    generations: int = knob(
        0, "students that follow the first, each new and taught by the one before; the best on select is kept", low=0,
        high=100,
    )  # fmt: skip
    refine: bool = knob(False, "generations only as long as they get better on select (label refinery)")
    prune: str = knob(
        "", "part of the channels to remove (0.5), or of the cost to keep (macs=0.5, latency=0.6); empty: no pruning"
    )
    pruner: str = knob("magnitude", "how much each channel matters, or which single weights become zero")
    prune_scope: str = knob(
        "global", "channels compete with those of all layers, or with those of their own", choices=("global", "uniform")
    )
    prune_round_to: int = knob(
        0, "widths that pruning leaves are multiples of this; 0: as the target wants", low=0, high=256
    )
    prune_steps: int = knob(1, "prune little by little, with recovery after each step", low=1, high=100)
    least_speedup: float = knob(
        1.15,
        "a pruned stage is kept if it is that much faster than its parent, int8 if it is faster at all; 0: any that "
        "is accurate",
        low=0,
        high=100,
    )
    quantize: str = knob("", "quantizer; empty: the artifact stays float")
    target: str = knob("generic", f"where the artifact will run: {', '.join(target.name for target in TARGETS)}")
    max_drop: float = knob(1.0, "most top-1 that a stage may cost against its parent, in points", low=0, high=100)

    epochs: int = knob(0, "epochs of distillation; 0: from the number of images", low=0, high=100_000)
    recover_epochs: int = knob(0, "epochs of recovery after pruning; 0: a quarter", low=0, high=100_000)
    batch_size: int = knob(0, "images a step; 0: from the number of images", low=0, high=65_536)
    learning_rate: float = knob(
        0.0, "peak learning rate of an objective of the size of plain cross-entropy; 0: chosen from the data", low=0,
        high=100,
    )  # fmt: skip
    optimizer: str = knob("sgd", "optimizer", choices=("sgd", "adamw"))
    schedule: str = knob("cosine", "shape of the learning rate", choices=("cosine", "onecycle", "constant"))
    weight_decay: float = knob(5e-4, "weight decay of matrices and kernels", low=0, high=10)
    ema: float = knob(0.0, "decay of an average of the weights; 0: none", low=0, high=0.99999)
    views: int = knob(
        0, "augmented views of each image; 0: one for each epoch where the teacher's answers are kept, else endless",
        low=0, high=2**31,
    )  # fmt: skip
    mixup: float = knob(
        0.0, "share of the images that are mixed with another one, in a proportion drawn evenly; they have no label",
        low=0, high=1,
    )  # fmt: skip
    keep_answers: bool = knob(True, "keep the teacher's logits in the store, for later runs")
    precision: str = knob("auto", "training precision", choices=("auto", "float32", "bfloat16"))

    runtimes: tuple[str, ...] = knob(("ort_cpu", "ort_cuda", "torch_eager"), "runtimes to measure in")
    tier: str = knob("auto", "length of the benchmark", choices=("auto", "smoke", "quick", "standard", "rigorous"))
    threads: tuple[str, ...] = knob(("1",), "numbers of threads to measure at")
    corruptions: bool = knob(False, "accuracy on noisy, blurred, JPEG, bright and flat images of `report` too")
    seed: int = knob(0, "seed of everything", low=0, high=2**31 - 1)
    device: str = knob("auto", "where to train: cpu or cuda", choices=("auto", "cpu", "cuda"))
    out: str = knob(".", "folder that gets models/ and reports/")
    name: str = knob("", "name of the run; empty: made from the data, student and stages")

    def __post_init__(self) -> None:
        config.check(self, "the recipe")
        for key in ("teacher", "kd", "pairing", "runtimes", "threads"):
            items = getattr(self, key)
            if not items or "" in items:
                raise UsageError(f"`{key}` in the recipe is empty: at least one is needed", code="E-KNOB-RANGE")
            if key in ("runtimes", "threads") and len(set(items)) < len(items):
                raise UsageError(
                    f"`{key}` in the recipe names something twice: {', '.join(items)}", code="E-KNOB-RANGE"
                )
        self._check_screening()
        if self.refine and not self.generations:
            raise UsageError(
                "`refine` needs `generations`: the most that there may be",
                code="E-OPTION-CONFLICT",
                hint="add --set generations=2",
            )
        for number in self.threads:
            if not number.isdigit() or not 1 <= int(number) <= 1024:
                raise UsageError(
                    f"`threads` in the recipe must be whole numbers from 1 to 1024, got `{number}`", code="E-KNOB-RANGE"
                )
        if self.pairing not in (("stride",), ("index",)) and any(text.count("=") != 1 for text in self.pairing):
            raise UsageError(
                "`pairing` in the recipe must be `stride`, `index` or pairs STUDENT_MODULE=TEACHER_MODULE, got "
                f"`{';'.join(self.pairing)}`",
                code="E-PAIRING",
                hint="for example --set 'pairing=body.features.6=body.layer2;body.features.13=body.layer3'",
            )
        if "=" in self.pairing[0] and (self.assistant or self.peer):
            raise UsageError(
                "`pairing` by names is of one student and one teacher, not of assistants or peers",
                code="E-PAIRING",
                hint="take --set pairing=stride",
            )
        parse_prune(self.prune)
        for key in ("teacher_mean", "teacher_std"):
            for text in getattr(self, key):
                parse_channels(text, key)
        if [bool(text) for text in self.teacher_mean] != [bool(text) for text in self.teacher_std]:
            raise UsageError(
                "`teacher_mean` and `teacher_std` belong together: give both or none", code="E-OPTION-CONFLICT"
            )
        for text in self.teacher_size:
            if text and not (text.isdigit() and 1 <= int(text) <= 1024):
                raise UsageError(
                    f"`teacher_size` in the recipe must be whole numbers from 1 to 1024, got `{text}`",
                    code="E-KNOB-RANGE",
                )

    def _check_screening(self) -> None:
        if self.max_latency:
            units.latency_ns(self.max_latency, "`max_latency` in the recipe")
        if self.max_size:
            units.size_bytes(self.max_size, "`max_size` in the recipe")
        if self.student == AUTO and self.width:
            raise UsageError(
                "--width is of one student, and --student auto chooses among several",
                code="E-OPTION-CONFLICT",
                hint="leave --width away: the candidates have widths of their own, see `compress list nets --input`",
            )
        if self.screen_epochs and self.student != AUTO:
            raise UsageError(
                f"`screen_epochs` tries candidates, and the student is given: `{self.student}`",
                code="E-OPTION-CONFLICT",
                hint="add --student auto, or leave --screen-epochs away",
            )


# at most this part of a layer's channels goes, so that none is emptied
MOST_OF_A_LAYER = 0.8

# keys that say where things go and how they look, not what they are
PLACES = ("out", "name", "download")


def from_values(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A Recipe from texts or TOML values. Raises UsageError naming the key, the rule and the nearest key."""
    return config.build(Recipe, values, where)


def parse_prune(text: str) -> tuple[str, float] | None:
    """(`channels`, `macs` or `latency`, number) of `0.5`, `macs=0.5`, `latency=0.6`; None of nothing or 0.

    Raises UsageError.

    >>> parse_prune("macs=0.5")
    ('macs', 0.5)
    """
    kind, equals, number = text.rpartition("=")
    kind = kind.strip() if equals else "channels"
    if not text:
        return None
    if kind not in ("channels", "macs", "latency"):
        raise UsageError(
            f"`prune`: `{kind}` in `{text}` is no target",
            code="E-PRUNE-VALUE",
            hint="take 0.5, macs=0.5 or latency=0.6",
        )
    value = config.convert(float, number, f"`prune` in `{text}`")
    if value == 0 and kind == "channels":
        return None
    if not 0 < value < 1:
        raise UsageError(
            f"`prune` must lie between 0 and 1, got `{text}`",
            code="E-PRUNE-VALUE",
            hint="0.5 removes half of the channels; macs=0.5 and latency=0.6 keep that part",
        )
    return kind, value


def parse_channels(text: str, key: str) -> tuple[float, ...]:
    """`.485,.456,.406` (commas or spaces) as numbers; empty text gives ()."""
    values = tuple(config.convert(float, part, f"`{key}`") for part in text.replace(",", " ").split())
    if len(values) not in (0, 1, 3):
        raise UsageError(f"`{key}` needs one value a channel (1 or 3), got {len(values)}", code="E-CHANNEL-VALUES")
    if key == "teacher_std" and any(v <= 0 for v in values):
        raise UsageError(f"`{key}` must be positive, got {text}", code="E-CHANNEL-VALUES")
    return values


def read(path: Path) -> dict[str, Any]:
    """The values of a recipe file. Raises InputRejected naming the file and line of a TOML error."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise InputRejected(f"cannot read the recipe {path}: {error.strerror}", code="E-FILE-READ") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        refused = InputRejected(f"the recipe {path} is not valid TOML: {error}", code="E-RECIPE-TOML")
        refused.excerpt = recipe_places.of_syntax(path, text, str(error))
        raise refused from error


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, with each key's sentence; `read` and `from_values` give the same recipe back."""
    import tomli_w

    lines = ["# made by `compress run`; give it back with `compress run --recipe FILE`"]
    for field in dataclasses.fields(recipe):
        if field.name in PLACES:
            continue  # where to write and whether to fetch are for each command to say
        value = getattr(recipe, field.name)
        plain = list(value) if isinstance(value, tuple) else value
        entry = tomli_w.dumps({field.name: plain}).strip()
        lines += [f"\n# {field.metadata['help']}", entry]
    return "\n".join(lines) + "\n"


def as_dict(recipe: Recipe) -> dict[str, Any]:
    return {
        f.name: list(v) if isinstance(v := getattr(recipe, f.name), tuple) else v for f in dataclasses.fields(recipe)
    }


def run_name(recipe: Recipe) -> str:
    """`digits-mobilenet-fitnet-int8`: a readable folder name."""
    data = Path(recipe.data.partition(":")[0]).name or "data"
    parts = [data, recipe.student.partition(":")[0], *(spec.partition(":")[0] for spec in recipe.kd)]
    if target := parse_prune(recipe.prune):
        parts.append(f"prune{'' if target[0] == 'channels' else '-' + target[0]}{target[1]:g}")
    if recipe.quantize:
        parts.append(recipe.quantize.partition(":")[0])
    name = recipe.name or "-".join(parts)
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip(".-") or "run"
