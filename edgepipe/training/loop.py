"""The training loop: AdamW with a warm-up and a linear decay, the best state on `dev` kept, checkpoints to go on from.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101. A loss gives one number a sample. While
`dev` is judged the model is asked without gradients: that is how a loss knows when dropout and batch statistics are off.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.checkpoint import Checkpoint

    Progress = Callable[[str, int, int], None]
    Loss = Callable[[Batch], Tensor]

CHECKPOINT_S = 60.0  # between checkpoints, besides those at every judgement


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, how fast and how carefully to train."""

    epochs: int = 1
    learning_rate: float = 5e-5
    warm_up: float = 0.1  # share of the steps over which the rate rises
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    judgements: int = 2  # on dev, in each epoch
    patience: int = 3  # judgements without a better one before training stops
    minutes: float | None = None
    deadline: float | None = None  # as `time.time` counts
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training did: mean losses on dev, and how it ended."""

    start: float
    best: float
    best_step: int  # 0: nothing was better than the start
    steps: int
    train: tuple[float, ...]  # the loss of every step
    dev: tuple[tuple[int, float], ...]  # (step, loss), the start first
    ended: Literal["schedule", "patience", "minutes", "deadline"]


@dataclass(slots=True)
class _State:
    """Where a run stands."""

    step: int = 0
    worse: int = 0
    best: float = math.inf
    best_step: int = 0
    train: list[float] = field(default_factory=list)
    dev: list[tuple[int, float]] = field(default_factory=list)


def fit(
    parameters: Mapping[str, Parameter],
    loss: Loss,
    train: Batches,
    dev: Batches,
    schedule: Schedule,
    progress: Progress,
    *,
    where: str,
    buffers: Sequence[Tensor] = (),
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Train the parameters in place and leave them, and the buffers that training moves, as they were at their best on dev,
    the start included.

    Same inputs, same machine kind and thread count: same result, also when it was killed and goes on from `checkpoint`,
    unless a time limit ends it. Raises `PassError` at `where` for a loss that is no finite number; the checkpoint before it stays.
    """
    import torch

    trained = list(parameters.values())
    moved = [*trained, *buffers]
    optimiser = torch.optim.AdamW(trained, schedule.learning_rate, weight_decay=schedule.weight_decay)
    steps = schedule.epochs * len(train)
    every = max(1, len(train) // schedule.judgements)
    clock, state = _Clock(schedule, steps), _State()
    ended: Literal["schedule", "patience", "minutes", "deadline"] = "schedule"

    with _repeatable(schedule.seed):
        kept = [value.detach().clone() for value in moved]
        saved = checkpoint.load() if checkpoint else None
        if saved is not None:
            _restore(saved, state, moved, kept, optimiser)
        else:
            progress("judging the start", 0, steps)
            state.best = _mean_loss(loss, dev, where)
            state.dev.append((0, state.best))
        clock.begin(state.step)
        start = state.dev[0][1]
        for batch in _from(train, schedule.epochs, state.step):
            if state.worse >= schedule.patience:  # a run that was killed between its last judgement and its end
                break
            state.step += 1
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * rate(state.step, steps, schedule.warm_up)
            optimiser.zero_grad()
            value = loss(batch).mean()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, schedule.max_gradient_norm)
            state.train.append(_sound(value, where, f"step {state.step}"))
            _sound(norm, where, f"the gradient of step {state.step}")
            optimiser.step()
            late = clock.over()
            judge = state.step % every == 0 or state.step == steps or late is not None
            if judge:
                _judge(state, _mean_loss(loss, dev, where), moved, kept)
            if checkpoint and (judge or clock.due()):
                checkpoint.save(_saved(state, moved, kept, optimiser))
            progress(f"training, dev loss {state.best:.4f} (from {start:.4f}){clock.left(state.step)}", state.step, steps)
            if late or state.worse >= schedule.patience:
                ended = late or "patience"
                break
        with torch.no_grad():
            for copy, value in zip(kept, moved, strict=True):
                value.copy_(copy)
                value.grad = None
    return Fitted(start, state.best, state.best_step, len(state.train), tuple(state.train), tuple(state.dev), ended)


