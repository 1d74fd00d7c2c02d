"""Samples are changed by what is drawn for their batch and by nothing else, and labels go with what they belong to."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.training.augmentation import Augmentation, Setup, make_augmentation
from edgepipe.training.augmentation.crop import Crop
from edgepipe.training.augmentation.cutmix import Cutmix
from edgepipe.training.augmentation.flip import Flip
from edgepipe.training.augmentation.mixup import Mixup
from edgepipe.training.augmentation.rotate import Rotate
from edgepipe.training.augmentation.token_dropout import TokenDropout
from edgepipe.training.augmentation.token_swap import TokenSwap
from edgepipe.training.batches import Batch, Batches
from edgepipe.training.data_efficiency import DataEfficiency
from edgepipe.training.views import Watched
from tests.models import WORDS, sentences, write_vision_model
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from pathlib import Path

tagged = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 3)), min_size=1, max_size=20)


@given(tagged, st.floats(0.01, 0.5), st.integers(0, 1000))
def test_words_that_stay_keep_their_order_and_their_tags(words: list[tuple[str, int]], strength: float, seed: int) -> None:
    sample = {"tokens": [word for word, _ in words], "label": [tag for _, tag in words]}

    changed = TokenDropout(strength).sample(sample, random.Random(seed))

    kept = list(zip(changed["tokens"], changed["label"], strict=True))
    rest = iter(words)
    assert kept and all(word in rest for word in kept)  # a subsequence
    assert sample["tokens"] == [word for word, _ in words]


@given(tagged, st.floats(0.01, 0.5), st.integers(0, 1000))
def test_swapped_words_are_the_same_words_with_their_tags(words: list[tuple[str, int]], strength: float, seed: int) -> None:
    sample = {"tokens": [word for word, _ in words], "label": [tag for _, tag in words]}

    changed = TokenSwap(strength).sample(sample, random.Random(seed))

    assert sorted(zip(changed["tokens"], changed["label"], strict=True)) == sorted(words)


def test_text_without_words_stays() -> None:
    sample = {"text": "", "label": "positive"}

    assert TokenDropout(0.5).sample(sample, random.Random(0)) == sample
    assert TokenSwap(0.5).sample(sample, random.Random(0)) == sample


def test_synonyms_are_neighbours_in_the_teachers_table(classifier: Path) -> None:
    artifact = artifact_of(classifier)
    options = DataEfficiency(augment=("synonyms",), augment_strength=0.5, augment_share=1.0)
    augmentation = make_augmentation(Setup(artifact, None, artifact, options))
    assert augmentation is not None
    sample = {"text": "Good film ?! qqq", "label": "positive"}

    several = {augmentation.sample(sample, random.Random(seed))["text"] for seed in range(40)}

    (synonyms,) = augmentation.changes
    near = {word.capitalize() for word in synonyms._neighbours("Good")}
    assert len(near) == 8 and "Good" not in near
    assert {text.split()[0] for text in several} <= near | {"Good"} and len(several) > 3
    assert all(text.endswith("?! qqq") for text in several)  # what is no single token stays


def images(rows: int = 6, side: int = 8) -> torch.Tensor:
    return torch.rand(rows, 2, side, side, generator=torch.Generator().manual_seed(1))


@given(st.integers(0, 200))
def test_images_keep_their_shape_and_hold_no_new_extremes(seed: int) -> None:
    batch = Batch({"pixel_values": images()}, torch.arange(6))

    for change in (Crop(0.2, 0.5), Flip(0.5), Rotate(0.2, 1.0), Mixup(1.0, 0.2), Cutmix(1.0, 1.0)):
        changed = change.batch(batch, random.Random(seed)).inputs["pixel_values"]  # type: ignore[attr-defined]
        again = change.batch(batch, random.Random(seed)).inputs["pixel_values"]  # type: ignore[attr-defined]
        assert torch.equal(changed, again)
        assert changed.shape == (6, 2, 8, 8)
        assert images().min() - 1e-6 <= changed.min() and changed.max() <= images().max() + 1e-6
    assert torch.equal(batch.inputs["pixel_values"], images())


def test_each_image_moves_by_itself() -> None:
    batch = Batch({"pixel_values": images(1).expand(6, -1, -1, -1)}, None)

    changed = Crop(0.25, 1.0).batch(batch, random.Random(0)).inputs["pixel_values"]

    assert len({row.numpy().tobytes() for row in changed}) > 3


def test_turned_by_nothing_stays_and_by_a_right_angle_is_a_transpose() -> None:
    image = images(1)[0]

    class Fixed(random.Random):
        def uniform(self, *_: Any) -> float:
            return 1.0

    turned = Rotate(1.0, 1.0)._turned(image, Fixed())

    assert torch.allclose(turned, torch.rot90(image, 1, (1, 2)), atol=1e-5) or torch.allclose(
        turned, torch.rot90(image, -1, (1, 2)), atol=1e-5
    )
    assert torch.allclose(Rotate(1e-9, 1.0)._turned(image, random.Random(0)), image, atol=1e-5)


def test_mixed_pixels_and_classes_have_one_share() -> None:
    batch = Batch({"pixel_values": torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8)}, torch.arange(4))

    for change in (Mixup(1.0, 0.5), Cutmix(1.0, 1.0)):
        mixed = change.batch(batch, random.Random(3))  # type: ignore[attr-defined]
        mix = mixed.mix
        means = mixed.inputs["pixel_values"].mean((1, 2, 3))
        assert torch.allclose(means, mix.share * torch.arange(4) + (1 - mix.share) * mix.targets, atol=1e-5)
        assert 0 < float(mix.share[0]) < 1


def test_texts_are_mixed_where_they_are_vectors(classifier: Path) -> None:
    """Mixed with nothing but itself a text stays; the whole of the other one is the other one."""
    samples = [{"text": text, "label": label} for text, label in sentences(8)]
    artifact = artifact_of(classifier)
    from edgepipe.loader import load_torch

    model = Watched(load_torch(artifact), inside=True)
    batch = next(Batches(artifact, samples, 8).in_order())
    mixed = Mixup(1.0, 0.2).batch(batch, random.Random(0))
    assert mixed.mix is not None and mixed.mix.text is not None
    order = [next(i for i, row in enumerate(batch.inputs["input_ids"]) if torch.equal(row, other)) for other in mixed.mix.text.tokens]

    def entering(share: float) -> torch.Tensor:
        from dataclasses import replace

        assert mixed.mix is not None
        with torch.no_grad():
            return model(mixed.inputs, replace(mixed.mix, share=torch.full((8,), share)), mixed.mix.text).hidden[0]

    with torch.no_grad():
        plain = model(batch.inputs).hidden[0]
    shown = batch.inputs["attention_mask"].bool()
    assert torch.allclose(entering(1.0)[shown], plain[shown], atol=1e-5)
    assert torch.allclose(entering(0.0)[shown[order]], plain[order][shown[order]], atol=1e-5)
    assert not torch.allclose(entering(0.5)[shown], plain[shown], atol=1e-2)
    assert mixed.unmixed["attention_mask"] is batch.inputs["attention_mask"]


def test_epochs_are_augmented_from_their_own_seed_and_evaluation_never_is(classifier: Path) -> None:
    samples = [{"text": text, "label": label} for text, label in sentences(24)]
    artifact = artifact_of(classifier)
    batches = Batches(artifact, samples, 8, seed=2, augmentation=Augmentation((TokenDropout(0.5),), 1.0))

    def tokens(found: Any) -> list[list[int]]:
        return [batch.inputs["input_ids"].tolist() for batch in found]

    assert tokens(batches.epoch(1))[2:] == tokens(batches.epoch(1, skip=2))
    assert tokens(batches.epoch(0)) != tokens(batches.epoch(1))
    assert tokens(batches.in_order()) == tokens(Batches(artifact, samples, 8).in_order())


@pytest.mark.parametrize("names", [("crop",), ("flip", "rotate"), ("mixup",), ("cutmix",)])
def test_arrays_of_images_are_augmented_too(names: Any, tmp_path: Path) -> None:
    artifact = artifact_of(write_vision_model(tmp_path / "model", "ResNetForImageClassification"), "image-classification")
    artifact = artifact.with_program(preprocess={"kind": "tensors"})
    rng = np.random.default_rng(0)
    samples = [{"tensors": {"pixel_values": rng.random((1, 3, 32, 32), np.float32)}, "label": "cat"} for _ in range(4)]
    augmentation = make_augmentation(Setup(artifact, None, artifact, DataEfficiency(augment=names, augment_share=1.0)))

    (changed,) = Batches(artifact, samples, 4, augmentation=augmentation).epoch(0)
    (plain,) = Batches(artifact, samples, 4).epoch(0)

    assert not torch.equal(changed.inputs["pixel_values"], plain.inputs["pixel_values"])
