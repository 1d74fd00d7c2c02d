"""Samples as padded torch batches: like lengths together, shuffled by a fixed seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.probes import encoder_for
from edgepipe.tasks.classification import label_name
from edgepipe.training.alignment import align

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Generator, Tensor

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample
    from edgepipe.training.alignment import Alignment
    from edgepipe.training.augmentation import Augmentation
    from edgepipe.training.importance_sampling import ImportanceSampler

IGNORED = -100  # a position that has no class: padding, every piece of a word but its first, a sample without a label
POOL = 50  # batches that are sorted by length together: little padding, and still another order in every epoch
NO_WORD = -1  # of a position that belongs to no word: special tokens, padding


@dataclass(frozen=True, slots=True)
class OtherText:
    """What a text's embeddings are mixed with when a model is called."""

    tokens: Tensor  # [batch, seq], of the other row
    mask: Tensor  # [batch, seq]: which of those are shown
    own_mask: Tensor  # [batch, seq]: which of its own were shown before


@dataclass(frozen=True, slots=True)
class Mix:
    """Every row is share · itself + (1 − share) · another one. Images are mixed already, texts are not."""

    share: Tensor  # [batch]
    targets: Tensor | None  # of the other row, as in `Batch`
    text: OtherText | None = None
    teacher_text: OtherText | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    inputs: dict[str, Tensor]  # by the names of the model's signature
    targets: Tensor | None  # class numbers, [batch], or [batch, seq] with IGNORED; None where no sample carries one
    teacher_inputs: dict[str, Tensor] | None = None  # where the teacher encodes samples otherwise
    aligned: Alignment | None = None  # which positions are the same for both; None: they all are
    words: Tensor | None = None  # [batch, seq]: which word of its text a position belongs to, or NO_WORD; None for what is no text
    samples: Tensor | None = None  # [batch]: the number of each row's sample
    weights: Tensor | None = None  # [batch]: what makes up for samples that are drawn more often than others
    mix: Mix | None = None
    seed: str = ""  # of what is drawn at random for this batch

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def unmixed(self) -> dict[str, Tensor]:
        """The inputs as they were before texts were mixed."""
        text = self.mix and self.mix.text
        return {**self.inputs, "attention_mask": text.own_mask} if text else self.inputs

    def generator(self, purpose: str) -> Generator:
        """Random numbers for one purpose, the same ones whenever this batch is drawn again."""
        import torch

        return torch.Generator().manual_seed(random.Random(f"{self.seed}/{purpose}").getrandbits(63))


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample that an epoch holds, and what its loss counts there."""

    sample: int
    weight: float = 1.0


class Batches:
    """The batches of one split. Inputs are made when a batch is drawn, so images are never all in memory."""

    def __init__(
        self,
        artifact: Artifact,
        samples: Sequence[Sample],
        size: int,
        *,
        seed: int = 0,
        teacher: Artifact | None = None,
        augmentation: Augmentation | None = None,
        sampler: ImportanceSampler | None = None,
    ) -> None:
        """`teacher`: a model that may have a tokenizer of its own. Epochs are augmented and drawn from; evaluation never is."""
        self._artifact, self._samples, self._seed = artifact, samples, seed
        self._augmentation, self._sampler = augmentation, sampler
        self._encoder = encoder_for(artifact)
        self._teacher = encoder_for(teacher) if teacher is not None and _encodes_otherwise(artifact, teacher) else None
        self.size = size if _stackable(artifact, samples) else 1
        self._lengths = [_length(sample) for sample in samples]
        self.labelled = artifact.program["task"].endswith("classification") and any("label" in sample for sample in samples)

    def __len__(self) -> int:
        return -(-len(self._samples) // self.size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """As many samples as there are, in an order of this epoch's own, without the first `skip` batches: every one once, or as
        the sampler draws them."""
        rng = random.Random(self._seed + number)
        draws = self._sampler.draws(number) if self._sampler else [Draw(index) for index in range(len(self._samples))]
        rng.shuffle(draws)
        pools = [draws[start : start + POOL * self.size] for start in range(0, len(draws), POOL * self.size)]
        batches = [batch for pool in pools for batch in self._cut(pool)]
        rng.shuffle(batches)
        return (
            self._batch(batch, f"{self._seed}/{number}/{index}", self._augmentation)
            for index, batch in enumerate(batches[skip:], start=skip)
        )

    def in_order(self) -> Iterator[Batch]:
        """Every sample once, by length: for evaluation."""
        batches = self._cut([Draw(index) for index in range(len(self._samples))])
        return (self._batch(batch, f"in order/{index}", None) for index, batch in enumerate(batches))

    def token_counts(self, vocabulary: int) -> Tensor:
        """How often each token stands in the samples, [vocabulary]."""
        import torch

        counts = torch.zeros(vocabulary, dtype=torch.int64)
        for sample in self._samples:
            for part in _parts(self._encoder, sample):
                counts += torch.bincount(torch.tensor(part.ids), minlength=vocabulary)[:vocabulary]
        return counts

    def _cut(self, draws: list[Draw]) -> list[list[Draw]]:
        by_length = sorted(draws, key=lambda draw: self._lengths[draw.sample])
        return [by_length[start : start + self.size] for start in range(0, len(by_length), self.size)]

    def _batch(self, draws: list[Draw], seed: str, augmentation: Augmentation | None) -> Batch:
        import torch

        rng = random.Random(seed)
        samples = [self._samples[draw.sample] for draw in draws]
        if augmentation:
            samples = [augmentation.sample(sample, rng) for sample in samples]
        inputs, parts, counts = _inputs(self._encoder, samples)
        owners = torch.repeat_interleave(torch.tensor(counts))
        more: dict[str, Any] = {}
        if self._teacher is not None:
            more["teacher_inputs"], their_parts, _ = _inputs(self._teacher, samples)
            more["aligned"] = align(parts, their_parts)
        batch = Batch(
            inputs,
            self._targets(samples, inputs) if self.labelled else None,
            words=_words(parts, inputs),
            samples=torch.tensor([draw.sample for draw in draws])[owners],
            weights=torch.tensor([draw.weight for draw in draws])[owners] if self._sampler else None,
            seed=seed,
            **more,
        )
        return augmentation.batch(batch, rng) if augmentation else batch

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


def drawn(samples: list[Any], count: int | None, seed: int) -> list[Any]:
    """All samples, or as many of them as asked, at random."""
    return samples if count is None or len(samples) <= count else random.Random(seed).sample(samples, count)


def _inputs(encoder: Any, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], list[Any], list[int]]:
    """The inputs, what they were made from, and how many rows each sample has."""
    import torch

    parts = [_parts(encoder, sample) for sample in samples]
    rows = [part for each in parts for part in each]
    return {name: torch.from_numpy(value) for name, value in encoder.feeds(rows).items()}, rows, [len(each) for each in parts]


def _parts(encoder: Any, sample: Sample) -> list[Any]:
    """The encodings of a sample. Where a task compares two texts, a sample without a label may be one alone."""
    if getattr(encoder, "twin", False) and "text_pair" not in sample:
        return encoder.parts({**sample, "text_pair": ""})[:1]  # type: ignore[no-any-return]
    return encoder.parts(sample)  # type: ignore[no-any-return]


def _words(parts: Sequence[Any], inputs: dict[str, Tensor]) -> Tensor | None:
    import torch

    if not hasattr(parts[0], "word_ids"):
        return None
    words = torch.full(inputs["input_ids"].shape, NO_WORD)
    for row, part in zip(words, parts, strict=True):
        second = 1 + max((word for word in part.word_ids if word is not None), default=0)  # the words of a pair are counted anew
        for place, (word, sequence, special) in enumerate(zip(part.word_ids, part.sequence_ids, part.special_tokens_mask, strict=True)):
            if word is not None and not special:
                row[place] = word + second * (sequence or 0)
    return words


def _encodes_otherwise(artifact: Artifact, teacher: Artifact) -> bool:
    def how(one: Artifact) -> Any:
        settings = one.program["preprocess"]
        asset = one.asset(settings.get("tokenizer", ""))
        return settings["kind"], settings.get("max_length"), asset and asset.sha256

    return bool(how(artifact) != how(teacher))


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
