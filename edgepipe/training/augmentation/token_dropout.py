"""token-dropout: each word is left out with a probability; one always stays.

Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015, section 3.1 (word
dropout); Wei and Zou, "EDA", arXiv 1901.11196, section 2 (random deletion).
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
class TokenDropout:
    strength: float

    def sample(self, sample: Sample, rng: random.Random) -> Sample:
        def change(words: Words) -> Words:
            kept = [word for word in words if rng.random() >= self.strength]
            return kept or ([rng.choice(words)] if words else [])

        return rewritten(sample, change)


def make(setup: Setup) -> TokenDropout:
    check_text("token-dropout", setup)
    return TokenDropout(setup.options.augment_strength)
