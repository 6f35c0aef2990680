"""Teachers: what answers a batch during training. A network, an ONNX file, several of them, or any with kept answers.

Each has `probe` (its stages, or None for a teacher that gives logits only), `open(stage) → Reader`, and `facts()`. A
reader takes a `Batch` and returns `Signals`; no gradient reaches a teacher.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from compress import taps
from compress.answers import AnswerFile
from compress.execution import Execution
from compress.fuse import fold_batchnorm
from compress.losses import mean_of_probabilities
from compress.network import Network
from compress.types import Batch, Signals, Stage

# a batch of missing answers is filled up to a quarter of the whole: each new size costs the kernels a preparation
_SIZES = 4


class Reader(Protocol):
    def __call__(self, batch: Batch) -> Signals: ...
    def close(self) -> None: ...


class Teacher(Protocol):
    probe: taps.Probe | None
    only_logits: str  # what it is, where it gives nothing else; "" for a network
    together: str  # how several count as one: "probabilities", "logits", "random", or "" for one teacher

    def open(self, stage: Stage) -> Reader: ...
    def facts(self) -> dict[str, Any]: ...


class Live:
    """A network that answers now: a frozen copy, BatchNorm folded, in its own layout and precision."""

    only_logits = ""
    together = ""

    def __init__(self, network: Network, execution: Execution, device: str = "cpu", *, fold: bool = True):
        self.probe: taps.Probe | None = taps.probe(network, network.contract.input_shape)
        self.execution, self.device = execution, device
        # a convolution that took up its BatchNorm puts out another map: who reads by name wants the module's own
        own = fold_batchnorm(copy.deepcopy(network)) if fold else copy.deepcopy(network)
        self.network = execution.prepare(own.to(device)).eval().requires_grad_(False)

    def open(self, stage: Stage) -> Reader:
        assert self.probe
        places = [theirs for _, theirs in stage.pairs]
        return _NetworkReader(
            taps.Tapped(
                self.network, self.probe, places, self.execution,
                logits=stage.logits, pooled=stage.pooled, inputs=stage.inputs,
            )
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {}


class _NetworkReader:
    def __init__(self, tapped: taps.Tapped):
        self.tapped = tapped

    def __call__(self, batch: Batch) -> Signals:
        return self.tapped(batch.inputs)

    def close(self) -> None:
        self.tapped.close()


def logits_only(stage: Stage) -> bool:
    return stage.logits and not (stage.pairs or stage.pooled or stage.inputs)


class BlackBox:
    """A teacher that gives logits only: `ask(images float32 [B,C,H,W] in [0,1]) → logits [B,K]`, both numpy."""

    probe: taps.Probe | None = None
    together = ""

    def __init__(self, what: str, ask: Callable[[np.ndarray], np.ndarray]):
        self.only_logits, self.ask = what, ask

    def open(self, stage: Stage) -> Reader:
        return self

    def __call__(self, batch: Batch) -> Signals:
        answered = np.asarray(self.ask(batch.inputs.cpu().numpy()), np.float32)
        return Signals(logits=torch.from_numpy(answered).to(batch.inputs.device))

    def close(self) -> None:
        """Nothing to give back."""

    def facts(self) -> dict[str, Any]:
        return {}


class Ensemble:
    """Several teachers as one that gives logits only; `together` is one of "probabilities", "logits", "random".

    With "probabilities" (Hinton, Vinyals and Dean 2015) the mean is p = 1/M Σ_m softmax(z_m/T) at the temperature that
    the loss asks for, so the members' logits travel along. "random" takes one member for the whole batch, drawn from
    torch's generator (Sau and Balasubramanian 2016 motivate their noise by it).
    """

    probe: taps.Probe | None = None
    only_logits = "an ensemble of teachers"

    def __init__(self, members: tuple[Teacher, ...], together: str):
        self.members, self.together = members, together

    def open(self, stage: Stage) -> Reader:
        return _EnsembleReader([member.open(stage) for member in self.members], self.together)

    def facts(self) -> dict[str, Any]:
        found = [member.facts() for member in self.members]
        return {key: sum(facts[key] for facts in found) for key in found[0]}


class _EnsembleReader:
    def __init__(self, readers: list[Reader], how: str):
        self.readers, self.how = readers, how

    def __call__(self, batch: Batch) -> Signals:
        if self.how == "random":
            return self.readers[int(torch.randint(len(self.readers), ()))](batch)
        members = torch.stack([reader(batch).logits for reader in self.readers])
        if self.how == "logits":
            return Signals(logits=members.mean(0))
        return Signals(logits=mean_of_probabilities(members, 1.0), members=members)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()


class Kept:
    """A teacher whose logits are kept in `file`, and asked for only where they are missing.

    What is missing is rounded as what is kept, so that a result does not depend on what the file held: a kept answer is
    the live one but for the last place of float16, since kernels order their sums by the size of the batch.
    `seconds_per_image` of the live teacher is what an answer that was there is counted as saving. Phases that read more
    than logits ask the live teacher.
    """

    together = ""

    def __init__(self, teacher: Teacher, file: AnswerFile, *, seconds_per_image: float):
        self.teacher, self.file, self.seconds_per_image = teacher, file, seconds_per_image
        self.probe, self.only_logits = teacher.probe, teacher.only_logits
        self.asked = self.found = 0

    def open(self, stage: Stage) -> Reader:
        reader = self.teacher.open(stage)
        return _KeptReader(self, reader) if logits_only(stage) else reader

    def facts(self) -> dict[str, Any]:
        return {
            **self.teacher.facts(),
            "answers_asked": self.asked,
            "answers_kept": self.found,
            "seconds_saved": round(self.found * self.seconds_per_image, 1),
        }


class _KeptReader:
    def __init__(self, kept: Kept, live: Reader):
        self.kept, self.live = kept, live

    def __call__(self, batch: Batch) -> Signals:
        logits, found = self.kept.file.read(batch.index, batch.view)
        self.kept.asked += len(found)
        self.kept.found += int(found.sum())
        if not found.all():
            missing = np.flatnonzero(~found)
            answered = self._ask(batch, missing)
            logits[missing] = self.kept.file.write(batch.index[missing], batch.view[missing], answered)
        return Signals(logits=torch.from_numpy(logits.astype(np.float32)).to(batch.inputs.device))

    def _ask(self, batch: Batch, missing: np.ndarray) -> np.ndarray:
        """The live teacher's logits float32 of these rows of the batch."""
        if len(missing) == len(batch.index):
            return self.live(batch).logits.cpu().numpy()
        quantum = max(1, len(batch.index) // _SIZES)
        rows = np.resize(missing, min(len(batch.index), -(-len(missing) // quantum) * quantum))
        part = replace(
            batch,
            inputs=batch.inputs[torch.from_numpy(rows).to(batch.inputs.device)],
            labels=batch.labels[torch.from_numpy(rows).to(batch.labels.device)],
            index=batch.index[rows],
            view=batch.view[rows],
        )
        return self.live(part).logits.cpu().numpy()[: len(missing)]

    def close(self) -> None:
        self.live.close()
