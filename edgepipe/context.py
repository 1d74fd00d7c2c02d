"""What a pass may use: protocols that the pipeline injects. Their answers are part of a pass's cache key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.data import Split
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]


class Runnable(Protocol):
    """One opened model: feeds in, outputs out, torch and ONNX alike."""

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]: ...


class Context(Protocol):
    """The services of a pass. `workdir` is its own empty folder and the only place it writes."""

    workdir: Path
    facts: Mapping[str, Any]  # the profile facts the pass declared, by dotted name
    deadline: float | None  # of the whole build, in seconds as `time.time` counts them

    @property
    def teacher(self) -> Artifact:
        """The uncompressed model, or the one the user named, for passes that declared `teacher`. It has a tokenizer of its own."""

    @property
    def checkpoints(self) -> Path:
        """A folder that outlives a killed run: the same pass on the same input finds there what it wrote before."""

    def data(self, split: Split) -> list[Sample]:
        """Samples of a split the pass declared."""

    def has(self, split: Split) -> bool:
        """Whether there is data of that split."""

    def cost(self, operator: str) -> float | None:
        """Measured time of a fused operator over the time of its parts; None where nothing was measured."""

    def run(self, artifact: Artifact, *, optimise: bool = True, adapter_weights: Sequence[float] = ()) -> Runnable:
        """Open the artifact's model (with its adapters unmerged, when it has any)."""

    def feeds(self, artifact: Artifact, samples: Sequence[Sample]) -> Feeds:
        """The model's inputs for these samples as one padded batch."""

    def runs(self, artifact: Artifact, samples: Sequence[Sample]) -> Iterator[Feeds]:
        """The model's inputs for one run after the other, as the samples make them: nothing batched, nothing padded."""

    def probes(self, artifact: Artifact) -> list[Feeds]:
        """Inputs to compare models on: real samples, singly and as a padded batch, or generated ones without data."""

    def record(self, name: str, value: Any) -> None:
        """Keep a figure of how the pass went, as plain data: manifest and report show it."""

    def decide(self, option: str, value: Any) -> None:
        """Say what an option that was left open became by measuring: the recipe in the bundle names it, so that it gives the
        same model again."""

    def incomplete(self, why: str) -> None:
        """Say that the pass gives less than it could, because time ran out. Such a result is marked, and not kept for other runs."""

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done, and how far."""
