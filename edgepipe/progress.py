"""Progress: what is being done, how far, and what is left. The engine speaks through this one protocol."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def stage(self, name: str, detail: str = "") -> None:
        """A new stage begins: a pass, or a step of validation."""

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        """Within a stage: `what` is happening, `done` of `total` (0: not counted)."""

    def finish(self, name: str, outcome: str) -> None:
        """A stage is over."""


class Silent:
    """No progress at all: `--quiet`, and the default of the Python API."""

    def stage(self, name: str, detail: str = "") -> None: ...

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None: ...

    def finish(self, name: str, outcome: str) -> None: ...
