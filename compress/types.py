"""The few frozen records that steps exchange. Raw facts only: derived numbers are computed late, in `report/rows.py`.

Only the standard library and numpy are imported here; a torch tensor is named as `Any` where a record may hold one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split. `images` uint8 `[N,H,W,C]` (C is 1 or 3; may be memory-mapped), `labels` int64 `[N]` (−1: none).

    `mean` and `std` (one value a channel, of images in [0,1]) are those of the train split, whichever split this is.
    `may_flip` says whether a mirrored image still belongs to its class. `digest` covers pixels, labels and names.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    may_flip: bool
    digest: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, height, width, channels = self.images.shape
        return channels, height, width


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The uses of data. Choices may look at `select` only; `report` is read once, at the end."""

    train: Dataset
    select: Dataset
    calibrate: Dataset
    report: Dataset
    transfer: Dataset | None = None  # what students learn from, where that is not train
    skipped: tuple[str, ...] = ()  # files left out under `on_bad = skip`, with the reason
    warnings: tuple[str, ...] = ()  # what a reader of the results should know about the data


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images uint8 `[N,H,W,C]` and labels int64 `[N]`."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`inputs` float32 `[B,C,H,W]` in [0,1], `labels` int64 `[B]`, `index` and `view` uint64 `[B]` (numpy)."""

    inputs: Any
    labels: Any
    index: np.ndarray
    view: np.ndarray
    progress: float  # of the phase, in [0,1)


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What a tapped network delivers: `logits` `[B,K]`, `pooled` `[B,D]` or None, `maps` stride → `[B,C,H,W]`.

    `members` are the logits `[M,B,K]` of several teachers whose probabilities' mean is meant, or None.
    The maps of student and teacher come in the order of their pairs, shallow to deep. `inputs` is None, or the images
    `[B,C,H,W]` as a leaf that `logits` can be differentiated by.
    """

    logits: Any
    pooled: Any = None
    maps: dict[int, Any] = field(default_factory=dict)
    inputs: Any = None
    members: Any = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method knows before training: of the two networks (their paired stages, the widths of their pooled
    embeddings, 0 where there is none), of the data (the labels int64 `[N]` of the train split, −1 where there is
    none; `mixup`, the share of images that are mixed with another), how several teachers count together
    ("probabilities", "logits" or "random"; "" for one), and what the teacher is where it gives logits only ("" where it
    is a network).
    """

    pairs: tuple[tuple[Any, Any], ...]
    student_pooled: int
    teacher_pooled: int
    num_classes: int
    labels: np.ndarray
    batch_size: int
    mixup: float = 0.0
    together: str = ""
    only_logits: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase of a method that comes before the common one, with a loss of its own.

    `loss(config, student, teacher, batch, adapters) → scalar` reads the maps of `pairs` (student tap, teacher tap).
    Both networks run only as deep as these, unless `logits`; without `student` it does not run at all, and its signals
    are None. `share` is its part of the epochs.
    """

    name: str
    share: float
    loss: Callable[..., Any]
    pairs: tuple[tuple[Any, Any], ...]
    logits: bool = False
    pooled: bool = False
    inputs: bool = False
    student: bool = True


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that ships or is measured, with its contract. `stage` names the step of the chain that made it."""

    path: Path
    digest: str  # sha256 of the file, or `store.folder_digest`
    format: str  # "onnx", "torch" (a network's folder), or a runtime's own (a folder of its files)
    precision: str  # "float32", "int8"
    stage: str
    size_bytes: int
    parameters: int
    macs: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How files are asked beside one query after another: at batch sizes, and at a rate in frames per second (0: not)
    with the time that an answer may take; and for how long without a pause (0: not).
    """

    batches: tuple[int, ...] = (1,)
    fps: float = 0.0
    deadline_ns: float = 0.0
    sustained_s: float = 0.0


SINGLE_STREAM = Scenario()

# How a cell can fail. Its process died of a fault of its own (crashed: a segmentation fault, an abort) or was ended
# from outside (killed: most often for want of memory), gave no result in time (hung), none at all (ended-early) or none
# that can be read (rubbish), said what went wrong (error), or ran on a machine that is out of reach now (lost). Or
# nothing was timed: the runtime cannot be used there (unavailable), or the file is not for it (refused).
FailureKind = Literal[
    "crashed", "killed", "hung", "ended-early", "rubbish", "error", "lost", "unavailable", "refused"
]  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Why there is no measurement: `reason`, for people, and its kind. Both are empty, and it is false, for none."""

    reason: str = ""
    kind: FailureKind | Literal[""] = ""

    def __bool__(self) -> bool:
        return bool(self.reason)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One cell's raw facts: an artifact in a runtime at a number of threads. `failure` says why there is none, and
    `failure_kind` in one word.
    """

    cell: str
    artifact: str  # the artifact's stage name
    artifact_digest: str
    runtime: str
    runtime_version: str
    threads: int
    batch: int
    visits: tuple[dict[str, Any], ...] = ()  # one a round; see worker.py for the fields
    memory: dict[str, Any] | None = None  # of a visit of its own: see worker.py, or `failure`
    sustained: dict[str, Any] | None = None  # `windows` and `failure`, where the cell was to work without a pause
    failure: str = ""
    failure_kind: FailureKind | Literal[""] = ""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the versions that a number belongs to."""

    cpu_model: str
    isa: tuple[str, ...]
    cores_allowed: int
    cpu_quota: float  # cores granted by the control group; 0 when there is no limit
    memory_bytes: int
    gpu: str
    system: str
    python: str
    packages: dict[str, str]
    commit: str
    virtual: bool | None = None  # a virtual machine; None where the system does not say
