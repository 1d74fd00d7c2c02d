"""Samples become batches: every one once, like lengths together, classes at their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepipe.readers import Sample
from edgepipe.training.batches import IGNORED, Batches
from tests.models import sentences, write_sentence_encoder, write_text_model, write_vision_model
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from pathlib import Path


def texts(count: int) -> list[Sample]:
    return [{"text": text, "label": label} for text, label in sentences(count)]


def rows(batches: list[object]) -> list[tuple[int, ...]]:
    return sorted(tuple(int(token) for token in row if token) for batch in batches for row in batch.inputs["input_ids"])  # type: ignore[attr-defined]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(classifier: Path) -> None:
    batches = Batches(artifact_of(classifier), texts(50), 8, seed=3)

    first, second, ordered = list(batches.epoch(0)), list(batches.epoch(1)), list(batches.in_order())

    assert len(first) == len(batches) == 7
    assert rows(first) == rows(second) == rows(ordered)
    assert any(not torch.equal(a.inputs["input_ids"], b.inputs["input_ids"]) for a, b in zip(first, second, strict=True))
    assert all(
        torch.equal(a.inputs["input_ids"], b.inputs["input_ids"])
        for a, b in zip(first, Batches(artifact_of(classifier), texts(50), 8, seed=3).epoch(0), strict=True)
    )


def test_like_lengths_share_a_batch(classifier: Path) -> None:
    samples = [{"text": "film " * count} for count in (1, 20) * 8]

    for batch in Batches(artifact_of(classifier), samples, 4).epoch(0):
        assert (batch.inputs["attention_mask"] == 1).all()


def test_classes_are_numbers_in_the_models_order(classifier: Path) -> None:
    samples = [{"text": "a film", "label": "positive"}, {"text": "a bad dull film", "label": "0"}]

    (batch,) = Batches(artifact_of(classifier), samples, 4).in_order()

    assert batch.targets is not None and batch.targets.tolist() == [1, 0]


def test_tags_stand_at_the_first_piece_of_each_word_and_nowhere_else(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model", "BertForTokenClassification", num_labels=3, id2label={0: "O", 1: "B-X", 2: "I-X"},
                             label2id={"O": 0, "B-X": 1, "I-X": 2})  # fmt: skip
    samples = [{"tokens": ["the", "qx", "film"], "label": ["O", "B-X", "I-X"]}, {"tokens": ["film"], "label": ["B-X"]}]

    (batch,) = Batches(artifact_of(model, "token-classification"), samples, 4).in_order()

    assert batch.targets is not None
    # [CLS] film [SEP] and padding; [CLS] the q ##x film [SEP]
    assert batch.targets.tolist() == [[IGNORED, 1, *[IGNORED] * 4], [IGNORED, 0, 1, IGNORED, 2, IGNORED]]


def test_pairs_to_compare_are_two_rows_and_have_no_classes(tmp_path: Path) -> None:
    artifact = artifact_of(write_sentence_encoder(tmp_path / "model"), "sentence-similarity")

    (batch,) = Batches(artifact, [{"text": "a film", "text_pair": "a movie", "label": 3.5}], 4).in_order()

    assert batch.inputs["input_ids"].shape[0] == 2
    assert batch.targets is None


def test_arrays_share_a_batch_where_they_have_one_shape(tmp_path: Path) -> None:
    artifact = artifact_of(write_vision_model(tmp_path / "model", "ResNetForImageClassification"), "image-classification")
    artifact = artifact.with_program(preprocess={"kind": "tensors"})

    def shapes(*sizes: int) -> list[tuple[int, ...]]:
        samples = [{"tensors": {"pixel_values": np.zeros((1, 3, size, size), np.float32)}} for size in sizes]
        return [tuple(batch.inputs["pixel_values"].shape) for batch in Batches(artifact, samples, 4).in_order()]

    assert shapes(32, 32, 32) == [(3, 3, 32, 32)]
    assert shapes(32, 48) == [(1, 3, 32, 32), (1, 3, 48, 48)]
