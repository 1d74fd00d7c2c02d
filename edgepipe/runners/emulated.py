"""The emulated runner: the device agent under user-mode CPU emulation, with the target's own kernels.

Outputs and memory are the target's; times are the emulator's and never shown (latency is predicted from counted
instructions instead, `edgepipe.cost`).
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgepipe.emulation import emulated, emulator_env, folder_of, root_runtime
from edgepipe.errors import DeviceError
from edgepipe.resources import resource
from edgepipe.runners import Proof
from edgepipe.runners.agent import AgentModel

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile

LIMIT_S = 3600.0  # for one answer: the longest sample of a large float32 model, a hundred times slower than on the device


def make(profile: Profile) -> EmulatedRunner:
    return EmulatedRunner(profile)


class EmulatedRunner:
    """Runs artifacts where they lie in the store, as another CPU."""

    name = "emulated"
    emulates = True

    def __init__(self, profile: Profile) -> None:
        self.emulation = emulated(profile)
        self.threads = profile.runtime.threads
        self.device = self.emulation.digest
        self._doubt = ""
        if profile.cpu.arch == "aarch64" and (ran := root_runtime()) != profile.runtime.version:
            self._doubt = f"onnxruntime {ran} ran, and {profile.name} names {profile.runtime.version}"
        self._apple = profile.cpu.model.startswith("apple-")
        self._phone = self._apple or profile.reach.runner == "adb"

    def proof(self, axis: str) -> Proof:
        if axis == "latency":
            return Proof("predicted", self._doubt)
        if axis == "memory" and self._apple:
            return Proof("emulated", "a Linux process stood for an iPhone's, whose system counts memory its own way")
        nearest = self.emulation.nearest.split(",")[0]
        notes = [f"the emulator's nearest CPU, {nearest}, stood for it" if nearest else ""]
        notes += ["the runtime's Linux build stood for the phone's"] if self._phone else []
        return Proof("emulated", self._doubt, "; ".join(note for note in notes if note))

    def push(self, artifact: Artifact) -> Path:
        return artifact.root

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> EmulatedModel:
        log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
        command = self.emulation.run(resource("devices") / "agent.py")
        where = f"runner emulated ({self.emulation.qemu_cpu})"
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=emulator_env(self.emulation), cwd="/"
            )
        except OSError as error:
            log.close()
            fix = "EDGEPIPE_CACHE must lie on a disk that programs may run from"
            raise DeviceError(f"{command[0]} cannot be run: {error.strerror}", where=where, fix=fix) from None
        return EmulatedModel(process, log, where=where, limit_s=LIMIT_S).opened(str(folder), threads, optimise)

    def close(self) -> None: ...


class EmulatedModel(AgentModel):
    """An agent under the emulator, whose memory is told apart from the emulator's own."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], *, where: str, limit_s: float) -> None:
        super().__init__(process, log, where=where, limit_s=limit_s)
        self._smaps = Path("/proc") / str(process.pid) / "smaps"

    def usage(self) -> tuple[int, float]:
        """Peak resident bytes of the emulated process alone, and the CPU seconds of both."""
        peak, cpu_s = super().usage()
        return peak - emulator_bytes(self._smaps.read_text(encoding="utf-8"), str(folder_of("emulator").resolve())), cpu_s


def emulator_bytes(smaps: str, emulator: str) -> int:
    """Resident bytes of the emulator itself in a process's `smaps`: its code buffer (the mapping one can write and
    execute), its files and its heap. They only grow, so what stands at the end was part of the peak."""
    total, ours = 0, False
    for line in smaps.splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and not head[0].endswith(":"):
            place = head[5] if len(head) > 5 else ""
            ours = ("w" in head[1] and "x" in head[1]) or place.startswith(emulator) or place in ("[heap]", "[stack]")
        elif ours and head[0] == "Rss:":
            total += int(head[1]) * 1024
    return total
