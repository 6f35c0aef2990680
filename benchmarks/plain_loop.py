"""The loop that ours is compared with: what a careful person writes with torch and torchvision alone.

Float32, contiguous; a DataLoader whose items go through PIL: crop with padding, flip,
ToTensor, Normalize. The images lie in memory as uint8, as in torchvision's CIFAR10; no file is decoded in the loop.
It has a process of its own, so that what we set in ours (how memory is given back) is not set for it.
"""

import copy
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compress import catalog, types
from compress.catalog import Entry
from compress.types import Batch, Signals


class PillowImages(Dataset):
    """Images uint8 `[N,H,W,3]` one by one: augmented, normalised float32 `[3,H,W]`, and the label."""

    def __init__(self, data: types.Dataset, mean: tuple[float, ...], std: tuple[float, ...]):
        # a copy in memory: ours may read a memory map, whose rows are slower to index one by one
        self.images, self.labels = np.array(data.images), data.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@dataclass(frozen=True, kw_only=True)
class PlainSetting:
    """What the loop trains with; `threads` is for the main process, torch's own choice unless told otherwise."""

    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    threads: int
    method: str  # as on the command line: the same function as on our side


class PlainProcess:
    """The loop in a new process, which lives as long as the `with`: `step_starts_s` of fresh copies of the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module, images: PillowImages, setting: PlainSetting):
        # spawned, not forked: a fork would take over what is set here
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, student, teacher, images, setting))

    def __enter__(self) -> "PlainProcess":
        self.process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        self.process.join()

    def step_starts_s(self, *, workers: int, steps: int) -> list[float]:
        """As the function of that name; raises EOFError when the process has ended."""
        self.pipe.send({"workers": workers, "steps": steps})
        return self.pipe.recv()


def _serve(
    pipe: Connection, student: nn.Module, teacher: nn.Module, images: PillowImages, setting: PlainSetting
) -> None:
    method = catalog.load("methods", setting.method)
    while True:
        pipe.send(step_starts_s(copy.deepcopy(student), teacher, method, images, setting, **pipe.recv()))


def step_starts_s(
    student: nn.Module, teacher: nn.Module, method: Entry, images: PillowImages, setting: PlainSetting,
    *, workers: int, steps: int,
) -> list[float]:  # fmt: skip
    """Train `student` for `steps` steps; the clock at the start of each step, before its batch is fetched.

    `method` is the entry whose loss is used: the same function as on our side. At least `steps` batches are needed.
    """
    torch.set_num_threads(setting.threads)
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=setting.learning_rate,
        momentum=setting.momentum,
        weight_decay=setting.weight_decay,
        nesterov=True,
    )
    loader = DataLoader(images, batch_size=setting.batch_size, shuffle=True, drop_last=True, num_workers=workers)
    student.train()
    teacher.eval()
    starts = []
    batches = iter(loader)
    for _ in range(steps):
        starts.append(time.perf_counter())
        inputs, labels = next(batches)
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        student_logits = student(inputs)
        loss = method.module.loss(
            method.config, Signals(logits=student_logits), Signals(logits=teacher_logits), _batch(inputs, labels), None
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return starts


def _batch(inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
    nowhere = np.zeros(len(labels), np.uint64)
    return Batch(inputs=inputs, labels=labels, index=nowhere, view=nowhere, progress=0.0)
