"""The device driver: samples become the model's inputs, and a folder becomes answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.resources import resource
from edgepipe.store import Store
from tests.models import WORDS, write_tokenizer

NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TEXT = {"tokenizer": "tokenizer.json", "max_length": 16, "pad_id": 0}
IMAGE = {
    "channels": 3,
    "size": {"height": 8, "width": 6},
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.5],
}
ids = {piece: 5 + index for index, piece in enumerate(WORDS)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def opened(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier, opened as a device would."""
    return driver_module().Driver(str(Store(tmp_path_factory.mktemp("store")).put(onnx_artifact).model.folder.parent))


def text_encoder(assets: Path, names: list[str] = NAMES, **changes: Any) -> Any:
    return driver_module().TextEncoder(str(assets), {**TEXT, **changes}, names)


def feeds(encoder: Any, *samples: dict[str, Any], length: int | None = None) -> dict[str, Any]:
    encoded = encoder.feeds([part for sample in samples for part in encoder.parts(sample)], length)
    assert all(value.dtype == np.int64 for value in encoded.values())
    return {name: value.tolist() for name, value in encoded.items()}


def picture(path: Path, width: int = 20, height: int = 12, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def test_text_becomes_ids_mask_and_types(assets: Path) -> None:
    found = feeds(text_encoder(assets), {"text": "A good film"})

    assert found == {"input_ids": [[2, ids["a"], ids["good"], ids["film"], 3]], "attention_mask": [[1] * 5], "token_type_ids": [[0] * 5]}


def test_second_text_of_a_pair_is_of_type_one(assets: Path) -> None:
    found = feeds(text_encoder(assets), {"text": "good", "text_pair": "bad film"})

    assert found["input_ids"] == [[2, ids["good"], 3, ids["bad"], ids["film"], 3]]
    assert found["token_type_ids"] == [[0, 0, 0, 1, 1, 1]]


def test_only_the_models_own_inputs_are_made(assets: Path) -> None:
    assert list(feeds(text_encoder(assets, ["attention_mask", "input_ids"]), {"text": "good"})) == ["attention_mask", "input_ids"]


def test_batch_is_padded_to_its_longest_text(assets: Path) -> None:
    found = feeds(text_encoder(assets, pad_id=7), {"text": "good"}, {"text": "the good film"})

    assert found["input_ids"][0] == [2, ids["good"], 3, 7, 7]
    assert found["attention_mask"] == [[1, 1, 1, 0, 0], [1] * 5]
    assert found["token_type_ids"][0] == [0] * 5


@pytest.mark.parametrize(("length", "width"), [(10, 10), (2, 3), (None, 3)])
def test_padding_to_a_length_never_cuts(assets: Path, length: int | None, width: int) -> None:
    assert len(feeds(text_encoder(assets), {"text": "good"}, length=length)["input_ids"][0]) == width


@given(st.lists(st.sampled_from(WORDS), max_size=60), st.integers(3, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_no_text_is_longer_than_the_limit(assets: Path, words: list[str], limit: int) -> None:
    found = feeds(text_encoder(assets, max_length=limit), {"text": " ".join(words)})["input_ids"][0]

    assert found == [2, *(ids[word] for word in words[: limit - 2]), 3]


def test_pair_that_is_too_long_keeps_both_texts(assets: Path) -> None:
    found = feeds(text_encoder(assets, max_length=9), {"text": " ".join(["good"] * 20), "text_pair": " ".join(["bad"] * 20)})["input_ids"][
        0
    ]

    assert len(found) == 9
    assert {ids["good"], ids["bad"]} <= set(found)


def test_fixed_length_in_the_tokenizer_file_is_not_obeyed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    whole["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")

    assert len(feeds(text_encoder(tmp_path), {"text": "good"})["input_ids"][0]) == 3


def test_two_texts_of_a_similarity_are_encoded_apart(assets: Path) -> None:
    parts = text_encoder(assets, twin=True).parts({"text": "good film", "text_pair": "bad"})

    assert [part.ids for part in parts] == [[2, ids["good"], ids["film"], 3], [2, ids["bad"], 3]]


def test_words_start_at_their_first_piece(assets: Path) -> None:
    encoder = text_encoder(assets, split_words=True)

    # "xy" is no word of the vocabulary: two pieces
    assert encoder.word_starts({"tokens": ["good", "xy", "film"]}) == [1, 2, 4]


def test_words_that_are_cut_off_have_no_start(assets: Path) -> None:
    assert text_encoder(assets, split_words=True, max_length=4).word_starts({"tokens": ["good", "bad", "film"]}) == [1, 2]


@pytest.mark.parametrize("nothing", ["\u200b", "", " "])
def test_word_without_pieces_does_not_shift_those_behind_it(assets: Path, nothing: str) -> None:
    starts = text_encoder(assets, split_words=True).word_starts({"tokens": ["good", nothing, "film", "plot"]})

    assert (starts[0], *starts[2:]) == (1, 2, 3)


def test_image_is_resized_scaled_and_normalised(tmp_path: Path) -> None:
    Image.new("RGB", (20, 12), (255, 0, 51)).save(tmp_path / "a.png")
    encoder = driver_module().ImageEncoder("", IMAGE, ["pixel_values"])

    pixels = encoder.feeds(encoder.parts({"image": str(tmp_path / "a.png")}))["pixel_values"]

    assert (pixels.shape, pixels.dtype) == ((1, 3, 8, 6), np.float32)
    np.testing.assert_allclose(pixels[0, :, 0, 0], [(1 - 0.5) / 0.2, (0 - 0.4) / 0.3, (0.2 - 0.3) / 0.5], rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_image_of_any_mode_has_the_models_channels(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)

    for channels in (1, 3):
        encoder = driver_module().ImageEncoder("", {"channels": channels, "size": {"height": 4, "width": 4}}, ["pixel_values"])
        assert encoder.feeds(encoder.parts({"image": str(path)}))["pixel_values"].shape == (1, channels, 4, 4)


@pytest.mark.parametrize("size", [(20, 13), (13, 20), (9, 9), (5, 31)])
def test_images_become_what_transformers_makes_of_them(tmp_path: Path, size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    path = picture(tmp_path / "a.png", *size)
    processor = CLIPImageProcessor(size={"shortest_edge": 7}, crop_size={"height": 8, "width": 6}, do_convert_rgb=True)
    config = {key: value for key, value in processor.to_dict().items() if key.startswith(("do_", "size", "crop", "image_", "res"))}
    encoder = driver_module().ImageEncoder("", {**config, "channels": 3}, ["pixel_values"])

    found = encoder.feeds(encoder.parts({"image": str(path)}))["pixel_values"]

    np.testing.assert_allclose(found, processor(Image.open(path), return_tensors="np")["pixel_values"], atol=1e-6)


def test_tensors_pass_as_they_are() -> None:
    encoder = driver_module().TensorEncoder("", {}, ["x"])
    arrays = [np.full((1, 3), index, np.float16) for index in range(2)]

    one, both = (
        encoder.feeds([encoder.parts({"tensors": {"x": array, "unused": array}})[0] for array in arrays[:count]]) for count in (1, 2)
    )

    assert list(one) == ["x"]
    assert one["x"] is arrays[0]
    np.testing.assert_array_equal(both["x"], np.concatenate(arrays))


def test_driver_gives_the_same_alone_and_in_a_batch(opened: Any) -> None:
    samples = [{"text": "good"}, {"text": "a very bad film"}]

    alone = [opened.predict(sample)[0]["logits"] for sample in samples]
    together = opened.run(opened.encode_batch(samples, 12))["logits"]

    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_answer_is_a_label_with_its_probability(opened: Any) -> None:
    answer = opened.answer({"text": "a good film"})

    logits = opened.predict({"text": "a good film"})[0]["logits"][0]
    assert answer["label"] == ["negative", "positive"][int(logits.argmax())]
    assert answer["score"] == pytest.approx(float(np.exp(logits.max()) / np.exp(logits).sum()), rel=1e-5)


def test_optimised_and_plain_sessions_agree(onnx_artifact: Artifact, store: Store) -> None:
    folder = str(store.put(onnx_artifact).model.folder.parent)

    fast, plain = (driver_module().Driver(folder, optimise=optimise).predict({"text": "good"})[0]["logits"] for optimise in (True, False))

    np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_unknown_kind_of_program_is_refused(onnx_artifact: Artifact, store: Store) -> None:
    folder = store.put(onnx_artifact.with_program(kind="cascade")).model.folder.parent

    with pytest.raises(ValueError, match="not cascade"):
        driver_module().Driver(str(folder))


def test_driver_needs_nothing_of_edgepipe() -> None:
    code = f"import sys; sys.path.insert(0, {str(resource('devices'))!r}); import driver, agent; print([m for m in sys.modules if m.split('.')[0] == 'edgepipe'])"

    assert subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
