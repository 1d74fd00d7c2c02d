"""Which tokens are hidden, and by what: single ones, whole words or spans of words.

Devlin et al., "BERT", arXiv 1810.04805, section 3.1: of the chosen tokens 80 % become the mask, 10 % another token, 10 % stay.
Spans: Joshi et al., "SpanBERT", arXiv 1907.10529, section 3.1: whole words, lengths from a geometric distribution, one fate a span.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.training.batches import IGNORED, NO_WORD

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from torch import Tensor

Strategy = Literal["random", "whole-word", "span"]
MASKS = ("[MASK]", "<mask>")
SPECIAL = re.compile(r"\[[A-Za-z0-9_]+\]|<[^<>]+>")
ENDS, LONGEST = 0.2, 10  # of the lengths of spans, in words
MASKED, REPLACED = 0.8, 0.9


@dataclass(frozen=True, slots=True)
class MaskTokens:
    mask: int
    special: frozenset[int]  # never hidden
    ordinary: tuple[int, ...]  # what may stand in the place of another


def mask_tokens(tokenizer: Any) -> MaskTokens | None:
    """None for a tokenizer that has no token for what is hidden."""
    mask = next((token for name in MASKS if (token := tokenizer.token_to_id(name)) is not None), None)
    if mask is None:
        return None
    added = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = added | {number for token, number in vocabulary.items() if SPECIAL.fullmatch(token)}
    return MaskTokens(mask, frozenset(special), tuple(sorted(set(vocabulary.values()) - special)))


def masked(tokens: Tensor, words: Tensor, known: MaskTokens, strategy: Strategy, rate: float, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Tokens [batch, seq] with some hidden, and what stood there: targets [batch, seq], IGNORED elsewhere."""
    import torch

    hidden, targets = tokens.clone(), torch.full_like(tokens, IGNORED)
    for row, (numbers, belongs) in enumerate(zip(tokens.tolist(), words.tolist(), strict=True)):
        maskable = [NO_WORD if number in known.special else word for number, word in zip(numbers, belongs, strict=True)]
        for group in chosen(maskable, strategy, rate, rng):
            fate = rng.random()
            for place in group:
                fate = fate if strategy == "span" else rng.random()
                targets[row, place] = numbers[place]
                if fate < MASKED:
                    hidden[row, place] = known.mask
                elif fate < REPLACED:
                    hidden[row, place] = rng.choice(known.ordinary)
    return hidden, targets


def chosen(words: Sequence[int], strategy: Strategy, rate: float, rng: random.Random) -> list[list[int]]:
    """Groups of positions to hide, together `rate` of those that belong to words, and no more than it takes; at least one."""
    whole: dict[int, list[int]] = {}
    for place, word in enumerate(words):
        if word != NO_WORD:
            whole.setdefault(word, []).append(place)
    groups = list(whole.values())
    if strategy == "random":
        groups = [[place] for group in groups for place in group]
    wanted = max(1, round(rate * sum(map(len, groups))))
    found: list[list[int]] = []
    if strategy != "span":
        rng.shuffle(groups)
    while groups and sum(map(len, found)) < wanted:
        if strategy != "span":
            found.append(groups.pop())
            continue
        start = rng.randrange(len(groups))
        span: list[int] = []
        for _ in range(_length(rng)):
            if start < len(groups) and sum(map(len, found)) + len(span) < wanted:
                span += groups.pop(start)
        found.append(span)
    return found


def _length(rng: random.Random) -> int:
    length = 1
    while length < LONGEST and rng.random() >= ENDS:
        length += 1
    return length
