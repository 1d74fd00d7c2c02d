"""Which tokens stay: those that must, and of those that the data use the most frequent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgepipe.readers import Sample
    from edgepipe.vocabulary.tokenizer_file import TokenizerFile


@dataclass(frozen=True, slots=True)
class Selection:
    """Tokens that stay, by their old ids, in order; and how many of them each reason keeps."""

    kept: tuple[int, ...]
    special: int
    characters: int
    reserved: int
    used: int  # of all tokens, by the data as often as asked

    @property
    def new_ids(self) -> dict[int, int]:
        return {old: new for new, old in enumerate(self.kept)}


def count_tokens(encoder: Any, samples: Iterable[Sample]) -> Counter[int]:
    """How often the model is fed each token."""
    return Counter(index for sample in samples for part in encoder.parts(sample) for index in part.ids)


def tokens_of(tokenizer: TokenizerFile, texts: Iterable[str]) -> set[int]:
    """The tokens that words or texts are made of, alone and after a space; a text that is a token stands for itself."""
    own = {token: index for index, token in tokenizer.tokens.items()}
    opened = tokenizer.opened()
    found: set[int] = set()
    for text in texts:
        if text in own:
            found.add(own[text])
        else:
            found.update(*(opened.encode(form, add_special_tokens=False).ids for form in (text, f" {text}")))
    return found


def choose_tokens(
    tokenizer: TokenizerFile,
    counts: Counter[int],
    *,
    special: set[int],
    reserved: set[int],
    size: int | None,
    min_count: int,
    every_character: bool,
) -> Selection:
    """`special` tokens, characters and `reserved` ones, then the most frequent as far as `size` goes, each with those it is made of.

    Raises `UsageError` where `size` would remove what must stay.
    """
    kind, model = tokenizer.kind, tokenizer.model
    parts = kind.needed(model)
    used = [index for index, count in counts.items() if count >= min_count]
    characters = kind.alphabet(model, None if every_character else tokenizer.characters_of({*counts, *reserved, *special}))
    characters -= special
    reserved = reserved - characters - special
    kept = {each for index in special | characters | reserved for each in (index, *parts(index))}
    if size is not None and size < len(kept):
        fix = f"at least {len(kept)}"
        if every_character:
            fix += ", or keep_characters = false, with which characters that the data do not have become unknown tokens"
        raise UsageError(_too_small(size, len(kept), len(special), len(characters), len(reserved)), where="prune-vocab.size", fix=fix)
    for index in sorted(used, key=lambda index: (-counts[index], index)):
        wanted = {index, *parts(index)} - kept
        if size is None or len(kept) + len(wanted) <= size:
            kept |= wanted
    return Selection(tuple(sorted(kept)), len(special), len(characters), len(reserved), len(used))


def _too_small(size: int, needed: int, special: int, characters: int, reserved: int) -> str:
    if size < special:
        return f"{size} tokens are fewer than the {special} special ones, which cannot go"
    return f"{size} tokens are fewer than the {needed} that must stay: {special} special, {characters} characters, {reserved} reserved, and what they are made of"


def shares(tokenizer: TokenizerFile, encoder: Any, shorter: TokenizerFile, other: Any, samples: Sequence[Sample]) -> dict[str, float]:
    """What becomes of the tokens of these samples: `fell_back`, share of them that the shorter vocabulary does not have;
    `unknown_before` and `unknown`, share of unknown ones; `longer`, tokens after over tokens before, less one."""
    old, names = tokenizer.tokens, set(shorter.tokens.values())
    before, after = count_tokens(encoder, samples), count_tokens(other, samples)
    total, now = before.total() or 1, after.total() or 1
    lost = sum(count for index, count in before.items() if old.get(index) not in names)
    return {
        "fell_back": lost / total,
        "unknown_before": before[tokenizer.unknown] / total if tokenizer.unknown is not None else 0.0,
        "unknown": after[shorter.unknown] / now if shorter.unknown is not None else 0.0,
        "longer": now / total - 1,
    }
