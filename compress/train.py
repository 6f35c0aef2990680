"""THE training loop. Baseline, hint stage, distillation and recovery after pruning differ by what they hand to it.

Every random number is a function of (seed, epoch, sample index), so a run killed at any step and started again ends
with bit-identical weights: the checkpoint holds the weights, the optimizer, the average, the step and the number of
threads, and nothing else is needed.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from compress import augment, randomness, sampling
from compress.errors import CompressError, InputRejected, TrainingDiverged
from compress.execution import keep_freed_memory
from compress.progress import Progress, say
from compress.store import write_atomic
from compress.types import Batch

CHECKPOINT_EVERY_S = 20.0
LOOK_AGAIN_S = 60.0
SLOW_WINDOW_STEPS = 20  # a rate is judged over this many steps, never a single one
FEWEST_STEPS = 3
WARMUP_SHARE = 0.1


class Interrupted(CompressError):
    """A signal asked us to stop; the work so far is in the checkpoint."""

    def __init__(self, message: str, *, code: str, hint: str, signal_number: int):
        super().__init__(message, code=code, hint=hint)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train one phase. `learning_rate` is the peak of the schedule, whatever the batch."""

    epochs: float
    batch_size: int = 128
    learning_rate: float = 0.1
    optimizer: str = "sgd"
    schedule: str = "cosine"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    ema: float = 0.0
    views: int = sampling.VIEW_COUNT  # augmented views of each image
    mixup: float = 0.0  # share of the images that are mixed with another

    def steps(self, images: int) -> tuple[int, int]:
        """(all steps, steps of an epoch) for a train split of `images`."""
        per_epoch = sampling.steps_per_epoch(images, self.batch_size)
        return max(1, round(self.epochs * per_epoch)), per_epoch


