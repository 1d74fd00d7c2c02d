"""A device that a script in place of `ssh` leads to: this machine, with a home of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from edgepipe.artifact import Artifact
from edgepipe.config import Task
from edgepipe.measure import Measurement, measure
from edgepipe.profile import Profile, host_profile
from edgepipe.progress import Silent
from edgepipe.runners import link
from edgepipe.runners.ssh import SshRunner
from edgepipe.tasks import load_task

# Its file `before` is what start-up files do; `instead`, what ssh does.
SSH = """\
#!/bin/sh
for line; do :; done
echo "$@" >> "$BOARD/calls"
export HOME="$BOARD/home"
unset XDG_CACHE_HOME
[ -f "$BOARD/before" ] && . "$BOARD/before"
[ -f "$BOARD/instead" ] && . "$BOARD/instead"
exec sh -c "$line"
"""


class Board:
    """A device that `ssh` leads to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(SSH)
        (folder / "bin" / "ssh").chmod(0o755)

    def does(self, name: str, script: str) -> None:
        (self.folder / name).write_text(script)

    def files(self) -> list[str]:
        """Also while the board tidies up: `os.walk` passes over folders that have gone."""
        return sorted((Path(folder) / name).relative_to(self.home).as_posix() for folder, _, names in os.walk(self.home) for name in names)

    @property
    def agent(self) -> Path:
        return self.home / ".cache" / "edgepipe-agent"


def profile(**changes: Any) -> Profile:
    """This machine as a board; `changes` to its CPU or runtime by dotted name."""
    data = host_profile().model_dump(mode="json")
    for key, value in changes.items():
        table, _, name = key.partition("__")
        data[table][name] = value
    return Profile.model_validate({**data, "name": "board", "title": "a board", "reach": {"runner": "ssh", "address": "pi@board"}})


def wait_for(condition: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def changed_board(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """A device whose bootstrap finds other things than this machine has."""
    source = link.bootstrap_source()
    assert old.encode() in source
    monkeypatch.setattr(link, "bootstrap_source", lambda: source.replace(old.encode(), new.encode()))


def measured(runner: SshRunner, artifact: Artifact) -> Measurement:
    task = load_task(Task(name="text-classification"))
    return measure(artifact, artifact, runner, task, [{"text": "good", "label": "positive"}] * 8, 1, Silent())
