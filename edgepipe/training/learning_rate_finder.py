"""A learning rate from a short sweep: the loss falls while the rate rises, until the rate is too high.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, section 3.3 (the range test); a tenth of the rate
where the smoothed loss was lowest is taken (Howard and Gugger, "Deep Learning for Coders with fastai and PyTorch", chapter 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.training.loop import repeatable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch, Batches

    Loss = Callable[[Batch], Tensor]
    Progress = Callable[[str, int, int], None]

STEPS, LOWEST, HIGHEST = 100, 1e-6, 0.3
MEMORY = 0.9  # of the smoothed loss, for one step
TOO_HIGH = 4.0  # times the lowest loss: no higher rate is tried
BELOW = 10.0  # the rate with the lowest loss over the one that is taken
FELL = 0.98  # lowest over first loss, at most


@dataclass(frozen=True, slots=True)
class Sweep:
    rate: float
    curve: tuple[tuple[float, float], ...]  # (learning rate, smoothed loss) of each step


def find_learning_rate(
    parameters: Mapping[str, Parameter],
    loss: Loss,
    train: Batches,
    progress: Progress,
    *,
    where: str,
    buffers: Sequence[Tensor] = (),
    weight_decay: float = 0.0,
    max_gradient_norm: float = 1.0,
    seed: int = 0,
) -> Sweep:
    """Train for up to `STEPS` steps with rates from `LOWEST` to `HIGHEST`; parameters and buffers are put back afterwards.

    Raises `PassError` at `where` when no rate lowers the loss.
    """
    import torch

    trained = list(parameters.values())
    moved = [*trained, *buffers]
    kept = [value.detach().clone() for value in moved]
    optimiser = torch.optim.AdamW(trained, LOWEST, weight_decay=weight_decay)
    smoothed = 0.0
    curve: list[tuple[float, float]] = []
    with repeatable(seed):
        batches = chain.from_iterable(train.epoch(number) for number in count())
        for step, batch in enumerate(islice(batches, STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            value = loss(batch).mean()
            smoothed = MEMORY * smoothed + (1 - MEMORY) * float(value.detach())
            mean = smoothed / (1 - MEMORY ** (step + 1))
            if not math.isfinite(mean) or (curve and mean > TOO_HIGH * min(point for _, point in curve)):
                break
            curve.append((rate, mean))
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, max_gradient_norm)
            optimiser.step()
            progress(f"looking for a learning rate, loss {mean:.4f} at {rate:.1e}", step + 1, STEPS)
    with torch.no_grad():
        for value, copy in zip(moved, kept, strict=True):
            value.copy_(copy)
            value.grad = None
    return Sweep(chosen_rate(curve, where), tuple(curve))


def chosen_rate(curve: Sequence[tuple[float, float]], where: str) -> float:
    """A tenth of the rate where the loss was lowest."""
    rate, lowest = min(curve, key=lambda point: point[1], default=(0.0, math.inf))
    if not curve or lowest > FELL * curve[0][1]:
        raise PassError("no learning rate lowers the loss", where=where, fix="give learning_rate a number, such as 3e-4")
    return rate / BELOW