def learning_rate_at(plan: Plan, progress: float) -> float:
    """Linear warm-up, then cosine to zero. `onecycle` warms up over 30 % (Smith 2018), `cosine` over 10 %."""
    peak = plan.learning_rate
    warmup = {"cosine": WARMUP_SHARE, "onecycle": 0.3, "constant": 0.0}[plan.schedule]
    if progress < warmup:
        return peak * (0.02 + 0.98 * progress / warmup)
    if plan.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def make_optimizer(plan: Plan, module: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW. Biases and BatchNorm's vectors are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=plan.momentum, nesterov=True, fused=True)


class _State:
    """What a checkpoint holds: one safetensors file, its JSON header included, written atomically."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, threads: int):
        self.module, self.optimizer = module, optimizer
        self.average = {k: v.clone() for k, v in module.state_dict().items()} if plan.ema else {}
        self.step, self.threads = 0, threads
        self.held: list[tuple[Tensor, Tensor]] = []  # parameters, and where they may be other than zero
        self.events: list[str] = []
        self.curve: dict[str, list[float]] = {"step": [], "loss": []}
        self.seconds = 0.0

    def save(self, path: Path) -> None:
        tensors = {f"module/{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
        tensors = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
        header = {k: json.dumps(getattr(self, k)) for k in ("step", "threads", "events", "curve", "seconds")}
        write_atomic(path, to_safetensors(tensors, header))

    def load(self, path: Path) -> None:
        try:
            self._load(path)
        except Exception as error:  # safetensors raises its own and bare types for a damaged file
            raise InputRejected(
                f"checkpoint {path} is damaged: {error}",
                code="E-STORE-DAMAGED",
                hint="delete it; the phase starts anew",
            ) from error

    def _load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
        for key in ("step", "threads", "events", "curve", "seconds"):
            setattr(self, key, json.loads(header[key]))
        self.module.load_state_dict(_under(tensors, "module/"))
        for key, value in _under(tensors, "average/").items():
            self.average[key].copy_(value)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimizer/").items():
            index, _, name = key.partition("/")
            # fused optimizers walk memory in its order: what belongs to channels-last weights must lie as they do
            like = parameters[int(index)]
            state.setdefault(int(index), {})[name] = torch.empty_like(like).copy_(value) if value.dim() else value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def fit(
    name: str,
    module: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    augmenter: augment.Augmenter,
    plan: Plan,
    *,
    seed: int,
    threads: int,
    thread_choices: tuple[int, ...],
    checkpoint: Path,
    device: str = "cpu",
    hold_zeros: nn.Module | None = None,
) -> dict[str, Any]:
    """Train `module` in place to the end of `plan`, from `checkpoint` if it is there.

    `loss_of(batch) → scalar` may use networks beside `module`; only `module`'s parameters are trained, and of
    `hold_zeros`, a part of it, no weight that is zero now, whatever momentum and weight decay say. Returns facts:
    the loss curve, events (a new choice of threads), steps, images a second. Raises TrainingDiverged at the first
    loss that is not finite, and Interrupted after a signal; the last good checkpoint stays.
    """
    keep_freed_memory()
    state = _State(module, make_optimizer(plan, module), plan, threads)
    held = hold_zeros.parameters() if hold_zeros is not None else ()
    state.held = [(p, p != 0) for p in held if p.dim() > 1 and not p.all()]
    if checkpoint.exists():
        state.load(checkpoint)
        say(f"  {name}: going on from step {state.step}")
    steps, _ = plan.steps(len(augmenter.labels))
    batch_size = min(plan.batch_size, len(augmenter.labels))
    torch.set_num_threads(state.threads)
    started, first_step, seconds_before = time.monotonic(), state.step, state.seconds
    watch, keeper = _RateWatch(away_from_first=state.threads != threads), _Keeper(checkpoint)
    with Progress(name, steps * batch_size, "images", done=state.step * batch_size) as bar, _signals() as caught:
        module.train()
        for batch in _batches(augmenter, plan, seed, state.step, device):
            loss = _step(loss_of, batch, plan, seed, state, name)
            state.step += 1
            if state.step % max(1, steps // 200) == 0 or state.step == steps:
                state.curve["step"].append(state.step)
                state.curve["loss"].append(round(loss, 6))
            bar.to(state.step * batch_size, f"loss {loss:.3f}")
            reason = watch.due() if len(thread_choices) > 1 else ""
            if reason:
                _choose_threads_again(name, module, loss_of, batch, state, thread_choices, reason)
                watch.reset(away_from_first=state.threads != threads)
            state.seconds = seconds_before + time.monotonic() - started
            # a new choice of threads changes the arithmetic: it is kept at once
            if keeper.due() or reason or caught or state.step == steps:
                _refuse_broken_weights(module, plan, state, name)
                keeper.keep(state)
            if caught:
                raise _interrupted(f"stopped at step {state.step} of {steps} of {name}", caught[0])
    if plan.ema:
        module.load_state_dict(state.average)
    seconds = max(1e-9, time.monotonic() - started)
    return _facts(state, plan, images_per_second=(state.step - first_step) * batch_size / seconds)


def _facts(state: _State, plan: Plan, *, images_per_second: float) -> dict[str, Any]:
    return {
        "steps": state.step,
        "epochs": plan.epochs,
        "curve": state.curve,
        "events": state.events,
        "threads": state.threads,
        "images_per_second": round(images_per_second, 1),
    }


class _Keeper:
    """Saves checkpoints, often enough that little is lost and seldom enough that little time is."""

    def __init__(self, path: Path):
        self.path, self.saved = path, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved > CHECKPOINT_EVERY_S

    def keep(self, state: _State) -> None:
        state.save(self.path)
        self.saved = time.monotonic()


def _batches(augmenter: augment.Augmenter, plan: Plan, seed: int, first_step: int, device: str) -> Iterator[Batch]:
    """The batches from `first_step` to the end of the plan: a function of the seed and the step alone."""
    images = len(augmenter.labels)
    steps, per_epoch = plan.steps(images)
    batch_size = min(plan.batch_size, images)
    order, order_epoch = np.empty(0, np.int64), -1
    for step in range(first_step, steps):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_epoch:
            order, order_epoch = sampling.epoch_order(seed, epoch, images), epoch
        index = order[position * batch_size : (position + 1) * batch_size]
        batch = augmenter.batch(index, sampling.views(seed, epoch, index, count=plan.views), step / steps)
        if plan.mixup:
            batch = augment.mixed(batch, plan.mixup, seed=seed, epoch=epoch)
        yield _to_device(batch, device)


def _to_device(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    return replace(batch, inputs=batch.inputs.to(device), labels=batch.labels.to(device))


def _step(loss_of: Callable[[Batch], Tensor], batch: Batch, plan: Plan, seed: int, state: _State, name: str) -> float:
    # dropout draws from torch's global stream: seeding it per step makes it a function of the step too
    _seed(randomness.derive("step", seed, state.step), batch.inputs.device)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(plan, batch.progress)
    state.optimizer.zero_grad(set_to_none=True)
    loss = loss_of(batch)
    value = loss.item()
    if not math.isfinite(value):
        raise _diverged(f"the loss of {name} became {value} at step {state.step}", plan)
    loss.backward()
    state.optimizer.step()
    with torch.no_grad():
        for parameter, free in state.held:
            parameter.mul_(free)
    if state.average:
        with torch.no_grad():
            for key, value_now in state.module.state_dict().items():
                if value_now.is_floating_point():
                    # a young average forgets faster, else it would keep the random weights of the start
                    state.average[key].lerp_(value_now, 1 - min(plan.ema, (1 + state.step) / (10 + state.step)))
                else:
                    state.average[key].copy_(value_now)
    return value


def _interrupted(what: str, signal_number: int) -> Interrupted:
    return Interrupted(
        f"{what}; the work so far is kept",
        code="E-INTERRUPTED",
        hint="the same command goes on from here",
        signal_number=signal_number,
    )


def _seed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, for this device alone: that one tells every kind of device, and for those that are not
    started it keeps the call and its stack in a list, anew each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _diverged(what: str, plan: Plan) -> TrainingDiverged:
    return TrainingDiverged(
        f"{what}; the last good checkpoint is kept",
        code="E-TRAINING-DIVERGED",
        hint=f"lower the learning rate, for example --set learning_rate={plan.learning_rate / 4:g}",
    )


def _refuse_broken_weights(module: nn.Module, plan: Plan, state: _State, name: str) -> None:
    """A finite loss may have an infinite gradient: such weights must neither replace a checkpoint nor be a result."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise _diverged(f"`{key}` of {name} stopped being finite by step {state.step}", plan)


class _RateWatch:
    """Says when to probe again: when the time of a step has doubled over two windows in a row against the best window
    so far; and, once fewer threads than at first were chosen for that, every minute, since the neighbour may be gone.
    """

    def __init__(self, *, away_from_first: bool = False) -> None:
        self.reset(away_from_first=away_from_first)

    def reset(self, *, away_from_first: bool) -> None:
        self.best_s = math.inf
        self.count, self.slow_windows = 0, 0
        self.started = self.probed = time.monotonic()
        self.away_from_first = away_from_first

    def due(self) -> str:
        """Why to probe again now, or ""."""
        self.count += 1
        now = time.monotonic()
        # a window that lasts twice as long as the best is judged early: slow steps would take minutes to fill it
        crawling = self.count >= FEWEST_STEPS and now - self.started > 2 * SLOW_WINDOW_STEPS * self.best_s
        if self.count < SLOW_WINDOW_STEPS and not crawling:
            return ""
        seconds, self.started, self.count = (now - self.started) / self.count, now, 0
        self.slow_windows = self.slow_windows + 1 if seconds > 2 * self.best_s else 0
        self.best_s = min(self.best_s, seconds)
        if self.slow_windows >= 2:
            return "the rate fell to less than half"
        return "looked again" if self.away_from_first and now - self.probed > LOOK_AGAIN_S else ""


def _choose_threads_again(
    name: str, module: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch, state: _State,
    choices: tuple[int, ...], reason: str,
) -> None:  # fmt: skip
    """Time a step at each number of threads, leaving no trace in weights or statistics, and take the fastest."""
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    seconds: dict[int, float] = {}
    for threads in choices * 2:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        loss_of(batch).backward()
        seconds[threads] = min(seconds.get(threads, math.inf), time.perf_counter() - started)
    with torch.no_grad():
        for key, value in module.named_buffers():
            value.copy_(buffers[key])
    before, state.threads = state.threads, min(seconds, key=lambda n: seconds[n])
    torch.set_num_threads(state.threads)
    if state.threads != before:
        event = f"step {state.step}: {reason}; from {before} to {state.threads} threads"
        state.events.append(event)
        say(f"  {name}: {event}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying at once, so that the step in hand is finished and kept.

    A second signal acts as usual. Off the main thread nothing is caught.
    """
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray, *, batch_size: int = 256, device: str = "cpu") -> np.ndarray:
    """float32 logits `[N,K]` of uint8 images `[N,H,W,C]` in eval mode; every image once."""
    network.eval()
    outputs = []
    for start in range(0, len(images), batch_size):
        chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
        outputs.append(network(chunk.permute(0, 3, 1, 2).float() / 255).float().cpu().numpy())
    return np.concatenate(outputs)
