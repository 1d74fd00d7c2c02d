"""Inputs to compare models on: real samples of unlike length, or generated ones that fit the signature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepipe.artifact import Artifact
from edgepipe.probes import fixed_feeds, generated, image_shape, probe_feeds
from tests.models import sentences

SAMPLES = [{"text": text} for text, _ in sentences(30)]


def shapes(feeds: list[Any]) -> list[tuple[int, ...]]:
    return [next(iter(one.values())).shape for one in feeds]


def image(artifact: Artifact, **preprocess: Any) -> Artifact:
    """The artifact as if it took images."""
    return artifact.with_program(preprocess={"kind": "image", **preprocess})


def test_samples_come_one_by_one_then_all_together_padded(onnx_artifact: Artifact) -> None:
    feeds = probe_feeds(onnx_artifact, SAMPLES)

    widths = [shape[1] for shape in shapes(feeds)]
    assert [shape[0] for shape in shapes(feeds)] == [1, 1, 1, 1, 4]
    assert len(set(widths[:-1])) > 1
    assert widths[-1] == max(widths)
    assert (feeds[-1]["attention_mask"] == 0).any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_are_all_used(onnx_artifact: Artifact, count: int) -> None:
    assert [shape[0] for shape in shapes(probe_feeds(onnx_artifact, SAMPLES[:count]))] == [1] * count + [count]


def test_without_samples_several_shapes_are_generated(onnx_artifact: Artifact) -> None:
    feeds = probe_feeds(onnx_artifact, [])

    assert shapes(feeds) == [(1, 8), (1, 33), (3, 16)]
    assert all((one["attention_mask"] == 1).all() and one["input_ids"].max() < 128 for one in feeds)


def test_generated_text_is_no_longer_than_the_model_takes(onnx_artifact: Artifact) -> None:
    short = onnx_artifact.with_program(preprocess={**onnx_artifact.program["preprocess"], "max_length": 10})

    assert max(shape[1] for shape in shapes(generated(short))) == 10


def test_generated_inputs_are_the_same_each_time(onnx_artifact: Artifact) -> None:
    for one, other in zip(generated(onnx_artifact), generated(onnx_artifact), strict=True):
        np.testing.assert_array_equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(("length", "width"), [(16, 16), (128, 64)])
def test_fixed_text_has_the_asked_length_or_the_models_limit(onnx_artifact: Artifact, length: int, width: int) -> None:
    feeds = fixed_feeds(onnx_artifact, 8, length)

    assert {value.shape for value in feeds.values()} == {(8, width)}
    assert feeds["attention_mask"].min() == 1


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"size": {"height": 8, "width": 6}}, (2, 3, 8, 6)),
        ({"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": {"height": 7, "width": 5}}, (2, 3, 7, 5)),
        ({"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 7}, (2, 3, 7, 7)),
        ({"size": {"shortest_edge": 8}, "channels": 1}, (2, 1, 8, 8)),
        ({}, (2, 3, 224, 224)),
    ],
)
def test_images_have_the_size_the_preprocessor_makes(onnx_artifact: Artifact, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert image_shape(image(onnx_artifact, **settings), 2) == shape
    assert next(iter(fixed_feeds(image(onnx_artifact, **settings), 2, 0).values())).shape == shape
