"""Training samples that are changed anew in every epoch, one file a method. A new one is a file here and a line in `AUGMENTATIONS`.

Student and teacher see the same changed sample, so that what the teacher says of it is true whatever the change did.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from edgepipe.errors import PassError

if TYPE_CHECKING:
    import random

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample
    from edgepipe.training.batches import Batch

AUGMENTATIONS = {
    "token-dropout": "token_dropout",
    "token-swap": "token_swap",
    "synonyms": "synonyms",
    "mixup": "mixup",
    "crop": "crop",
    "flip": "flip",
    "rotate": "rotate",
    "cutmix": "cutmix",
}  # name → module


class SampleChange(Protocol):
    """Changes a sample before it is encoded."""

    def sample(self, sample: Sample, rng: random.Random) -> Sample: ...


class BatchChange(Protocol):
    """Changes rows of a batch. All that is drawn comes from `rng`."""

    def batch(self, batch: Batch, rng: random.Random) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What a method is made from. `options` are those of the pass."""

    artifact: Artifact
    module: Any
    teacher: Artifact
    options: Any


@dataclass(frozen=True, slots=True)
class Augmentation:
    """All methods of a run: each changes `share` of the samples, or of the batches where rows are mixed."""

    changes: tuple[Any, ...]  # each a SampleChange or a BatchChange
    share: float

    def sample(self, sample: Sample, rng: random.Random) -> Sample:
        for change in self.changes:
            if hasattr(change, "sample") and rng.random() < self.share:
                sample = change.sample(sample, rng)
        return sample

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        for change in self.changes:
            if hasattr(change, "batch"):
                batch = change.batch(batch, rng)
        return batch


def make_augmentation(setup: Setup) -> Augmentation | None:
    """None where the options name no method. Raises `PassError` for a method that does not fit what the model takes."""
    names = setup.options.augment
    if not names:
        return None
    changes = tuple(import_module(f"edgepipe.training.augmentation.{AUGMENTATIONS[name]}").make(setup) for name in names)
    return Augmentation(changes, setup.options.augment_share)


def misfit(name: str, takes: str, setup: Setup) -> PassError:
    kind = {"text": "text", "image": "images", "pixels": "images", "tensors": "arrays"}.get(
        setup.artifact.program["preprocess"]["kind"], "audio"
    )
    return PassError(f"{name} is for {takes}, and the model takes {kind}", where="recover.augment", fix=f"leave {name} out")
