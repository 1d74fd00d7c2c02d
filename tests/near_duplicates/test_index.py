"""The index: copies are always found, alike texts nearly always, and what it says of them is exact."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import InputError
from edgepipe.near_duplicates.index import index_of, load_index
from edgepipe.near_duplicates.signatures import FOUND, bands_for, chance
from edgepipe.near_duplicates.windows import words_of
from tests.near_duplicates.test_windows import exact

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [f"w{number}" for number in range(400)]
TEXTS = st.lists(st.text("abc !", max_size=8), min_size=1, max_size=20)


def made_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(8, 40))) for _ in range(count)]


def edited(text: str, rng: random.Random) -> str:
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_copy_is_always_found(texts: list[str], threshold: float) -> None:
    index = index_of(texts, threshold)

    for row, text in enumerate(texts):
        if words_of(text):
            assert (row, 1.0) in index.nearest(text, len(texts))
        else:
            assert index.nearest(text) == []


@given(TEXTS, st.text("abc !", max_size=8))
def test_similarity_told_is_exact_and_best_comes_first(texts: list[str], query: str) -> None:
    found = index_of(texts, 0.5).nearest(query, 5)

    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert all(value == pytest.approx(exact(query, texts[row], 2)) for row, value in found)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_texts_above_the_threshold_are_found(threshold: float) -> None:
    texts, rng = made_texts(1000), random.Random(1)
    index = index_of(texts, threshold)

    asked = [(row, edited(text, rng)) for row, text in enumerate(texts)]
    alike = [(row, text) for row, text in asked if exact(text, texts[row], 2) >= threshold]
    found = [row in dict(index.nearest(text)) for row, text in alike]

    assert len(alike) > 300
    assert sum(found) / len(found) >= 0.98


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_keep_what_they_promise(threshold: float) -> None:
    bands = bands_for(threshold)

    assert chance(threshold, bands) >= FOUND
    assert bands.rows * bands.count <= 128


def test_index_on_disk_answers_as_in_memory(tmp_path: Path) -> None:
    texts = [*made_texts(200), "", "same words", "Same words!"]
    index = index_of(texts, 0.5)
    index.save(tmp_path, {"about": "texts"})

    loaded, about = load_index(tmp_path)

    assert about["about"] == "texts"
    assert all(loaded.nearest(text) == index.nearest(text) for text in texts[::10])
    assert loaded.nearest("SAME words") == [(201, 1.0), (202, 1.0)]


def test_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index"):
        load_index(tmp_path)
    index_of(["a b"], 0.5).save(tmp_path, {})
    (tmp_path / "keys.npy").write_bytes(b"cut off")
    with pytest.raises(InputError, match="no index"):
        load_index(tmp_path)
    index_of(["a b"], 0.5).save(tmp_path, {"versions": "others"})
    with pytest.raises(InputError, match="another version"):
        load_index(tmp_path)
