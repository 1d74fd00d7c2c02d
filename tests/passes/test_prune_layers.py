"""prune-layers: whole layers are gone, the right ones, and transformers loads what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, UsageError
from edgepipe.layers import spread
from edgepipe.loader import load_torch
from edgepipe.passes.prune_layers import PruneLayers
from edgepipe.structure import encoder_layers
from tests.models import write_text_model, write_vision_model
from tests.passes.running import artifact_of, image_feeds, outputs, run_done, run_pass, text_feeds, torch_outputs

TEXT = [
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "RobertaForSequenceClassification",
    "ElectraForSequenceClassification",
]
FOUR: dict[str, dict[str, Any]] = {"DistilBertForSequenceClassification": {"n_layers": 4}}


@pytest.fixture(scope="module", params=TEXT)
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of each text family."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    return write_text_model(folder, request.param, **FOUR.get(request.param, {"num_hidden_layers": 4}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("bert") / "model", "BertForSequenceClassification", num_hidden_layers=4)


def without_effect(folder: Path, layer: int) -> Path:
    """The layer writes nothing, so that it only normalises what the one before has normalised already."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for part in ("attention.output", "output"):
        for index in (layer - 1, layer):
            state[f"bert.encoder.layer.{index}.{part}.LayerNorm.weight"].fill_(1)
            state[f"bert.encoder.layer.{index}.{part}.LayerNorm.bias"].zero_()
        state[f"bert.encoder.layer.{layer}.{part}.dense.weight"].zero_()
        state[f"bert.encoder.layer.{layer}.{part}.dense.bias"].zero_()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_named_layers_are_what_a_model_without_the_others_computes(deep: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    before = artifact_of(deep)

    after = run_pass("prune-layers", before, tmp_path, layers=(0, 2))

    by_hand = AutoModelForSequenceClassification.from_pretrained(deep, attn_implementation="eager")
    base = getattr(by_hand, by_hand.base_model_prefix)
    stack = base.transformer if hasattr(base, "transformer") else base.encoder
    stack.layer = torch.nn.ModuleList([stack.layer[0], stack.layer[2]])
    feeds = text_feeds(before, padded=True)
    np.testing.assert_array_equal(outputs(after, feeds), torch_outputs(by_hand, feeds))
    plain = AutoModelForSequenceClassification.from_pretrained(after.model.folder, attn_implementation="eager")
    np.testing.assert_array_equal(torch_outputs(plain, feeds), outputs(after, feeds))
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), feeds), outputs(after, feeds), atol=1e-5)


def test_the_layer_that_turns_nothing_goes_first(tmp_path: Path, reviews: Data) -> None:
    folder = without_effect(write_text_model(tmp_path / "model", "BertForSequenceClassification", num_hidden_layers=4), 2)
    before = artifact_of(folder)

    done = run_done("prune-layers", before, tmp_path, data=reviews, keep=3)

    assert done.figures["layers kept"] == [0, 1, 3]
    assert done.figures["block influence"][2] == pytest.approx(0, abs=1e-4)
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(done.value, feeds), outputs(before, feeds), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"importance": "spread", "keep": 2}, [0, 3]),
        ({"importance": "first", "keep": 3}, [0, 1, 2]),
        ({"importance": "last", "ratio": 0.75}, [3]),
        ({"importance": "first", "ratio": 0.99}, [0]),
        ({"importance": "first"}, [0, 1]),
    ],
)
def test_without_data_layers_stay_by_their_place(options: dict[str, Any], kept: list[int], bert: Path, tmp_path: Path) -> None:
    done = run_done("prune-layers", artifact_of(bert), tmp_path, **options)

    assert done.figures["layers kept"] == kept
    assert len(encoder_layers(load_torch(done.value))) == len(kept)
    assert not (done.value.model.folder / "structure.json").exists()


def test_layers_that_were_pruned_before_keep_their_own_widths(bert: Path, reviews: Data, tmp_path: Path) -> None:
    uneven = run_pass("prune-heads", artifact_of(bert), tmp_path, data=reviews, keep=(1, 2, 3, 4))
    uneven = run_pass("prune-ffn", uneven, tmp_path, data=reviews, keep=(8, 24, 40, 64))

    after = run_pass("prune-layers", uneven, tmp_path, layers=(1, 3))

    assert [(layer.heads, layer.ffn_in.out_features) for layer in encoder_layers(load_torch(after))] == [(2, 24), (4, 64)]


def test_vision_transformer_loses_layers_too(tmp_path: Path, pictures: Data) -> None:
    before = artifact_of(write_vision_model(tmp_path / "vit", "ViTForImageClassification", num_hidden_layers=3), "image-classification")

    after = run_pass("prune-layers", before, tmp_path, data=pictures, keep=2)

    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), image_feeds()), outputs(after, image_feeds()), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 4)}, "there is no layer 4: the model has 4"),
        ({"keep": 4, "importance": "first"}, "none would go"),
        ({"layers": (0, 1, 2, 3)}, "none would go"),
        ({"ratio": 0.01, "importance": "first"}, "none would go"),
    ],
)
def test_layers_that_are_not_there_are_refused(options: dict[str, Any], message: str, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run_pass("prune-layers", artifact_of(bert), tmp_path, **options)


@pytest.mark.parametrize("options", [{"keep": 1, "ratio": 0.5}, {"layers": (2, 1)}, {"layers": (1, 1)}, {"layers": (-1,)}, {"keep": 0}])
def test_options_that_contradict_themselves_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneLayers(**options)


def test_block_influence_without_data_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        run_pass("prune-layers", artifact_of(bert), tmp_path, keep=2)


@given(st.integers(1, 60).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_spread_layers_are_evenly_apart_from_the_first(sizes: tuple[int, int]) -> None:
    layers, count = sizes

    kept = spread(layers, count)

    assert len(set(kept)) == len(kept) == count
    assert kept[0] == 0
    gaps = np.diff(kept)
    assert count == 1 or (kept[-1] == layers - 1 and gaps.max() - gaps.min() <= 1)


def test_spread_is_what_distilbert_took_of_twelve() -> None:
    assert spread(12, 6) == [0, 2, 4, 7, 9, 11]
