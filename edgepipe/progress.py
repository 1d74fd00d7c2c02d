"""Progress: what is being done, how far, and what is left. The engine speaks through this one protocol."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


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


class Logged:
    """Passes progress on and writes stages to the run log, with the time since the start."""

    def __init__(self, inner: Progress, log: Path) -> None:
        self._inner, self._log, self._start = inner, log, time.monotonic()

    def stage(self, name: str, detail: str = "") -> None:
        self._write(f"{name}: {detail}" if detail else name)
        self._inner.stage(name, detail)

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        self._inner.update(stage, what, done, total)

    def finish(self, name: str, outcome: str) -> None:
        self._write(f"{name} done: {outcome}")
        self._inner.finish(name, outcome)

    def _write(self, text: str) -> None:
        with self._log.open("a", encoding="utf-8") as handle:
            handle.write(f"[{time.monotonic() - self._start:8.2f} s] {text}\n")
