"""token-swap: pairs of words change places, one pair for every 1 / strength words and at least one.

Wei and Zou, "EDA", arXiv 1901.11196, section 2 (random swap). A tag goes with its word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.augmentation.words import check_text, rewritten

if TYPE_CHECKING:
    import random

    from edgepipe.readers import Sample
    from edgepipe.training.augmentation import Setup
    from edgepipe.training.augmentation.words import Words


@dataclass(frozen=True, slots=True)
class TokenSwap:
    strength: float

    def sample(self, sample: Sample, rng: random.Random) -> Sample:
        def change(words: Words) -> Words:
            words = list(words)
            for _ in range(max(1, round(self.strength * len(words))) if len(words) > 1 else 0):
                a, b = rng.sample(range(len(words)), 2)
                words[a], words[b] = words[b], words[a]
            return words

        return rewritten(sample, change)


def make(setup: Setup) -> TokenSwap:
    check_text("token-swap", setup)
    return TokenSwap(setup.options.augment_strength)
