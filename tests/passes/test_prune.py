"""prune-heads and prune-ffn: weights are physically gone, the least important ones, and nothing else has changed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.config import Data
from edgepipe.errors import ModelError, PassError
from edgepipe.loader import load_torch
from edgepipe.structure import encoder_layers
from tests.models import write_adapter, write_text_model
from tests.passes.cutting import assert_cut_cleanly, kept_rows, quietened, structure
from tests.passes.running import artifact_of, image_feeds, initializers, outputs, run_done, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact

TEXT_LAYOUTS = [
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "RobertaForSequenceClassification",
    "ElectraForSequenceClassification",
]


@pytest.mark.parametrize("architecture", TEXT_LAYOUTS)
def test_text_layouts_lose_heads_and_then_neurons_and_nothing_else(architecture: str, reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", architecture))

    fewer_heads = run_pass("prune-heads", before, tmp_path, data=reviews, ratio=0.5)
    after = run_pass("prune-ffn", fewer_heads, tmp_path, data=reviews, ratio=0.5)

    assert sum(layer["heads"] for layer in structure(after)) == 4  # of 8
    assert sum(layer["ffn"] for layer in structure(after)) == 64  # of 128
    assert_cut_cleanly(before, after, text_feeds(before, padded=True))


def test_vision_layout_loses_heads_and_then_neurons_and_nothing_else(vit: Path, pictures: Data, tmp_path: Path) -> None:
    before = artifact_of(vit, "image-classification")

    after = run_pass("prune-ffn", run_pass("prune-heads", before, tmp_path, data=pictures, ratio=0.5), tmp_path, data=pictures, ratio=0.5)

    assert sum(layer["heads"] for layer in structure(after)) == 4
    assert_cut_cleanly(before, after, image_feeds())
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), image_feeds()), outputs(after, image_feeds()), atol=1e-5)


def test_sentence_encoder_is_pruned_and_keeps_its_pooling(sentence_encoder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text_pair,label\n" + "".join(f"the film {i},a movie {i},{i % 5}\n" for i in range(8)))
    before = artifact_of(sentence_encoder, "sentence-similarity")

    after, again = (run_pass("prune-heads", before, tmp_path, data=Data(calibration=str(pairs)), ratio=0.5) for _ in range(2))

    assert after.digest == again.digest  # no weight that the checkpoint lacks was drawn at random
    assert_cut_cleanly(before, after, text_feeds(before, padded=True))
    np.testing.assert_allclose(np.linalg.norm(outputs(after, text_feeds(after)), axis=1), 1, atol=1e-5)


def test_pruned_model_in_memory_and_read_back_are_the_same(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(classifier)
    after = run_pass("prune-heads", before, tmp_path, data=reviews, ratio=0.5)
    by_hand = load_torch(before)
    for whole, cut in zip(encoder_layers(by_hand), encoder_layers(load_torch(after)), strict=True):
        whole.keep_heads(sorted({row // whole.head_size for row in kept_rows(whole.attention.query, cut.attention.query)}))

    feeds = text_feeds(after, padded=True)

    np.testing.assert_array_equal(outputs(after, feeds), torch_outputs(by_hand, feeds))


@pytest.mark.parametrize(("name", "options"), [("prune-heads", {"ratio": 0.25}), ("prune-ffn", {"ratio": 0.5, "multiple_of": 8})])
def test_exported_graph_is_smaller_by_exactly_what_was_removed(name: str, options: dict[str, Any], reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(
        write_text_model(tmp_path / "model", "BertForSequenceClassification")
    )  # no two weights alike, which exporters would share

    pruned = run_pass(name, before, tmp_path, data=reviews, **options)
    whole, smaller = (run_pass("export-onnx", artifact, tmp_path) for artifact in (before, pruned))

    def weights(artifact: Artifact) -> int:
        return sum(value.size for value in initializers(artifact).values() if value.dtype == np.float32)

    assert before.model.parameters > pruned.model.parameters
    assert weights(whole) - weights(smaller) == before.model.parameters - pruned.model.parameters


@pytest.mark.parametrize(("name", "part", "units"), [("prune-heads", "heads", 1), ("prune-ffn", "ffn", 16)])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_extreme_ratio_leaves_every_layer_something(
    name: str, part: str, units: int, scope: str, classifier: Path, reviews: Data, tmp_path: Path
) -> None:
    before = artifact_of(classifier)

    after = run_pass(name, before, tmp_path, data=reviews, ratio=0.99, scope=scope)

    assert [layer[part] for layer in structure(after)] == [units, units]
    assert np.isfinite(outputs(run_pass("export-onnx", after, tmp_path), text_feeds(after))).all()


def test_the_only_head_that_matters_is_kept(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    head = 2  # of 4, 8 wide
    silent = [column for column in range(32) if column // 8 != head]
    model = quietened(
        classifier, tmp_path / "model", {f"bert.encoder.layer.{layer}.attention.output.dense.weight": silent for layer in (0, 1)}
    )
    before = artifact_of(model)

    after = run_pass("prune-heads", before, tmp_path, data=reviews, ratio=0.75)

    assert [layer["heads"] for layer in structure(after)] == [1, 1]
    for whole, cut in zip(encoder_layers(load_torch(before)), encoder_layers(load_torch(after)), strict=True):
        assert kept_rows(whole.attention.query, cut.attention.query) == list(range(head * 8, head * 8 + 8))
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(after, feeds), outputs(before, feeds), atol=1e-5)


def test_the_only_neurons_that_matter_are_kept(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    busy = range(20, 36)
    silent = [neuron for neuron in range(64) if neuron not in busy]
    before = artifact_of(
        quietened(classifier, tmp_path / "model", {f"bert.encoder.layer.{layer}.output.dense.weight": silent for layer in (0, 1)})
    )

    after = run_pass("prune-ffn", before, tmp_path, data=reviews, ratio=0.75)

    for whole, cut in zip(encoder_layers(load_torch(before)), encoder_layers(load_torch(after)), strict=True):
        assert kept_rows(whole.ffn_in, cut.ffn_in) == list(busy)


@pytest.mark.parametrize(
    ("name", "part", "reader", "silent", "expected"),
    [
        ("prune-heads", "heads", "attention.output.dense.weight", range(8, 32), [1, 4]),
        ("prune-ffn", "ffn", "output.dense.weight", range(16, 64), [16, 64]),
    ],
)
def test_global_scope_cuts_where_least_is_lost_and_layer_scope_evenly(
    name: str, part: str, reader: str, silent: range, expected: list[int], classifier: Path, reviews: Data, tmp_path: Path
) -> None:
    before = artifact_of(quietened(classifier, tmp_path / "model", {f"bert.encoder.layer.0.{reader}": silent}))

    everywhere, each = (run_pass(name, before, tmp_path, data=reviews, ratio=0.375, scope=scope) for scope in ("global", "layer"))

    assert [layer[part] for layer in structure(everywhere)] == expected
    assert len({layer[part] for layer in structure(each)}) == 1


def test_no_more_is_cut_than_asked_where_many_neurons_never_fire(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(
        quietened(classifier, tmp_path / "model", {f"bert.encoder.layer.{layer}.output.dense.weight": range(60) for layer in (0, 1)})
    )

    after = run_pass("prune-ffn", before, tmp_path, data=reviews, ratio=0.25)

    assert sum(layer["ffn"] for layer in structure(after)) == 96  # of 128, though 120 do nothing


@pytest.mark.parametrize("name", ["prune-heads", "prune-ffn"])
def test_the_same_model_and_data_give_the_same_bytes(name: str, classifier: Path, reviews: Data, tmp_path: Path) -> None:
    first, second = (run_pass(name, artifact_of(classifier), tmp_path, data=reviews, ratio=0.5) for _ in range(2))

    assert first.digest == second.digest


def test_unlabelled_calibration_data_is_enough(classifier: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "".join(f"the film was {word}\n" for word in ("good", "bad", "slow", "sharp")))
    before = artifact_of(classifier, "fidelity")

    after = run_pass("prune-heads", before, tmp_path, data=Data(calibration=str(texts)), ratio=0.5)

    assert_cut_cleanly(before, after, text_feeds(before, padded=True))


def test_merged_adapter_is_pruned_with_it(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    merged = run_pass("merge-lora", artifact_of(classifier, adapters=[write_adapter(classifier, tmp_path / "adapter")]), tmp_path)

    after = run_pass("prune-heads", merged, tmp_path, data=reviews, ratio=0.5)

    assert_cut_cleanly(merged, after, text_feeds(merged, padded=True))


def test_half_precision_checkpoint_is_pruned_in_float32(tmp_path: Path, reviews: Data) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    whole = write_text_model(tmp_path / "whole", "BertForSequenceClassification")
    shutil.copytree(whole, tmp_path / "half")
    AutoModelForSequenceClassification.from_pretrained(whole, dtype=torch.float16).save_pretrained(tmp_path / "half")
    before = artifact_of(tmp_path / "half")

    after = run_pass("prune-ffn", before, tmp_path, data=reviews, ratio=0.5)

    assert {parameter.dtype for parameter in load_torch(after).parameters()} == {torch.float32}
    assert_cut_cleanly(before, after, text_feeds(before, padded=True))


@pytest.mark.parametrize("name", ["prune-heads", "prune-ffn"])
def test_ratio_too_small_to_cut_anything_fails(name: str, classifier: Path, reviews: Data, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="changed nothing") as caught:
        run_pass(name, artifact_of(classifier), tmp_path, data=reviews, ratio=0.01)

    assert caught.value.where == f"pass {name}"


def test_family_of_unknown_layout_is_refused(tmp_path: Path, reviews: Data) -> None:
    with pytest.raises(ModelError, match='"gpt2" cannot be pruned'):
        run_pass("prune-heads", artifact_of(write_text_model(tmp_path / "gpt", "GPT2ForSequenceClassification")), tmp_path, data=reviews)


def test_checks_say_how_much_is_gone(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(classifier)

    done = run_done("prune-heads", before, tmp_path, data=reviews, ratio=0.25)

    removed = {check["name"]: check["value"] for check in done.checks}["smaller"]
    assert removed == before.model.parameters - done.value.model.parameters == 2 * (3 * (8 * 32 + 8) + 8 * 32)
