"""WordPiece: the longest piece that fits, from left to right. A word without one of its pieces falls to shorter ones.

Wu et al., "Google's Neural Machine Translation System", arXiv 1609.08144, section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


def alphabet(model: Mapping[str, Any], characters: Collection[str] | None = None) -> set[int]:
    """Single characters, at the start of a word and inside it, and pieces that these cannot spell. `characters`: those only."""
    vocabulary, mark = model["vocab"], model.get("continuing_subword_prefix", "##")
    found = set()
    for piece, index in vocabulary.items():
        letters = piece.removeprefix(mark)
        if len(letters) == 1:
            if characters is None or letters in characters:
                found.add(index)
        elif characters is None and letters:
            spelled = [mark + letter for letter in letters]
            if not piece.startswith(mark):
                spelled[0] = letters[0]
            if not all(each in vocabulary for each in spelled):
                found.add(index)
    return found


def needed(model: Mapping[str, Any]) -> Callable[[int], set[int]]:
    """Nothing: a piece is found by itself."""
    return lambda index: set()


def cut(model: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    return {**model, "vocab": {piece: new_ids[index] for piece, index in model["vocab"].items() if index in new_ids}}
