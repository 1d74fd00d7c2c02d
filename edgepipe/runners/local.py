"""The local runner: the device agent in a process of its own on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from edgepipe.machine import usable_cores
from edgepipe.profile import HOST, needs_exact_sums, runs_here
from edgepipe.resources import resource
from edgepipe.runners import Proof
from edgepipe.runners.agent import AgentModel

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile

LIMIT_S = 600.0


def make(profile: Profile, doubt: str = "") -> LocalRunner:
    here = "" if runs_here(profile) else f"this machine stood in for {profile.name}"
    return LocalRunner(min(profile.runtime.threads, usable_cores()), doubt or here, exact=needs_exact_sums(profile))


class LocalRunner:
    """Runs artifacts where they lie in the store: as the device itself, or standing in for one."""

    name = "local"
    emulates = False
    device = HOST

    def __init__(self, threads: int = 1, doubt: str = "", *, exact: bool = False) -> None:
        """`exact`: standing in for a CPU that sums int8 products in 32 bits, as `needs_exact_sums` says."""
        self.threads, self._doubt, self._exact = threads, doubt, exact

    def proof(self, axis: str) -> Proof:
        return Proof("host", self._doubt) if self._doubt else Proof("measured")

    def push(self, artifact: Artifact) -> Path:
        return artifact.root

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> AgentModel:
        log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
        process = subprocess.Popen(
            [sys.executable, str(resource("devices") / "agent.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        return AgentModel(process, log, where="runner local", limit_s=LIMIT_S).opened(str(folder), threads, optimise, self._exact)

    def close(self) -> None: ...
