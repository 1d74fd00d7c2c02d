"""A model before and after its vocabulary was cut: what must be the same, and what became of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.probes import encoder_for
from edgepipe.vocabulary.selection import shares
from edgepipe.vocabulary.tokenizer_file import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Runnable
    from edgepipe.data import Split
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]

SAMPLES = 500  # whose tokens are compared one by one
READ: tuple[Split, ...] = ("dev", "calibration", "train", "unlabelled")  # the first was not looked at when tokens were chosen


def carried_ids(before: Artifact, after: Artifact) -> dict[int, int]:
    """Id before → id after, of the tokens that both have."""
    new = {token: index for index, token in read_tokenizer(after).tokens.items()}
    return {index: new[token] for index, token in read_tokenizer(before).tokens.items() if token in new}


def split_otherwise(before: Artifact, after: Artifact, samples: Sequence[Sample]) -> tuple[int, Sample | None]:
    """How many of the samples have only tokens that were kept, and the first of these that is split otherwise now."""
    carried, unknown = carried_ids(before, after), read_tokenizer(before).unknown
    old, new, kept = encoder_for(before), encoder_for(after), 0
    for sample in samples[:SAMPLES]:
        pairs = [(a.ids, b.ids) for a, b in zip(old.parts(sample), new.parts(sample), strict=True)]
        if all(index in carried and index != unknown for ids, _ in pairs for index in ids):
            kept += 1
            if any([carried[index] for index in ids] != now for ids, now in pairs):
                return kept, sample
    return kept, None


def on_kept_tokens(before: Artifact, after: Artifact, run: Runnable) -> Runnable:
    """The model before, fed with the ids of the one after; of an output over the vocabulary what both have."""
    import numpy as np

    back = {new: old for old, new in carried_ids(before, after).items()}
    rows, left = before.program["preprocess"]["vocab_size"], after.program["preprocess"]["vocab_size"]
    old_ids = np.array([back.get(index, 0) for index in range(left)])

    def fed(feeds: Feeds) -> dict[str, np.ndarray]:
        outputs = run({**feeds, "input_ids": old_ids[feeds["input_ids"]].astype(feeds["input_ids"].dtype)})
        return {name: value[..., old_ids] if value.ndim > 2 and value.shape[-1] == rows else value for name, value in outputs.items()}

    return fed


def fallback(
    before: Artifact, after: Artifact, has: Callable[[Split], bool], data: Callable[[Split], list[Sample]]
) -> tuple[float | None, str]:
    """The share of the tokens that fell back to others, of data that had no say in the choice where there are any, and all in words."""
    old, new = read_tokenizer(before), read_tokenizer(after)
    value, told = None, [f"{len(new.tokens):,} of {len(old.tokens):,} tokens kept"]
    for split in READ:
        if has(split):
            found = shares(old, encoder_for(before), new, encoder_for(after), data(split))
            value = found["fell_back"] if value is None else value
            told.append(
                f"{split}: {found['fell_back']:.2%} of tokens fell back to shorter ones, {found['unknown']:.2%} are unknown "
                f"(was {found['unknown_before']:.2%}), inputs are {found['longer']:.2%} longer"
            )
    return value, "; ".join(told)
