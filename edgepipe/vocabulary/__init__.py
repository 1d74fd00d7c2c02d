"""Vocabularies cut to what is used: which tokens stay, the tokenizer rewritten for them, and the model's tables with it.

One file for each kind of tokenizer model, with the same three functions:

    alphabet(model, characters)   tokens that must stay so that any text, or text of these characters, still tokenizes
    needed(model)                 token → the others without which it would never be made
    cut(model, new_ids)           the model with those tokens only, under their new ids
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}


def kind_of(model: dict[str, Any], path: Path) -> Any:
    """The file for a tokenizer's "model". Raises `ModelError` for kinds whose vocabulary cannot be cut."""
    name = model.get("type") or "BPE"
    if name not in KINDS:
        raise ModelError(
            f'the vocabulary of a tokenizer of type "{name}" cannot be cut',
            where=str(path),
            fix=f"{', '.join(KINDS)} can; leave prune-vocab out of the recipe",
        )
    if model.get("end_of_word_suffix") or (name == "BPE" and model.get("continuing_subword_prefix")):
        raise ModelError(
            "the vocabulary of a BPE tokenizer that marks where words end or go on cannot be cut",
            where=str(path),
            fix="byte-level ones can; leave prune-vocab out of the recipe",
        )
    return import_module(f"edgepipe.vocabulary.{KINDS[name]}")
