"""Mixed precision: models run in bfloat16 or float16 while they train; weights, losses and judgements stay in float32.

Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3: float32 master weights, and (for float16, whose
small gradients would vanish) losses that are scaled up, which `edgepipe.training.updates` does.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Precision:
    name: str = "float32"
    device: str = "cpu"
    _training: bool = False

    @contextmanager
    def while_training(self, training: bool) -> Iterator[None]:
        """Inside, models run in this precision; in float32 without `training`."""
        self._training = training
        try:
            yield
        finally:
            self._training = False

    def of_models(self) -> Any:
        """A context for one call of a model."""
        import torch

        if not self._training or self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, self.name))
