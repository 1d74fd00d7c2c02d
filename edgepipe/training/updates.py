"""One step of training: a batch, whole or in pieces, its gradient, and what the optimiser makes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError
from edgepipe.training.optimizers import make_optimizer
from edgepipe.training.pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch
    from edgepipe.training.loop import Schedule
    from edgepipe.training.ranks import Ranks

    Loss = Callable[[Batch], Tensor]

SMALLEST_SCALE = 2.0**-10  # of losses in float16: gradients that are no numbers even so come from no overflow


class Updates:
    """Changes parameters by the gradient of one batch after the other."""

    def __init__(self, parameters: Sequence[Parameter], schedule: Schedule, where: str, ranks: Ranks) -> None:
        import torch

        self._parameters, self._schedule, self._where, self._ranks = parameters, schedule, where, ranks
        self._optimiser = make_optimizer(schedule.optimizer, parameters, schedule.learning_rate, schedule.weight_decay)
        # Scales losses up so that float16 holds their gradients; does nothing in another precision.
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=schedule.precision == "float16")

    def __call__(self, loss: Loss, batch: Batch, rate: float, what: str) -> float:
        """Take one step at this share of the learning rate; the batch's mean loss. A step in float16 whose gradient overflowed is
        left out, and losses are scaled less from then on. `PassError` for a loss that is no number."""
        import torch

        for group in self._optimiser.param_groups:
            group["lr"] = self._schedule.learning_rate * rate
        self._optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for piece in (each for own in self._ranks.own(batch) for each in pieces(own, self._schedule.accumulate)):
            value = loss(piece).mean() * (piece.rows / batch.rows)
            self._scaler.scale(value).backward()
            total += value.detach().cpu()
        self._ranks.add([total, *self._gradients()])
        mean = sound(total, self._where, what)
        self._scaler.unscale_(self._optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._schedule.max_gradient_norm)
        if not self._scaler.is_enabled() or self._scaler.get_scale() <= SMALLEST_SCALE:
            sound(norm, self._where, f"the gradient of {what}")
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return mean

    def _gradients(self) -> list[Tensor]:
        """Of every parameter; a part of the batch may reach fewer of them than all of it."""
        import torch

        if self._ranks.count > 1:
            for parameter in self._parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def state(self) -> dict[str, Any]:
        return {"optimiser": self._optimiser.state_dict(), "scaler": self._scaler.state_dict()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._optimiser.load_state_dict(saved["optimiser"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(saved["scaler"])


def sound(value: Tensor, where: str, what: str) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise PassError(f"training diverged: the loss is no finite number at {what}", where=where, fix="lower the learning rate")
    return number
