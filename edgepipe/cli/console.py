"""Progress for people: one live line on a terminal, plain lines in a pipe or CI, nothing under --quiet or --json."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgepipe.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepipe.progress import Progress


@contextmanager
def progress(*, quiet: bool, verbose: bool = False) -> Iterator[Progress]:
    """The progress display that suits where stderr goes."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty() and not verbose:
        live = _Live()
        try:
            yield live
        finally:
            live.close()
    else:
        yield _Lines(verbose)


class _Lines:
    """One line when a stage ends, and one every ten seconds while it lasts."""

    def __init__(self, verbose: bool) -> None:
        self._verbose, self._said, self._last = verbose, time.monotonic(), ""

    def stage(self, name: str, detail: str = "") -> None:
        self._said = time.monotonic()
        if self._verbose:
            print(f"{name}: {detail}", file=sys.stderr, flush=True)

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        fresh = self._verbose and what != self._last
        if fresh or time.monotonic() - self._said > 10:
            self._said, self._last = time.monotonic(), what
            counted = f" {done}/{total}" if total else ""
            print(f"  {stage}: {what}{counted}", file=sys.stderr, flush=True)

    def finish(self, name: str, outcome: str) -> None:
        print(f"{name}: {outcome}", file=sys.stderr, flush=True)


class _Live:
    """rich's display: a spinner, a bar where work is counted, time so far and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=None, what="")

    def stage(self, name: str, detail: str = "") -> None:
        self._bar.reset(self._task, description=name, total=None, what="")

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        self._bar.update(self._task, what=what, total=total or None, completed=done)

    def finish(self, name: str, outcome: str) -> None:
        from rich.markup import escape

        self._console.print(f"[green]✓[/] [bold]{escape(name)}[/] {escape(outcome)}", highlight=False)

    def close(self) -> None:
        self._bar.stop()
