"""Every kind of tokenizer with fewer tokens: text of kept ones is split as before, and any text still tokenizes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import ModelError, UsageError
from edgepipe.vocabulary import kind_of
from edgepipe.vocabulary.selection import Selection, choose_tokens, tokens_of
from edgepipe.vocabulary.tokenizer_file import TokenizerFile
from tests.vocabulary.models import texts, tokenizer_file

KINDS = ("wordpiece", "bpe", "unigram")
WORDS = sorted({word for text in texts() for word in text.split()})
SOME_TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=30),
)


def chosen(tokenizer: TokenizerFile, counts: Counter[int], **options: Any) -> Selection:
    settings = {"reserved": set(), "size": None, "min_count": 1, "every_character": True, **options}
    return choose_tokens(tokenizer, counts, special=tokenizer.special, **settings)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[TokenizerFile, TokenizerFile, Selection, list[str]]:
    """A tokenizer, the same with some of its tokens, which these are, and texts: of kept tokens, and others."""
    tokenizer = tokenizer_file(draw(st.sampled_from(KINDS)))
    seen, others = draw(st.lists(SOME_TEXT, max_size=4)), draw(st.lists(SOME_TEXT, max_size=4))
    used = [index for text in seen for index in tokenizer.opened().encode(text).ids]
    used += draw(st.lists(st.sampled_from(sorted(tokenizer.tokens)), max_size=40))
    selection = chosen(tokenizer, Counter(used), every_character=draw(st.booleans()))
    return tokenizer, tokenizer.with_tokens(selection.new_ids), selection, seen + others


@given(cuts())
def test_text_of_kept_tokens_is_split_as_before_and_any_text_tokenizes(
    made: tuple[TokenizerFile, TokenizerFile, Selection, list[str]],
) -> None:
    whole, shorter, selection, given_texts = made
    before, after, new_ids = whole.opened(), shorter.opened(), selection.new_ids
    for text in [*given_texts, *texts()[-8:]]:
        old, new = before.encode(text).ids, after.encode(text).ids
        assert all(0 <= index < len(selection.kept) for index in new)
        if all(index in new_ids and index != whole.unknown for index in old):
            assert new == [new_ids[index] for index in old]


@given(st.sampled_from(KINDS), st.data())
def test_no_text_has_more_unknown_tokens_while_characters_stay(kind: str, data: st.DataObject) -> None:
    whole = tokenizer_file(kind)
    used = data.draw(st.lists(st.sampled_from(sorted(whole.tokens)), max_size=40))
    shorter = whole.with_tokens(chosen(whole, Counter(used)).new_ids)
    text = data.draw(SOME_TEXT)

    before, after = Counter(whole.opened().encode(text).ids), Counter(shorter.opened().encode(text).ids)

    assert after[shorter.unknown] <= before[whole.unknown]


@given(cuts())
def test_ids_are_counted_through_in_their_old_order_and_read_back(
    made: tuple[TokenizerFile, TokenizerFile, Selection, list[str]],
) -> None:
    whole, shorter, selection, _ = made

    shorter.check_ids()

    assert [shorter.tokens[new] for new in range(len(selection.kept))] == [whole.tokens[old] for old in selection.kept]
    assert list(selection.kept) == sorted(set(selection.kept))
    assert {whole.tokens[index] for index in whole.special} == {shorter.tokens[index] for index in shorter.special}


@given(SOME_TEXT)
def test_bytes_of_a_cut_byte_level_vocabulary_give_the_text_back(text: str) -> None:
    whole = tokenizer_file("bpe")
    shorter = whole.with_tokens(chosen(whole, Counter(), every_character=False).new_ids).opened()

    assert shorter.decode(shorter.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_most_frequent_tokens_stay_within_the_size(kind: str) -> None:
    whole = tokenizer_file(kind)
    opened = whole.opened()
    counts = Counter(index for text in texts() for index in opened.encode(text).ids)
    least = len(chosen(whole, Counter()).kept)

    selection = chosen(whole, counts, size=least + 12)

    assert len(selection.kept) == least + 12
    gone = max(count for index, count in counts.items() if index not in selection.new_ids)
    always = set(chosen(whole, Counter()).kept)
    if kind != "bpe":  # there a token may stay for another that is made of it
        assert min(counts[index] for index in selection.kept if index not in always) >= gone


def test_tokens_that_are_used_too_rarely_go() -> None:
    whole = tokenizer_file("wordpiece")
    film, movie = whole.model["vocab"]["film"], whole.model["vocab"]["movie"]

    selection = chosen(whole, Counter({film: 5, movie: 2}), min_count=3)

    assert film in selection.kept
    assert movie not in selection.kept


def test_every_merge_that_leads_to_a_kept_token_stays() -> None:
    whole = tokenizer_file("bpe")
    token = max(whole.pieces, key=lambda index: len(whole.pieces[index]))

    shorter = whole.with_tokens(chosen(whole, Counter({token: 1})).new_ids)

    assert shorter.model["merges"]
    assert len(shorter.model["merges"]) < len(whole.model["merges"])
    assert shorter.opened().token_to_id(whole.pieces[token]) is not None
    word = whole.opened().decode([token])
    assert shorter.opened().encode(word, add_special_tokens=False).tokens == [whole.pieces[token]]


def test_merges_written_as_texts_are_read_too() -> None:
    whole = tokenizer_file("bpe")
    older = TokenizerFile(whole.path, json.loads(json.dumps(whole.data)))
    older.model["merges"] = [" ".join(merge) for merge in whole.model["merges"]]
    counts = Counter(list(whole.tokens)[-20:])

    assert chosen(older, counts).kept == chosen(whole, counts).kept
    assert all(isinstance(merge, str) for merge in older.with_tokens(chosen(older, counts).new_ids).model["merges"])


@pytest.mark.parametrize("kind", KINDS)
def test_reserved_words_and_tokens_stay(kind: str) -> None:
    whole = tokenizer_file(kind)
    token = whole.pieces[max(whole.pieces)]

    selection = chosen(whole, Counter(), reserved=tokens_of(whole, ["funny story", token]))

    shorter = whole.with_tokens(selection.new_ids).opened()
    assert shorter.encode("funny story").tokens == whole.opened().encode("funny story").tokens
    assert shorter.token_to_id(token) is not None


def test_only_characters_of_the_data_stay_where_that_is_asked() -> None:
    whole = tokenizer_file("wordpiece")

    selection = chosen(whole, Counter({whole.model["vocab"]["bad"]: 1}), every_character=False)

    names = {whole.tokens[index] for index in selection.kept}
    assert {"bad", "a", "b", "d", "##a", "##b", "##d"} <= names
    assert "q" not in names


@pytest.mark.parametrize("kind", KINDS)
def test_size_that_would_remove_special_tokens_is_refused(kind: str) -> None:
    whole = tokenizer_file(kind)

    with pytest.raises(UsageError, match="special ones, which cannot go"):
        chosen(whole, Counter(), size=len(whole.special) - 1)
    with pytest.raises(UsageError, match="must stay") as caught:
        chosen(whole, Counter(), size=len(whole.special) + 1)

    assert "at least" in str(caught.value)


def test_pieces_that_characters_cannot_spell_stay() -> None:
    whole = tokenizer_file("wordpiece")
    data = json.loads(json.dumps(whole.data))
    data["model"]["vocab"]["##ß"] = data["model"]["vocab"].pop("##z")
    data["model"]["vocab"]["ßß"] = max(whole.tokens) + 1  # "ß" alone is no token
    odd = TokenizerFile(whole.path, data)

    assert "ßß" in {odd.tokens[index] for index in chosen(odd, Counter()).kept}


@pytest.mark.parametrize(
    "model", [{"type": "WordLevel", "vocab": {}}, {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}]
)
def test_tokenizer_of_another_kind_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="cannot be cut"):
        kind_of(model, tokenizer_file("bpe").path)
