"""The training loop: a warm-up and a linear decay, the best state on `dev` kept, checkpoints to go on from.

A loss gives one number a sample. While `dev` is judged the model is asked without gradients: that is how a loss knows when
dropout and batch statistics are off.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.training.clock import Clock
from edgepipe.training.ranks import Ranks
from edgepipe.training.updates import Updates, sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.checkpoint import Checkpoint
    from edgepipe.training.importance_sampling import ImportanceSampler

    Progress = Callable[[str, int, int], None]
    Loss = Callable[[Batch], Tensor]


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
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1  # pieces that a batch is run in
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"


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
    sampler: ImportanceSampler | None = None,
    form: Callable[[float], bool] = lambda share: True,
    ranks: Ranks = Ranks(),  # noqa: B008  it is frozen
) -> Fitted:
    """Train the parameters in place and leave them, and the buffers that training moves, as they were at their best on dev,
    the start included.

    `form` is told how far training is, (0, 1], and says whether the model has the form that it will be kept in: what it was
    before is not. `ranks`: the processes that call this together, all with the same arguments.

    Same inputs, same machine kind and thread count: same result, also when it was killed and goes on from `checkpoint`,
    unless a time limit ends it. Raises `PassError` at `where` for a loss that is no finite number; the checkpoint before it stays.
    """
    import torch

    trained = list(parameters.values())
    moved = [*trained, *buffers]
    update = Updates(trained, schedule, where, ranks)
    steps = schedule.epochs * len(train)
    every = max(1, len(train) // schedule.judgements)
    clock, state = Clock(schedule, steps), _State()
    ended: Literal["schedule", "patience", "minutes", "deadline"] = "schedule"

    with repeatable(schedule.seed):
        kept = [value.detach().clone() for value in moved]
        saved = checkpoint.load() if checkpoint else None
        if saved is not None:
            _restore(saved, state, moved, kept, update)
            if sampler:
                sampler.restore(saved["sampler"])
        else:
            progress("judging the start", 0, steps)
            settled = form(0.0)
            _judge(state, _mean_loss(loss, dev, where, ranks), moved, kept, settled)
        clock.begin(state.step)
        start = state.dev[0][1]
        for batch in _from(train, schedule.epochs, state.step):
            if state.worse >= schedule.patience:  # a run that was killed between its last judgement and its end
                break
            state.step += 1
            form(state.step / steps)
            state.train.append(update(loss, batch, rate(state.step, steps, schedule.warm_up), f"step {state.step}"))
            late = ranks.agreed(clock.over())
            judge = state.step % every == 0 or state.step == steps or late is not None
            if judge:
                settled = form(1.0 if late else state.step / steps)
                _judge(state, _mean_loss(loss, dev, where, ranks), moved, kept, settled)
            if checkpoint and ranks.number == 0 and (judge or clock.due()):
                checkpoint.save(_saved(state, moved, kept, update) | ({"sampler": sampler.state()} if sampler else {}))
            best = state.best if math.isfinite(state.best) else state.dev[-1][1]
            progress(f"training, dev loss {best:.4f} (from {start:.4f}){clock.left(state.step)}", state.step, steps)
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


def _judge(state: _State, judged: float, moved: Sequence[Tensor], kept: Sequence[Tensor], settled: bool) -> None:
    """What is not in its last form is no state to come back to, and cannot tell that training should stop."""
    state.dev.append((state.step, judged))
    if not settled:
        return
    state.worse = 0 if judged < state.best else state.worse + 1
    if judged < state.best:
        state.best, state.best_step = judged, state.step
        for copy, value in zip(kept, moved, strict=True):
            copy.copy_(value.detach())


def _saved(state: _State, moved: Sequence[Tensor], kept: Sequence[Tensor], update: Updates) -> dict[str, Any]:
    import torch

    return {
        **{name: getattr(state, name) for name in state.__slots__},
        "values": [value.detach() for value in moved],
        "kept": list(kept),
        "update": update.state(),
        "random": torch.get_rng_state(),
    }


def _restore(saved: Mapping[str, Any], state: _State, moved: Sequence[Tensor], kept: Sequence[Tensor], update: Updates) -> None:
    import torch

    for name in state.__slots__:
        setattr(state, name, saved[name])
    with torch.no_grad():
        for value, then in zip(moved, saved["values"], strict=True):
            value.copy_(then)
        for copy, then in zip(kept, saved["kept"], strict=True):
            copy.copy_(then)
    update.restore(saved["update"])
    torch.set_rng_state(saved["random"])


def _mean_loss(loss: Loss, batches: Batches, where: str, ranks: Ranks) -> float:
    """Over all rows; every process looks at batches of its own."""
    import torch

    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for number, batch in enumerate(batches.in_order()):
            if number % ranks.count == ranks.number:
                rows = loss(batch)
                sums += torch.tensor([sound(rows.sum(), where, "dev"), rows.numel()], dtype=torch.float64)
    ranks.add([sums])
    return float(sums[0] / sums[1])


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
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
