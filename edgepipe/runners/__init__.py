"""The registry of runners: what executes artifacts on a target. A new runner is a new file here and a line below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile
    from edgepipe.readers import Sample

BUILT_IN = {"local": "edgepipe.runners.local"}


class Prediction(Protocol):
    """One sample's outcome: outputs per run of the model, nanoseconds for the model alone and with encoding."""

    outputs: list[dict[str, np.ndarray]]
    model_ns: int
    total_ns: int
    word_starts: list[int]


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
    provenance: str  # what its figures are: measured, emulated, or host where this machine stands in

    @property
    def doubt(self) -> str:
        """Why its figures prove nothing; empty where they do."""

    def push(self, artifact: Artifact) -> Path:
        """Bring the artifact's files to the target; gives the folder they lie in there."""

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> OpenModel:
        """Start a process on the target that has the artifact opened. Raises `DeviceError`."""


def runner_for(profile: Profile) -> Runner:
    """The runner that reaches the profile's device; where there is none yet, this machine stands in."""
    from importlib.metadata import entry_points

    name = profile.reach.runner
    if name in BUILT_IN:
        runner: Runner = import_module(BUILT_IN[name]).make(profile)
        return runner
    for point in entry_points(group="edgepipe.runners"):
        if point.name == name:
            installed: Any = point.load()
            return installed(profile)  # type: ignore[no-any-return]
    stand_in: Runner = import_module(BUILT_IN["local"]).make(profile)
    return stand_in
