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

IGNORED = -100  # a position that has no class: padding, every piece of a word but its first, a sample without a label
POOL = 50  # batches that are sorted by length together: little padding, and still another order in every epoch


@dataclass(frozen=True, slots=True)
class Batch:
    inputs: dict[str, Tensor]  # by the names of the model's signature
    targets: Tensor | None  # class numbers, [batch], or [batch, seq] with IGNORED; None where no sample carries one
    teacher_inputs: dict[str, Tensor] | None = None  # where the teacher encodes samples otherwise
    aligned: Tensor | None = None  # [batch]: whether both split the sample into the same tokens; None: they all are

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


class Batches:
    """The batches of one split. Inputs are made when a batch is drawn, so images are never all in memory."""

    def __init__(self, artifact: Artifact, samples: Sequence[Sample], size: int, *, seed: int = 0, teacher: Artifact | None = None) -> None:
        """`teacher`: a model that may have a tokenizer of its own."""
        self._artifact, self._samples, self._seed = artifact, samples, seed
        self._encoder = encoder_for(artifact)
        self._teacher = encoder_for(teacher) if teacher is not None and _encodes_otherwise(artifact, teacher) else None
        self._size = size if _stackable(artifact, samples) else 1
        self._lengths = [_length(sample) for sample in samples]
        self.labelled = artifact.program["task"].endswith("classification") and any("label" in sample for sample in samples)

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Every sample once, in an order of this epoch's own, without the first `skip` batches."""
        rng = random.Random(self._seed + number)
        order = list(range(len(self._samples)))
        rng.shuffle(order)
        pools = [order[start : start + POOL * self._size] for start in range(0, len(order), POOL * self._size)]
        batches = [batch for pool in pools for batch in self._cut(pool)]
        rng.shuffle(batches)
        return map(self._batch, batches[skip:])

    def in_order(self) -> Iterator[Batch]:
        """Every sample once, by length: for evaluation."""
        return map(self._batch, self._cut(list(range(len(self._samples)))))

    def _cut(self, indices: list[int]) -> list[list[int]]:
        by_length = sorted(indices, key=lambda index: self._lengths[index])
        return [by_length[start : start + self._size] for start in range(0, len(by_length), self._size)]

    def _batch(self, indices: list[int]) -> Batch:
        samples = [self._samples[index] for index in indices]
        inputs, parts = _inputs(self._encoder, samples)
        targets = self._targets(samples, inputs) if self.labelled else None
        if self._teacher is None:
            return Batch(inputs, targets)
        others, their_parts = _inputs(self._teacher, samples)
        return Batch(inputs, targets, others, _alike(parts, their_parts))

    def _targets(self, samples: Sequence[Sample], inputs: dict[str, Tensor]) -> Tensor:
        import torch

        labels = self._artifact.program["labels"]
        if self._artifact.program["task"] != "token-classification":
            named = [label_name(sample["label"], labels) if "label" in sample else None for sample in samples]
            return torch.tensor([IGNORED if name is None else labels.index(name) for name in named])
        targets = torch.full(inputs["input_ids"].shape, IGNORED)
        for row, sample in zip(targets, samples, strict=True):
            # Words behind the longest input the model takes are cut off, and their tags with them.
            for place, tag in zip(self._encoder.word_starts(sample), sample.get("label", ()), strict=False):
                row[place] = labels.index(label_name(tag, labels))
        return targets


def _inputs(encoder: Any, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], list[Any]]:
    import torch

    parts = [part for sample in samples for part in encoder.parts(sample)]
    return {name: torch.from_numpy(value) for name, value in encoder.feeds(parts).items()}, parts


def _encodes_otherwise(artifact: Artifact, teacher: Artifact) -> bool:
    def how(one: Artifact) -> Any:
        settings = one.program["preprocess"]
        asset = one.asset(settings.get("tokenizer", ""))
        return settings["kind"], settings.get("max_length"), asset and asset.sha256

    return bool(how(artifact) != how(teacher))


def _alike(ours: Sequence[Any], theirs: Sequence[Any]) -> Tensor | None:
    """Which rows are split into the same tokens; None for what is no text."""
    import torch

    if not hasattr(ours[0], "tokens"):
        return None
    return torch.tensor([a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True)])


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
