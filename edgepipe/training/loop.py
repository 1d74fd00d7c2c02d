"""The training loop: AdamW with a warm-up and a linear decay, the best state on `dev` kept.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101. The model stays in whatever mode it is
handed over in: in evaluation mode there is no dropout, and batch statistics stay as they were learned, which suits a
model that is trained already and is only to be moved a little.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepipe.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch, Batches

    Progress = Callable[[str, int, int], None]


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
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training did: mean losses on dev, and how it ended."""

    start: float
    best: float
    best_step: int  # 0: nothing was better than the start
    steps: int
    train: tuple[float, ...]  # the loss of every step
    ended: Literal["schedule", "patience", "time"]


def fit(
    parameters: Mapping[str, Parameter],
    loss: Callable[[Batch], Tensor],
    train: Batches,
    dev: Batches,
    schedule: Schedule,
    progress: Progress,
    *,
    where: str,
) -> Fitted:
    """Train the parameters in place and leave them as they were at their best on dev, the start included.

    Same inputs, same machine kind and thread count: same result, unless `minutes` ends it. Raises `PassError` at `where`
    for a loss that is no number, which leaves the parameters unusable.
    """
    import torch

    trained = list(parameters.values())
    optimiser = torch.optim.AdamW(trained, schedule.learning_rate, weight_decay=schedule.weight_decay)
    steps = schedule.epochs * len(train)
    every = max(1, len(train) // schedule.judgements)
    clock = _Clock(schedule.minutes, steps)
    losses: list[float] = []
    ended: Literal["schedule", "patience", "time"] = "schedule"

    with _repeatable(schedule.seed):
        progress("judging the start", 0, steps)
        start = best = _mean_loss(loss, dev, where)
        best_step, worse, kept = 0, 0, [parameter.detach().clone() for parameter in trained]
        for step, batch in enumerate(_endless(train, schedule.epochs), start=1):
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate * rate(step, steps, schedule.warm_up)
            optimiser.zero_grad()
            value = loss(batch)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, schedule.max_gradient_norm)
            losses.append(_sound(value, where, f"step {step}"))
            _sound(norm, where, f"the gradient of step {step}")
            optimiser.step()
            late = clock.over()
            if step % every == 0 or step == steps or late:
                judged = _mean_loss(loss, dev, where)
                worse = 0 if judged < best else worse + 1
                if judged < best:
                    best, best_step = judged, step
                    for copy, parameter in zip(kept, trained, strict=True):
                        copy.copy_(parameter.detach())
            progress(f"training, dev loss {best:.4f} (from {start:.4f}){clock.left(step)}", step, steps)
            if late or worse >= schedule.patience:
                ended = "time" if late else "patience"
                break
        with torch.no_grad():
            for copy, parameter in zip(kept, trained, strict=True):
                parameter.copy_(copy)
                parameter.grad = None
    return Fitted(start, best, best_step, len(losses), tuple(losses), ended)


def rate(step: int, steps: int, warm_up: float) -> float:
    """Share of the learning rate at a step, from 1 to `steps`: a line up, then a line down to where the next would be 0."""
    rising = max(1, round(warm_up * steps))
    return step / rising if step <= rising else (steps - step + 1) / (steps - rising + 1)


def _endless(train: Batches, epochs: int) -> Iterator[Batch]:
    for epoch in range(epochs):
        yield from train.epoch(epoch)


def _mean_loss(loss: Callable[[Batch], Tensor], batches: Batches, where: str) -> float:
    """Over all batches, each weighing as much as its rows."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches.in_order():
            rows = len(next(iter(batch.inputs.values())))
            total += _sound(loss(batch), where, "dev") * rows
            count += rows
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
    """How long is left: of the schedule, or of the limit where that is sooner."""

    def __init__(self, minutes: float | None, steps: int) -> None:
        self._limit, self._steps, self._start = minutes, steps, time.monotonic()

    def over(self) -> bool:
        return self._limit is not None and self._passed() >= self._limit

    def left(self, step: int) -> str:
        """In whole minutes, so that a plain log does not repeat it at every step."""
        left = self._passed() / step * (self._steps - step)
        if self._limit is not None:
            left = min(left, self._limit - self._passed())
        return f", about {math.ceil(left)} min left" if left > 0 else ""

    def _passed(self) -> float:
        return (time.monotonic() - self._start) / 60
