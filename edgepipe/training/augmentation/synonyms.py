"""synonyms: words are replaced by one of their nearest neighbours in the teacher's own table of token embeddings.

Jiao et al., "TinyBERT", arXiv 1909.10351, section 3.2 and algorithm 1, who take neighbours among GloVe vectors for words that are one token.
No lexicon is needed, and none is right about meaning: opposites ("good", "bad") are neighbours too. The teacher judges the
changed text; labels of the data stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.training.augmentation.words import check_text, rewritten

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample
    from edgepipe.training.augmentation import Setup
    from edgepipe.training.augmentation.words import Words

NEIGHBOURS = 8
STARTS = ("Ġ", "▁")  # what begins a word in byte-level and Unigram vocabularies; WordPiece marks the other pieces


@dataclass(slots=True)
class Synonyms:
    strength: float
    rows: dict[str, int]  # word → its row in `table`
    words: list[str]
    table: Tensor  # [words, width], of length 1
    known: dict[str, list[str]] = field(default_factory=dict)

    def sample(self, sample: Sample, rng: random.Random) -> Sample:
        def change(words: Words) -> Words:
            return [(self._other(word, rng) if rng.random() < self.strength else word, tag) for word, tag in words]

        return rewritten(sample, change)

    def _other(self, word: str, rng: random.Random) -> str:
        found = self._neighbours(word)
        if not found:
            return word
        other = rng.choice(found)
        return other.capitalize() if word[:1].isupper() else other

    def _neighbours(self, word: str) -> list[str]:
        row = self.rows.get(word, self.rows.get(word.lower()))
        if row is None:
            return []
        if word not in self.known:
            near = (self.table @ self.table[row]).topk(min(NEIGHBOURS + 1, len(self.words))).indices.tolist()
            self.known[word] = [self.words[other] for other in near if self.words[other].lower() != word.lower()][:NEIGHBOURS]
        return self.known[word]


def make(setup: Setup) -> Synonyms:
    import torch

    from edgepipe.loader import load_torch
    from edgepipe.training.views import token_table

    check_text("synonyms", setup)
    embed = token_table(load_torch(setup.teacher))
    if embed is None:
        raise PassError("synonyms needs a table of token embeddings, and the model has none", where="recover.augment", fix="leave it out")
    words = _whole_words(setup.teacher)
    with torch.no_grad():
        table = torch.nn.functional.normalize(embed(torch.tensor([token for _, token in words], dtype=torch.int64)), dim=-1)
    return Synonyms(setup.options.augment_strength, {word: row for row, (word, _) in enumerate(words)}, [word for word, _ in words], table)


def _whole_words(artifact: Artifact) -> list[tuple[str, int]]:
    """Words of letters that are one token, and the token, by its number."""
    from edgepipe.probes import encoder_for

    vocabulary: dict[str, int] = encoder_for(artifact).tokenizer.get_vocab()
    marked = any(token.startswith(STARTS) for token in vocabulary)
    words = {token.lstrip("".join(STARTS)): number for token, number in vocabulary.items() if token.startswith(STARTS) or not marked}
    return sorted(((word, number) for word, number in words.items() if word.isalpha() and len(word) > 1), key=lambda entry: entry[1])