def rate(step: int, steps: int, warm_up: float) -> float:
    """Share of the learning rate at a step, from 1 to `steps`: a line up, then a line down to where the next would be 0."""
    rising = max(1, round(warm_up * steps))
    return step / rising if step <= rising else (steps - step + 1) / (steps - rising + 1)


def _from(train: Batches, epochs: int, step: int) -> Iterator[Batch]:
    """The batches behind the first `step` of all epochs."""
    begun, skip = divmod(step, len(train))
    for epoch in range(begun, epochs):
        yield from train.epoch(epoch, skip if epoch == begun else 0)


def _judge(state: _State, judged: float, moved: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    state.dev.append((state.step, judged))
    state.worse = 0 if judged < state.best else state.worse + 1
    if judged < state.best:
        state.best, state.best_step = judged, state.step
        for copy, value in zip(kept, moved, strict=True):
            copy.copy_(value.detach())


def _saved(state: _State, moved: Sequence[Tensor], kept: Sequence[Tensor], optimiser: Any) -> dict[str, Any]:
    import torch

    return {
        **{name: getattr(state, name) for name in state.__slots__},
        "values": [value.detach() for value in moved],
        "kept": list(kept),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
    }


def _restore(saved: Mapping[str, Any], state: _State, moved: Sequence[Tensor], kept: Sequence[Tensor], optimiser: Any) -> None:
    import torch

    for name in state.__slots__:
        setattr(state, name, saved[name])
    with torch.no_grad():
        for value, then in zip(moved, saved["values"], strict=True):
            value.copy_(then)
        for copy, then in zip(kept, saved["kept"], strict=True):
            copy.copy_(then)
    optimiser.load_state_dict(saved["optimiser"])
    torch.set_rng_state(saved["random"])


def _mean_loss(loss: Loss, batches: Batches, where: str) -> float:
    """Over all rows."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches.in_order():
            rows = loss(batch)
            total += _sound(rows.sum(), where, "dev")
            count += rows.numel()
    return total / count


def _sound(value: Tensor, where: str, what: str) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise PassError(f"training diverged: the loss is no finite number at {what}", where=where, fix="lower the learning rate")
    return number


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Random numbers from the seed, and kernels that add in a fixed order; the process gets its own state back."""
    import torch

    state = torch.get_rng_state()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.use_deterministic_algorithms(strict, warn_only=warns)


class _Clock:
    """How long is left: of the schedule, or of a limit where that is sooner."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self._schedule, self._steps = schedule, steps
        self._start = self._saved = time.monotonic()
        self._begun = 0

    def begin(self, step: int) -> None:
        self._begun = step

    def over(self) -> Literal["minutes", "deadline"] | None:
        if self._schedule.minutes is not None and self._passed() >= self._schedule.minutes:
            return "minutes"
        return "deadline" if self._schedule.deadline is not None and time.time() >= self._schedule.deadline else None

    def due(self) -> bool:
        """Whether the last checkpoint is a while ago."""
        due = time.monotonic() - self._saved > CHECKPOINT_S
        if due:
            self._saved = time.monotonic()
        return due

    def left(self, step: int) -> str:
        """In whole minutes, so that a plain log does not repeat it at every step."""
        left = self._passed() / max(1, step - self._begun) * (self._steps - step)
        if self._schedule.minutes is not None:
            left = min(left, self._schedule.minutes - self._passed())
        if self._schedule.deadline is not None:
            left = min(left, (self._schedule.deadline - time.time()) / 60)
        return f", about {math.ceil(left)} min left" if left > 0 else ""

    def _passed(self) -> float:
        return (time.monotonic() - self._start) / 60
