"""The near-duplicate rule on samples: what a build's splits may not share, and what stays together when one file is dealt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError
from edgepipe.near_duplicates.overlap import Documents, first_overlap, groups_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from edgepipe.config import Data
    from edgepipe.near_duplicates.windows import Text
    from edgepipe.readers import Sample


def refuse_near_duplicates(splits: Mapping[str, Sequence[Sample]], config: Data, allowed: Collection[frozenset[str]]) -> None:
    """`DataError` where texts of two splits are nearly the same, or share a passage. Images, sounds and arrays are left alone."""
    documents = [Documents(split, _texts(samples)) for split, samples in splits.items()]
    if any("text_pair" in sample for split in splits for sample in splits[split][:1] if split != "unlabelled"):
        documents = [Documents(one.split, one.texts, "texts") if one.split == "unlabelled" else one for one in documents]
        documents += [
            Documents(one.split, [side for text in one.texts for side in text], "sides") for one in documents if one.of == "samples"
        ]
    found = first_overlap(documents, allowed, config.near_duplicates, config.shared_passage)
    if found is not None:
        raise DataError(
            f"the {found.one} and {found.other} data {found.what}",
            where=str(getattr(config, found.other) or config.file),
            fix=f"drop them from one with `edgepipe data dedup --against`, or deal all anew with `edgepipe data split`; or say "
            f'allow_overlap = ["{found.one}/{found.other}"] in [data], or {found.setting} = 0 to look for none',
        )


def dealt_together(dealt: Mapping[Any, list[Sample]], config: Data) -> dict[Any, list[Sample]]:
    """The same samples, each with its near-duplicates: all go where the first of them is."""
    placed = [(role, sample) for role, samples in dealt.items() for sample in samples]
    texts = [text_of(sample) for _, sample in placed]
    if None in texts or not (config.near_duplicates or config.shared_passage):
        return dict(dealt)
    goes = [role for role, _ in placed]
    for group in groups_of([text for text in texts if text is not None], config.near_duplicates, config.shared_passage):
        for row in group:
            goes[row] = goes[group[0]]
    return {role: [sample for (_, sample), there in zip(placed, goes, strict=True) if there == role] for role in dealt}


def _texts(samples: Iterable[Sample]) -> list[Text]:
    return [text for sample in samples if (text := text_of(sample)) is not None]


def text_of(sample: Sample) -> Text | None:
    """What is compared of a sample; None for what is no text."""
    if "tokens" in sample:
        return " ".join(sample["tokens"])
    if "text_pair" in sample:
        return sample["text"], sample["text_pair"]
    return sample.get("text")
