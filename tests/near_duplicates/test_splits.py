"""The overlap rule: near-duplicates and passages in two splits are refused, allowed pairs and other kinds of samples are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.config import Data
from edgepipe.data import Splits
from edgepipe.errors import DataError, UsageError
from edgepipe.near_duplicates import overlap
from edgepipe.toml import parse
from tests.models import sentences, write_csv
from tests.near_duplicates.test_index import WORDS

if TYPE_CHECKING:
    from pathlib import Path

LONG = "the old farmer looks on from his wooden porch while the quick brown fox jumps over the lazy dog again"
NEARLY = LONG.replace("again", "twice")
PAIRS = ("text", "text_pair", "label")


def checked(folder: Path, splits: dict[str, list[tuple[str, ...]]], columns: tuple[str, ...] = ("text", "label"), **config: Any) -> None:
    header = {split: columns if split != "unlabelled" else ("text",) for split in splits}
    files = {split: str(write_csv(folder / f"{split}.csv", rows, header[split])) for split, rows in splits.items()}  # type: ignore[arg-type]
    Splits(Data(**files, **config), columns).check_overlap()


def test_near_duplicate_in_another_split_is_refused_with_both_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train and test data have texts that are nearly the same \(similarity 0\.90\)") as caught:
        checked(tmp_path, {"train": [("else", "no"), (LONG, "yes")], "test": [(NEARLY, "yes")]})

    assert "again" in caught.value.what and "twice" in caught.value.what
    assert caught.value.where == str(tmp_path / "test.csv")
    assert all(
        words in str(caught.value.fix)
        for words in ("data split", "data dedup --against", 'allow_overlap = ["train/test"]', "near_duplicates = 0")
    )


def test_within_a_split_texts_may_be_alike(tmp_path: Path) -> None:
    checked(tmp_path, {"train": [(LONG, "yes"), (NEARLY, "yes")], "test": [("else", "no")]})


@pytest.mark.parametrize("config", [{"allow_overlap": ("test/train",)}, {"near_duplicates": 0}, {"near_duplicates": 0.95}])
def test_near_duplicates_that_are_allowed_pass(tmp_path: Path, config: dict[str, Any]) -> None:
    checked(tmp_path, {"train": [(LONG, "yes")], "test": [(NEARLY, "yes")]}, **config)


def test_pair_that_is_allowed_hides_no_other(tmp_path: Path) -> None:
    splits: dict[str, list[tuple[str, ...]]] = {"train": [(LONG, "yes")], "calibration": [(LONG, "yes")], "test": [(NEARLY, "yes")]}

    with pytest.raises(DataError, match="calibration and test"):
        checked(tmp_path, splits, allow_overlap=("train/calibration", "train/test"))


def test_passage_in_another_split_is_refused(tmp_path: Path) -> None:
    train, test = " ".join(WORDS[:300]), " ".join([*WORDS[330:], *WORDS[50:101]])

    with pytest.raises(DataError, match="train and test data share a passage of 51 words: 'w50 w51"):
        checked(tmp_path, {"train": [(train, "yes")], "test": [(test, "no")]})
    checked(tmp_path, {"train": [(train, "yes")], "test": [(test, "no")]}, shared_passage=0)
    checked(tmp_path, {"train": [(train, "yes")], "test": [(test, "no")]}, shared_passage=52)


def test_pairs_overlap_when_both_their_sides_do(tmp_path: Path) -> None:
    other = "a second text that has nothing to do with the first one"

    checked(tmp_path, {"train": [(LONG, "is it old", "1")], "test": [(LONG, other, "1")]}, PAIRS)
    with pytest.raises(DataError, match="nearly the same"):
        checked(tmp_path, {"train": [(LONG, other, "1")], "test": [(NEARLY, other, "1")]}, PAIRS)


def test_side_of_a_pair_in_the_unlabelled_texts_is_refused(tmp_path: Path) -> None:
    splits: dict[str, list[tuple[str, ...]]] = {"train": [(LONG, "x", "1")], "unlabelled": [(NEARLY,)], "test": [("y", "z", "1")]}

    checked(tmp_path, splits, PAIRS)  # both only train
    with pytest.raises(DataError, match="test and unlabelled"):
        checked(tmp_path, {**splits, "test": [("y", LONG, "1")], "train": [("a", "b", "1")]}, PAIRS)


def test_tokens_are_compared_as_text(tmp_path: Path) -> None:
    tags = " ".join("O" for _ in LONG.split())

    with pytest.raises(DataError, match="nearly the same"):
        checked(tmp_path, {"train": [(LONG, tags)], "test": [(NEARLY, tags)]}, ("tokens", "label"))


def test_arrays_keep_the_exact_rule(tmp_path: Path) -> None:
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=np.full((2, 30), 0.5) + (name == "test") * 1e-6 + np.arange(2)[:, None])

    Splits(Data(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz")), ("label",)).check_overlap()


def test_one_file_is_dealt_with_near_duplicates_together(tmp_path: Path) -> None:
    rows = [(f"{LONG} {number} times {ending}", "yes") for number in range(60) for ending in ("over", "under")]
    splits = Splits(Data(file=str(write_csv(tmp_path / "all.csv", [*rows, *sentences(100)]))), ("text", "label"))

    assert sum(len(splits(split)) for split in ("train", "calibration", "dev", "test")) == 220
    splits.check_overlap()


def test_clean_splits_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: dict[str, list[tuple[str, ...]]] = {"train": [(LONG, "yes")], "test": [("something else", "no")]}
    checked(tmp_path, splits)

    monkeypatch.setattr(overlap, "index_of", None)  # would fail if it were called
    checked(tmp_path, splits)


@pytest.mark.parametrize("setting", [{"near_duplicates": 0.1}, {"near_duplicates": 1.5}, {"shared_passage": 3}, {"shared_passage": -1}])
def test_setting_that_makes_no_sense_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        parse(Data, setting, source="edgepipe.toml")
