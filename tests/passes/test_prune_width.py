"""prune-width: the same hidden dimensions are gone everywhere, the least important ones, and nothing else has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, ModelError, UsageError
from edgepipe.loader import load_torch
from edgepipe.passes.prune_width import PruneWidth
from edgepipe.structure import encoder_layers
from edgepipe.width import hidden_axes
from tests.models import bert_config, write_model, write_text_model, write_tokenizer
from tests.passes.running import artifact_of, image_feeds, outputs, run_done, run_pass, text_feeds

FAMILIES: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {},
    "DistilBertForSequenceClassification": {},
    "RobertaForSequenceClassification": {},
    "ElectraForSequenceClassification": {"embedding_size": 16},
}


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("importance", ["activation", "taylor", "magnitude"])
def test_every_reader_and_writer_loses_the_same_dimensions(architecture: str, importance: str, reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", architecture, **FAMILIES[architecture]))

    after = run_pass("prune-width", before, tmp_path, data=reviews, importance=importance, width=24)

    whole, cut = load_torch(before), load_torch(after)
    axes = hidden_axes(whole)
    assert hidden_axes(cut) == axes
    kept = kept_dimensions(whole, cut, axes)
    assert len(kept) == 24
    for name, parameter in whole.named_parameters():
        expected = parameter.index_select(axes[name], kept) if name in axes else parameter
        np.testing.assert_array_equal(cut.get_parameter(name).detach().numpy(), expected.detach().numpy(), err_msg=name)
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), feeds), outputs(after, feeds), atol=1e-5)


def kept_dimensions(whole: Any, cut: Any, axes: dict[str, int]) -> Any:
    """Found by the first writer's rows, no two of which are alike."""
    import torch

    name = next(name for name, axis in axes.items() if (axis == 0 and name.endswith("dense.weight")) or name.endswith("out_lin.weight"))
    rows, left = whole.get_parameter(name), cut.get_parameter(name)
    return torch.tensor([int((rows == row).all(1).nonzero()) for row in left])


def test_vision_transformer_is_cut_with_its_patches_and_positions(vit: Path, pictures: Data, tmp_path: Path) -> None:
    before = artifact_of(vit, "image-classification")

    after = run_pass("prune-width", before, tmp_path, data=pictures, ratio=0.5)

    shapes = {name: tuple(parameter.shape) for name, parameter in load_torch(after).named_parameters()}
    assert shapes["vit.embeddings.cls_token"] == (1, 1, 16)
    assert shapes["vit.embeddings.patch_embeddings.projection.weight"] == (16, 3, 8, 8)
    assert shapes["classifier.weight"] == (3, 16)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), image_feeds()), outputs(after, image_feeds()), atol=1e-5)


def test_sentence_embedding_is_as_wide_as_what_stays(sentence_encoder: Path, tmp_path: Path) -> None:
    after = run_pass("prune-width", artifact_of(sentence_encoder, "sentence-similarity"), tmp_path, importance="magnitude", width=20)

    exported = run_pass("export-onnx", after, tmp_path)
    assert after.model.signature["outputs"][0]["shape"] == exported.model.signature["outputs"][0]["shape"] == ["batch", 20]
    embedding = outputs(exported, text_feeds(after))
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("importance", ["activation", "taylor", "magnitude"])
def test_dimensions_that_carry_nothing_go_first(importance: str, tmp_path: Path, reviews: Data) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_text_model(tmp_path / "model", "BertForSequenceClassification")
    axes = hidden_axes(load_torch(artifact_of(folder)))
    state = load_file(folder / "model.safetensors")
    empty = [1, 6, 7, 12, 17, 20, 28, 31]
    for name, axis in axes.items():
        state[name].transpose(0, axis)[empty] = 0
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    before = artifact_of(folder)

    after = run_pass("prune-width", before, tmp_path, data=reviews, importance=importance, width=24)

    kept = kept_dimensions(load_torch(before), load_torch(after), axes)
    assert sorted(set(range(32)) - set(kept.tolist())) == empty


@pytest.mark.parametrize(("ratio", "multiple", "width"), [(0.5, 16, 16), (0.3, 8, 24), (0.99, 16, 16), (0.4, 1, 19)])
def test_widths_land_on_multiples(ratio: float, multiple: int, width: int, classifier: Path, tmp_path: Path) -> None:
    done = run_done("prune-width", artifact_of(classifier), tmp_path, importance="magnitude", ratio=ratio, multiple_of=multiple)

    assert done.figures["hidden width"] == width


def test_heads_neurons_width_and_layers_go_one_after_the_other(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    model = run_pass("prune-heads", artifact_of(classifier), tmp_path, data=reviews, keep=(1, 3))
    model = run_pass("prune-width", model, tmp_path, data=reviews, width=24)
    model = run_pass("prune-ffn", model, tmp_path, importance="magnitude", keep=(48, 16))
    model = run_pass("factorize", model, tmp_path, rank=4, embedding=8)
    model = run_pass("prune-layers", model, tmp_path, layers=(1,))

    (layer,) = encoder_layers(load_torch(model))

    assert (layer.heads, layer.ffn_out[1].out_features, layer.ffn_out[0].in_features) == (3, 24, 16)
    feeds = text_feeds(model, padded=True)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", model, tmp_path), feeds), outputs(model, feeds), atol=1e-5)


def test_factorized_model_is_refused(classifier: Path, tmp_path: Path) -> None:
    factorized = run_pass("factorize", artifact_of(classifier), tmp_path, rank=4)

    with pytest.raises(ModelError, match="products of thin ones"):
        run_pass("prune-width", factorized, tmp_path, importance="magnitude")


def test_model_with_tied_tables_is_refused(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    folder = write_model(tmp_path / "mlm", BertForMaskedLM(bert_config()))
    write_tokenizer(folder)

    with pytest.raises(ModelError, match="BertForMaskedLM reads the hidden states"):
        run_pass("prune-width", artifact_of(folder, "fidelity"), tmp_path, importance="magnitude")


@pytest.mark.parametrize("options", [{"width": 32}, {"width": 99}, {"ratio": 0.1, "multiple_of": 16}])
def test_widths_that_cut_nothing_are_refused(options: dict[str, Any], classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing would go"):
        run_pass("prune-width", artifact_of(classifier), tmp_path, importance="magnitude", **options)


def test_options_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValidationError):
        PruneWidth(ratio=0.5, width=16)


def test_activations_without_data_are_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        run_pass("prune-width", artifact_of(classifier), tmp_path, width=16)
