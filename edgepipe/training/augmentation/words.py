"""Texts as lists of words, each with its tag where words have one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.training.augmentation import misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.readers import Sample
    from edgepipe.training.augmentation import Setup

    Words = list[tuple[str, Any]]  # (word, its tag)


def rewritten(sample: Sample, change: Callable[[Words], Words]) -> Sample:
    """The sample with every one of its texts changed."""
    if "tokens" in sample:
        tags = sample.get("label", [None] * len(sample["tokens"]))
        words = change(list(zip(sample["tokens"], tags, strict=True)))
        labels = {"label": [tag for _, tag in words]} if "label" in sample else {}
        return {**sample, "tokens": [word for word, _ in words], **labels}
    texts = {key: sample[key] for key in ("text", "text_pair") if sample.get(key)}
    return {**sample, **{key: " ".join(word for word, _ in change([(word, None) for word in text.split()])) for key, text in texts.items()}}


def check_text(name: str, setup: Setup) -> None:
    if setup.artifact.program["preprocess"]["kind"] != "text":
        raise misfit(name, "texts", setup)
