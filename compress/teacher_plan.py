"""Which teachers a recipe means: networks with a checkpoint, networks to be trained on the spot, and ONNX files."""

from dataclasses import dataclass
from pathlib import Path

from compress import catalog
from compress.catalog import Entry
from compress.errors import InputRejected, UsageError
from compress.recipe import Recipe, parse_channels
from compress.types import Dataset

# the teacher that is trained on the spot: wide and shallow for tiny images, which a deeper one learns no better from,
# lighter as they grow
BY_SIZE = ((16, "resnet8x4"), (64, "resnet20"), (10_000, "torchvision:resnet18"))


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """One teacher. `entry` is None for an ONNX file; `file` is that file, or the checkpoint, or None.

    `mean` and `std` are of the images that it was trained on (one value a channel; empty for an ONNX file that
    normalises inside); `size` is the side of the images that it takes in pixels, 0 for that of the data.
    """

    entry: Entry | None
    file: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int

    @property
    def label(self) -> str:
        return self.entry.label if self.entry else str(self.file)

    @property
    def spec(self) -> str:
        return self.entry.spec if self.entry else str(self.file)


def resolve(recipe: Recipe, train: Dataset, plugins: tuple[Path, ...] = ()) -> tuple[TeacherPlan, ...]:
    """One plan for each `teacher` of the recipe. Raises UsageError naming the key, InputRejected naming the file."""
    count = len(recipe.teacher)
    files = _for_each(recipe, "teacher_checkpoint", count, shared=False)
    means, stds = (_for_each(recipe, key, count, shared=True) for key in ("teacher_mean", "teacher_std"))
    sizes = _for_each(recipe, "teacher_size", count, shared=True)
    return tuple(
        _one(spec, file, (mean, std), size, train, plugins)
        for spec, file, mean, std, size in zip(recipe.teacher, files, means, stds, sizes, strict=True)
    )


def _for_each(recipe: Recipe, key: str, count: int, *, shared: bool) -> tuple[str, ...]:
    """The values of `key`, one for each teacher; none at all means an empty one each."""
    values = getattr(recipe, key)
    if not values:
        return ("",) * count
    if len(values) == 1 and shared:
        return values * count
    if len(values) != count:
        raise UsageError(
            f"`{key}` is given {len(values)} times, there are {count} teachers",
            code="E-TEACHER-COUNT",
            hint="give it once for each teacher, in their order; an empty value for one that has none",
        )
    return values


def _one(
    spec: str, file: str, statistics: tuple[str, str], size: str, train: Dataset, plugins: tuple[Path, ...]
) -> TeacherPlan:
    channels, height, _ = train.input_shape
    mean, std = _channels(statistics[0], "teacher_mean", channels), _channels(statistics[1], "teacher_std", channels)
    if spec.endswith(".onnx"):
        if file or size:
            raise UsageError(
                f"the teacher {spec} is an ONNX file: it has no checkpoint and its own size", code="E-OPTION-CONFLICT"
            )
        return TeacherPlan(entry=None, file=_existing(spec, "the teacher"), mean=mean, std=std, size=0)
    if spec == "auto":
        if file:
            raise UsageError(
                "--teacher-checkpoint needs --teacher: which network is it?",
                code="E-OPTION-CONFLICT",
                hint="for example --teacher resnet56",
            )
        spec = next(name for limit, name in BY_SIZE if height <= limit)
    if size and not file:
        raise UsageError(
            "`teacher_size` is for a teacher with a checkpoint; one that is trained here takes the data's own size",
            code="E-OPTION-CONFLICT",
        )
    return TeacherPlan(
        entry=catalog.load("nets", spec, plugins),
        file=_existing(file, "checkpoint") if file else None,
        mean=mean or train.mean,
        std=std or train.std,
        size=0 if not size or int(size) == height else int(size),
    )


def _existing(text: str, what: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputRejected(f"{what} {text} does not exist or is not a file", code="E-FILE-READ")
    return path


def _channels(text: str, key: str, channels: int) -> tuple[float, ...]:
    values = parse_channels(text, key)
    if values and len(values) != channels:
        raise UsageError(
            f"`{key}` has {len(values)} values, the images have {channels} channels", code="E-CHANNEL-VALUES"
        )
    return values
