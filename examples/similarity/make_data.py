"""Texts to train on, and a fourth set to judge by: the sentiment example's texts and the words of the model's own vocabulary.

A sentence encoder that is cut learns from the uncompressed one, so no text needs a score. Run after both `fetch.py`s.
"""

from __future__ import annotations

import csv
import json
import random
import sys

from fetch import SEED, home, write

SENTIMENT = home().parent / "sentiment"
PAIRS = 3000  # of the fourth set


def texts(name: str) -> list[str]:
    with (SENTIMENT / name).open(encoding="utf-8", newline="") as handle:
        return [row["text"] for row in csv.DictReader(handle)]


def words() -> list[str]:
    """Whole words of the tokenizer: what stands alone in a set of word pairs is to be known alone."""
    vocabulary = json.loads((home() / "base" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return [word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2]


def paired(found: list[str], seed: int) -> list[tuple[str, str, str]]:
    """Neighbours in a random order. Scores are unknown; a row must have one, and they must differ."""
    found = list(dict.fromkeys(found))
    random.Random(seed).shuffle(found)
    return [(a, b, f"{index % 2}") for index, (a, b) in enumerate(zip(found[::2], found[1::2], strict=False))]


def main() -> None:
    if not (SENTIMENT / "unlabelled.csv").is_file():
        sys.exit(f"{SENTIMENT / 'unlabelled.csv'} is missing: run ../sentiment/fetch.py first")
    write(paired([*texts("train.csv"), *texts("unlabelled.csv")], SEED) + paired(words(), SEED + 1), home() / "train.csv")
    with (home() / "calibration.csv").open(encoding="utf-8", newline="") as handle:
        news = [(row["text"], row["text_pair"], row["label"]) for row in csv.DictReader(handle)]
    write(news + paired(texts("calibration.csv"), SEED + 4), home() / "calibration_mixed.csv")
    write(paired(texts("dev.csv"), SEED + 2), home() / "texts_dev.csv")
    write(paired(texts("test.csv"), SEED + 3)[:PAIRS], home() / "texts_test.csv")


if __name__ == "__main__":
    main()
