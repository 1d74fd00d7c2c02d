"""Tokens to hide: as many as asked, of words only, and what stood there is kept."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.probes import encoder_for
from edgepipe.training.batches import IGNORED, NO_WORD, Batches
from edgepipe.training.masking import chosen, mask_tokens, masked
from tests.models import sentences
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from pathlib import Path

Strategy = Literal["random", "whole-word", "span"]
STRATEGIES: tuple[Strategy, ...] = ("random", "whole-word", "span")
lengths = st.lists(st.integers(1, 4), min_size=1, max_size=30)  # of words, in tokens


@given(lengths, st.sampled_from(STRATEGIES), st.floats(0.01, 0.9), st.integers(0, 1000))
def test_as_many_as_asked_and_words_stay_whole(sizes: list[int], strategy: Strategy, rate: float, seed: int) -> None:
    words = [NO_WORD, *(word for word, size in enumerate(sizes) for _ in range(size)), NO_WORD, NO_WORD]

    groups = chosen(words, strategy, rate, random.Random(seed))

    places = [place for group in groups for place in group]
    wanted = max(1, round(rate * sum(sizes)))
    assert len(places) == len(set(places))
    assert wanted <= len(places) < wanted + max(sizes)
    assert all(words[place] != NO_WORD for place in places)
    if strategy != "random":
        hidden = {words[place] for place in places}
        assert len(places) == sum(size for word, size in enumerate(sizes) if word in hidden)


def test_text_without_words_has_nothing_to_hide() -> None:
    assert chosen([NO_WORD, NO_WORD], "span", 0.5, random.Random(0)) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hidden_tokens_are_targets_and_special_ones_never_are(strategy: Strategy, classifier: Path) -> None:
    artifact = artifact_of(classifier)
    known = mask_tokens(encoder_for(artifact).tokenizer)
    assert known is not None and known.special == {0, 1, 2, 3, 4} and known.mask == 4
    batch = next(Batches(artifact, [{"text": text + " [SEP] qx"} for text, _ in sentences(64)], 64).in_order())
    tokens = batch.inputs["input_ids"]
    assert batch.words is not None

    hidden, targets = masked(tokens, batch.words, known, strategy, 0.3, random.Random(0))

    shown = targets == IGNORED
    assert torch.equal(hidden[shown], tokens[shown])
    assert torch.equal(targets[~shown], tokens[~shown])
    assert not torch.isin(targets[~shown], torch.tensor(sorted(known.special))).any()
    share = float((hidden[~shown] == known.mask).float().mean())
    assert 0.65 < share < 0.95  # 80 %
    assert float((hidden[~shown] == targets[~shown]).float().mean()) < 0.25  # 10 %, and what was replaced by itself


def test_words_of_both_texts_of_a_pair_are_told_apart(classifier: Path) -> None:
    batch = next(Batches(artifact_of(classifier), [{"text": "a qx", "text_pair": "a film"}], 1).in_order())

    # [CLS] a q ##x [SEP] a film [SEP]
    assert batch.words is not None and batch.words.tolist() == [[NO_WORD, 0, 1, 1, NO_WORD, 2, 3, NO_WORD]]
