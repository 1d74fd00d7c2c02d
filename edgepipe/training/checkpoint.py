"""Checkpoints of a training run: written whole or not at all, the last good one kept."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from edgepipe.store import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

FILE = "training.pt"


class Checkpoint:
    """The state of one run in one folder. Reading executes nothing: tensors and plain data only."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None without one, and for one that is damaged."""
        import torch

        try:
            state = torch.load(self._path, weights_only=True)
        except Exception:  # a damaged file raises anything; training then begins anew
            return None
        return state if isinstance(state, dict) else None

    def save(self, state: dict[str, Any]) -> None:
        """Raises `ResourceError` when the disk is full; what was saved before stays."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self._path, buffer.getvalue())
