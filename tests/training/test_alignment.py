"""Positions of two tokenizers belong together where tokens begin at the same character; fillers never count."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgepipe.training.alignment import align

LETTERS = "abcd"


def tokenizer(words: list[str]) -> Tokenizer:
    pieces = ["[UNK]", "[CLS]", "[SEP]", *words, *(mark + letter for letter in LETTERS for mark in ("", "##"))]
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=4), st.sets(st.text(LETTERS, min_size=2, max_size=4), max_size=5))
def test_aligned_positions_begin_at_the_same_character(texts: list[list[str]], known: set[str]) -> None:
    ours, theirs = tokenizer([]), tokenizer(sorted(known))
    a, b = [ours.encode(" ".join(text)) for text in texts], [theirs.encode(" ".join(text)) for text in texts]

    found = align(a, b)

    assert found is not None
    for row, (mine, other) in enumerate(zip(a, b, strict=True)):
        pairs = [(int(i), int(j)) for i, j, shown in zip(found.ours[row], found.theirs[row], found.shown[row], strict=True) if shown]
        assert pairs[0] == (0, 0) and pairs[-1] == (len(mine.ids) - 1, len(other.ids) - 1)  # special tokens
        assert all(mine.offsets[i][0] == other.offsets[j][0] for i, j in pairs[1:-1])
        assert len(pairs) == len(other.ids)  # whoever splits further has every beginning of the other
        assert bool(found.whole[row]) == (mine.tokens == other.tokens)


def test_same_tokenizer_aligns_everything_and_gathers_what_it_is_given() -> None:
    one = tokenizer(["ab"])
    encoded = [one.encode("ab c"), one.encode("a")]
    values = torch.arange(2 * 4 * 3.0).view(2, 4, 3)

    found = align(encoded, encoded)

    assert found is not None and found.share == 1 and found.whole.all()
    ours, theirs = found.gathered(values, values)
    assert torch.equal(ours[found.shown], values[found.shown]) and torch.equal(ours, theirs)


def test_texts_of_a_pair_are_told_apart() -> None:
    ours, theirs = tokenizer([]), tokenizer(["ab"])

    found = align([ours.encode("ab", "a b")], [theirs.encode("ab", "a b")])

    assert found is not None
    assert found.ours[0].tolist() == [0, 1, 3, 4, 5, 6] and found.theirs[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert not found.whole[0]


def test_images_have_no_tokens_to_align() -> None:
    assert align([torch.zeros(3)], [torch.zeros(3)]) is None
