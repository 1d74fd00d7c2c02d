"""Unigram: the most probable way to cut a text into pieces. Without one of them, the next most probable.

Kudo, "Subword Regularization", arXiv 1804.10959, section 3.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def alphabet(model: Mapping[str, Any], characters: Collection[str] | None = None) -> set[int]:
    """Single characters, bytes, pieces that these cannot spell, and the least probable piece. `characters`: those only.

    The least probable piece says what an unknown character costs (its score less 10), and with it which way to cut a text
    that holds one is the best.
    """
    entries = model["vocab"]
    single = {piece for piece, _ in entries if len(piece) == 1}
    found = {min(range(len(entries)), key=lambda index: entries[index][1])}
    for index, (piece, _) in enumerate(entries):
        if _BYTE.fullmatch(piece):
            found.add(index)
        elif len(piece) == 1:
            if characters is None or piece in characters:
                found.add(index)
        elif characters is None and not single.issuperset(piece):
            found.add(index)
    return found


def needed(model: Mapping[str, Any]) -> Callable[[int], set[int]]:
    """Nothing: a piece is found by itself."""
    return lambda index: set()


def cut(model: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    kept = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
    unk = model.get("unk_id")
    return {**model, "vocab": kept, "unk_id": None if unk is None else new_ids[unk]}
