"""Samples as padded torch batches: like lengths together, shuffled by a fixed seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.probes import encoder_for
from edgepipe.tasks.classification import label_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample

IGNORED = -100  # a position that has no class: padding, and every piece of a word but its first
POOL = 50  # batches that are sorted by length together: little padding, and still another order in every epoch


@dataclass(frozen=True, slots=True)
class Batch:
    inputs: dict[str, Tensor]  # by the names of the model's signature
    targets: Tensor | None  # class numbers, [batch], or [batch, seq] with IGNORED; None where samples carry none


class Batches:
    """The batches of one split. Inputs are made when a batch is drawn, so images are never all in memory."""

    def __init__(self, artifact: Artifact, samples: Sequence[Sample], size: int, *, seed: int = 0) -> None:
        self._artifact, self._samples, self._seed = artifact, samples, seed
        self._encoder = encoder_for(artifact)
        self._size = size if _stackable(artifact, samples) else 1
        self._lengths = [_length(sample) for sample in samples]
        self.labelled = artifact.program["task"].endswith("classification") and all("label" in sample for sample in samples)

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Every sample once, in an order of this epoch's own."""
        rng = random.Random(self._seed + number)
        order = list(range(len(self._samples)))
        rng.shuffle(order)
        pools = [order[start : start + POOL * self._size] for start in range(0, len(order), POOL * self._size)]
        batches = [batch for pool in pools for batch in self._cut(pool)]
        rng.shuffle(batches)
        return map(self._batch, batches)

    def in_order(self) -> Iterator[Batch]:
        """Every sample once, by length: for evaluation."""
        return map(self._batch, self._cut(list(range(len(self._samples)))))

    def _cut(self, indices: list[int]) -> list[list[int]]:
        by_length = sorted(indices, key=lambda index: self._lengths[index])
        return [by_length[start : start + self._size] for start in range(0, len(by_length), self._size)]

    def _batch(self, indices: list[int]) -> Batch:
        import torch

        samples = [self._samples[index] for index in indices]
        feeds = self._encoder.feeds([part for sample in samples for part in self._encoder.parts(sample)])
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        return Batch(inputs, self._targets(samples, inputs) if self.labelled else None)

    def _targets(self, samples: Sequence[Sample], inputs: dict[str, Tensor]) -> Tensor:
        import torch

        labels = self._artifact.program["labels"]
        if self._artifact.program["task"] != "token-classification":
            return torch.tensor([labels.index(label_name(sample["label"], labels)) for sample in samples])
        targets = torch.full(inputs["input_ids"].shape, IGNORED)
        for row, sample in zip(targets, samples, strict=True):
            # Words behind the longest input the model takes are cut off, and their tags with them.
            for place, tag in zip(self._encoder.word_starts(sample), sample["label"], strict=False):
                row[place] = labels.index(label_name(tag, labels))
        return targets


def _length(sample: Sample) -> int:
    return len(str(sample.get("text", sample.get("tokens", "")))) + len(str(sample.get("text_pair", "")))


def _stackable(artifact: Artifact, samples: Sequence[Sample]) -> bool:
    """Whether samples can share a batch: not where the model takes one at a time, nor arrays of several shapes."""
    settings: dict[str, Any] = artifact.program["preprocess"]
    if settings.get("batch"):
        return False
    return settings["kind"] != "tensors" or len({_shapes(sample) for sample in samples}) == 1


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape[1:] for array in sample["tensors"].values())
