"""BPE: neighbours are merged, the merge of lowest rank first. A token stays reachable as long as those it is merged from do.

Sennrich et al., arXiv 1508.07909, section 3.2; over bytes: Radford et al., "Language Models are Unsupervised Multitask
Learners" (GPT-2), section 2.2.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what falls back to bytes where a character is unknown


def alphabet(model: Mapping[str, Any], characters: Collection[str] | None = None) -> set[int]:
    """Single characters, and every byte, which any text is made of. `characters`: those only, and every byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    always = set(ByteLevel.alphabet())
    return {
        index
        for piece, index in model["vocab"].items()
        if _BYTE.fullmatch(piece) or (len(piece) == 1 and (characters is None or piece in always or piece in characters))
    }


def needed(model: Mapping[str, Any]) -> Callable[[int], set[int]]:
    """Token → all tokens that its own merges make on the way to it.

    Inside a text a token is made as it is from its own characters alone: no merge ever crossed its ends, or it would be
    another token.
    """
    vocabulary = model["vocab"]
    names = {index: piece for piece, index in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}

    def parts(index: int) -> set[int]:
        symbols, made = list(names.get(index, "")), set()
        while len(symbols) > 1:
            found = [(ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]
            if not found:
                return set()  # no merge leads there: only a whole word is looked up, where `ignore_merges` says so
            place = min(found)[1]
            made |= {symbols[place], symbols[place + 1]}
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        return {vocabulary[piece] for piece in made if piece in vocabulary}

    return parts


def cut(model: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Merges stay, in their order, whose parts and product all do: none that is left leads anywhere it did not before."""
    kept = {piece: new_ids[index] for piece, index in model["vocab"].items() if index in new_ids}
    merges = [
        merge
        for merge, (left, right) in zip(model["merges"], _merges(model), strict=True)
        if left in kept and right in kept and left + right in kept
    ]
    return {**model, "vocab": kept, "merges": merges}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, which older files write as one text."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]
