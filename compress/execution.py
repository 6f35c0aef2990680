"""How to run a network on this machine: memory layout, precision, threads. Measured, not guessed.

bf16 doubles some networks on some processors and halves others, and with another process busy one thread can beat two;
so a short probe on the real batch decides, says so, and its answer is remembered and becomes part of what it led to.
"""

import copy
import ctypes
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.fuse import fold_batchnorm

# bfloat16, and fewer threads, must win by this much: they change the arithmetic, and noise must not choose them
MARGIN = 1.1
HOPELESS = 1.5  # times the best: beyond what noise explains
FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_S = 3, 15, 0.4
# of glibc's malloc.h: (parameter, value); 32 MiB is the greatest threshold that it takes
KEEP_FREED_MEMORY = ((-3, 32 * 2**20), (-1, 2**31 - 1), (-2, 64 * 2**20))  # M_MMAP_THRESHOLD, M_TRIM_, M_TOP_PAD


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`precision` is "float32" or "bfloat16" (autocast for a trained network; whole weights for a frozen one)."""

    channels_last: bool = True
    precision: str = "float32"
    threads: int = 1
    frozen: bool = False

    def context(self, device_type: str) -> AbstractContextManager[Any]:
        if self.frozen:
            return torch.no_grad()
        if self.precision == "bfloat16":
            return torch.autocast(device_type, torch.bfloat16)
        return nullcontext()

    def arrange(self, inputs: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        _, channels, height, width = inputs.shape
        strides = (1, width * channels, channels) if self.channels_last else (height * width, width, 1)
        # of one channel both layouts are the same memory, and the strides alone tell kernels which of them goes on
        return inputs.contiguous(memory_format=layout).as_strided(inputs.shape, (channels * height * width, *strides))

    def prepare(self, network: nn.Module) -> nn.Module:
        """Put a network into this layout, in place; a frozen one also into this precision."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        if self.frozen and self.precision == "bfloat16":
            network.body.to(torch.bfloat16)  # type: ignore[union-attr]
        return network.to(memory_format=layout)  # type: ignore[call-overload]

    def describe(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{layout} {self.precision}, {self.threads} thread{'s' * (self.threads > 1)}"


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free, for this process: by default a training step gives its activations back to the
    system and takes them again, page by page, which was 3 % of a ShuffleNetV2's on two cores. No-op elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in KEEP_FREED_MEMORY if mallopt else ():
        mallopt(parameter, value)


def choose(
    network: nn.Module,
    inputs: Tensor,
    *,
    frozen: bool,
    threads: tuple[int, ...],
    precisions: tuple[str, ...] = ("float32", "bfloat16"),
) -> tuple[Execution, dict[str, Any]]:
    """The fastest execution of `network` on `inputs` `[B,C,H,W]`, and facts: a sentence and the rate in images/s.

    Trained networks are timed forward and backward, frozen ones forward. A frozen network takes bfloat16 only if it
    keeps at least 99 % of its top-1 answers on these inputs.
    """
    keep_freed_memory()
    candidates = [
        Execution(channels_last=layout, precision=precision, threads=max(threads), frozen=frozen)
        for precision in precisions
        for layout in (True, False)
    ]
    runs = {c: _timed_run(network, inputs, c) for c in candidates}
    seconds = _interleaved(runs)
    if frozen and len(precisions) > 1 and not _same_answers(network, inputs, candidates):
        seconds = {c: s for c, s in seconds.items() if c.precision == "float32"}
    best = min(seconds, key=lambda c: seconds[c] * (MARGIN if c.precision == "bfloat16" else 1))
    by_threads = {
        fewer: runs.get(fewer) or _timed_run(network, inputs, fewer)
        for fewer in (replace(best, threads=n) for n in sorted(set(threads), reverse=True))
    }
    seconds_by_threads = _interleaved(by_threads) if len(by_threads) > 1 else {best: seconds[best]}
    chosen = min(seconds_by_threads, key=lambda c: seconds_by_threads[c] * (MARGIN if c.threads < max(threads) else 1))
    plain = next(s for c, s in seconds.items() if not c.channels_last)
    rate = len(inputs) / seconds_by_threads[chosen]
    what = "forward" if frozen else "forward and backward"
    sentence = f"{chosen.describe()}: {rate:.0f} images/s {what} ({len(inputs) / plain:.0f} contiguous {precisions[0]})"
    return chosen, {"sentence": sentence, "images_per_second": round(rate, 1)}


def _timed_run(network: nn.Module, inputs: Tensor, execution: Execution) -> Callable[[], float]:
    twin = copy.deepcopy(network)
    if execution.frozen:
        twin = fold_batchnorm(twin.eval())
    twin = execution.prepare(twin.train(not execution.frozen))

    def run() -> float:
        torch.set_num_threads(execution.threads)
        started = time.perf_counter()
        with execution.context(inputs.device.type):
            logits = twin(execution.arrange(inputs))
        if not execution.frozen:
            F.cross_entropy(logits.float(), logits.detach().argmax(1)).backward()
        if inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def _interleaved(runs: dict[Execution, Callable[[], float]]) -> dict[Execution, float]:
    """The least seconds of each run over a few interleaved rounds, after one warm-up each: the more rounds, the shorter
    they are, as on a GPU.

    What is clearly slower than the best after a round is not timed again.
    """
    for run in runs.values():
        run()
    least: dict[Execution, float] = {}
    started = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > ENOUGH_S:
            break
        best = min(least.values(), default=math.inf)
        for execution, run in runs.items():
            if least.get(execution, 0.0) <= HOPELESS * best:
                least[execution] = min(least.get(execution, math.inf), run())
    return least


def least_seconds(run: Callable[[], Any], rounds: int = 3) -> float:
    """The least wall time of a few calls, after one warm-up."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _same_answers(network: nn.Module, inputs: Tensor, candidates: list[Execution]) -> bool:
    answers = []
    for precision in ("float32", "bfloat16"):
        execution = next(c for c in candidates if c.precision == precision)
        twin = execution.prepare(copy.deepcopy(network).eval())
        with torch.no_grad():
            answers.append(twin(execution.arrange(inputs)).argmax(1))
    return (answers[0] == answers[1]).float().mean().item() >= 0.99
