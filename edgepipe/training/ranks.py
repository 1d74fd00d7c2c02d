"""The processes that train one model together: each has a piece of every batch, and all of them take the same step.

Gradients are added over processes (Li et al., "PyTorch Distributed", arXiv 2006.15704, section 3), by torch.distributed's gloo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepipe.training.pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgepipe.training.batches import Batch

    Ended = Literal["minutes", "deadline"] | None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers."""

    number: int = 0
    count: int = 1

    def own(self, batch: Batch) -> list[Batch]:
        """This process's piece of a batch; none where there are fewer rows than processes."""
        return pieces(batch, self.count)[self.number : self.number + 1] if self.count > 1 else [batch]

    def add(self, values: Sequence[Tensor]) -> None:
        """Add each over all processes, in place."""
        if self.count == 1:
            return
        from torch import distributed

        for value in values:
            distributed.all_reduce(value)

    def agreed(self, ended: Ended) -> Ended:
        """What the first process says, for all."""
        if self.count == 1:
            return ended
        from torch import distributed

        told: list[Ended] = [ended]
        distributed.broadcast_object_list(told)
        return told[0]
