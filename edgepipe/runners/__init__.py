"""The registry of runners: what executes artifacts on a target. A new runner is a new file here and a line below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile
    from edgepipe.readers import Sample

BUILT_IN = {
    "local": "edgepipe.runners.local",
    "emulated": "edgepipe.runners.emulated",
    "ssh": "edgepipe.runners.ssh",
    "adb": "edgepipe.runners.adb",
    "browser": "edgepipe.runners.browser",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """What a runner's figures on one axis are, and whether they can prove anything."""

    provenance: str  # measured, emulated, predicted, or host where this machine stands in
    doubt: str = ""  # why they prove nothing; empty where they do
    note: str = ""  # what a reader should know all the same


class Prediction(Protocol):
    """One sample's outcome: outputs per run of the model, nanoseconds for the model alone and with encoding."""

    @property
    def outputs(self) -> list[dict[str, np.ndarray]]: ...
    @property
    def model_ns(self) -> int: ...
    @property
    def total_ns(self) -> int: ...
    @property
    def word_starts(self) -> list[int]: ...
    @property
    def step_seconds(self) -> float: ...


class OpenModel(Protocol):
    """One artifact opened in a process of its own on the target."""

    def predict(self, samples: Sequence[Sample]) -> Sequence[Prediction]: ...

    def batch(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, np.ndarray]:
        """Outputs of the samples as one batch, padded to the longest or to `length`."""

    def repeat(self, feeds: Mapping[str, np.ndarray], times: int) -> list[int]:
        """Nanoseconds of each of `times` runs on the same inputs."""

    def usage(self) -> tuple[int, float]:
        """Peak resident bytes of the process, and CPU seconds it has used."""

    def close(self) -> None: ...


class Runner(Protocol):
    """Executes artifacts on one target."""

    name: str
    threads: int  # that inference takes there
    emulates: bool  # outputs are the target's, times are not
    device: str  # names what figures hold for, in cache keys

    def proof(self, axis: str) -> Proof:
        """What its figures on an axis (accuracy, latency, memory, parity, operators) are worth."""

    def push(self, artifact: Artifact) -> Path:
        """Bring the artifact's files to the target; gives the folder they lie in there."""

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> OpenModel:
        """Start a process on the target that has the artifact opened. Raises `DeviceError`."""

    def close(self) -> None:
        """Leave nothing behind on the target."""


def check_address(profile: Profile) -> None:
    """Raises `UsageError` for an address that is none, before anything else is done."""
    if profile.reach.runner == "ssh" and profile.reach.address:
        from edgepipe.runners.ssh import Address

        Address.of(profile.reach.address)


def runner_for(profile: Profile) -> Runner:
    """The runner that gets nearest to the profile's device: the device itself where it can be reached, this machine where
    it is of that kind, emulation where it is set up; else this machine stands in, which proves nothing."""
    from importlib.metadata import entry_points

    from edgepipe import browser_setup
    from edgepipe.emulation import can_emulate, missing
    from edgepipe.profile import runs_here

    name: str = profile.reach.runner
    for point in entry_points(group="edgepipe.runners"):
        if point.name == name and name not in BUILT_IN:
            installed: Any = point.load()
            return installed(profile)  # type: ignore[no-any-return]
    doubt = ""
    if profile.reach.address and name in ("ssh", "adb"):
        chosen = name
    elif name == "browser":
        lacking = browser_setup.missing()
        chosen, doubt = ("local", f"missing: {lacking[0][0]} ({lacking[0][1]})") if lacking else (name, "")
    elif runs_here(profile) or not can_emulate(profile):
        chosen = "local"
        doubt = "" if runs_here(profile) else f"nothing here can stand for {profile.title}; {_reach_fix(profile)}"
    elif missing(profile):
        chosen, doubt = "local", f"its CPU's emulation is not set up (edgepipe devices setup {profile.name})"
    else:
        chosen = "emulated"
    maker: Any = import_module(BUILT_IN[chosen]).make
    runner: Runner = maker(profile, doubt) if chosen == "local" else maker(profile)
    return runner


def _reach_fix(profile: Profile) -> str:
    if profile.reach.runner in ("ssh", "adb"):
        return "name the device with --device"
    return "validate the bundle on such a machine"
