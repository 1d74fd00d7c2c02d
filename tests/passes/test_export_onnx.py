"""export-onnx: the graph computes what PyTorch computes, at shapes it was not traced with, for every kind of model taken."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.errors import ModelError, PassError
from edgepipe.loader import load_torch
from tests.models import write_sentence_encoder, write_text_model, write_vision_model
from tests.passes.running import artifact_of, image_feeds, initializers, outputs, run_done, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact

ROUTES = ["optimum", "torch"]
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {},
    "BertForTokenClassification": {},
    "DistilBertForSequenceClassification": {},
    "DistilBertForTokenClassification": {},
    "RobertaForSequenceClassification": {"type_vocab_size": 1},
    "ElectraForSequenceClassification": {"embedding_size": 16},
    "AlbertForSequenceClassification": {"embedding_size": 16},
    "MPNetForSequenceClassification": {},
    "DebertaV2ForSequenceClassification": {},
    "ModernBertForSequenceClassification": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}


def task_of(architecture: str) -> str:
    return "token-classification" if "Token" in architecture else "text-classification"


def loaded(folder: Path, architecture: str) -> Any:
    """The model as transformers itself reads it."""
    import transformers

    return getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager")


def free_dimensions(artifact: Artifact) -> dict[str, list[int]]:
    """Which dimensions of each input and output carry a name instead of a number."""
    entries = [*artifact.model.signature["inputs"], *artifact.model.signature["outputs"]]
    return {entry["name"]: [axis for axis, size in enumerate(entry["shape"]) if isinstance(size, str)] for entry in entries}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("architecture", TEXT_MODELS)
def test_text_model_equals_pytorch_at_every_shape(architecture: str, route: str, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", architecture, **TEXT_MODELS[architecture])

    exported = run_pass("export-onnx", artifact_of(folder, task_of(architecture)), tmp_path, route=route)

    reference = loaded(folder, architecture)
    for batch, length, padded in [(1, 1, False), (1, 33, False), (2, 60, False), (5, 12, True)]:
        feeds = text_feeds(exported, batch, length, padded=padded)
        np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(reference, feeds), atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_batch_and_sequence_are_free_and_the_rest_is_stated(route: str, classifier: Path, tmp_path: Path) -> None:
    exported = run_pass("export-onnx", artifact_of(classifier), tmp_path, route=route)

    assert free_dimensions(exported) == {"input_ids": [0, 1], "attention_mask": [0, 1], "token_type_ids": [0, 1], "logits": [0]}
    assert exported.model.signature["outputs"][0]["shape"][1] == 2


@pytest.mark.parametrize("route", ROUTES)
def test_outputs_per_token_keep_a_free_sequence(route: str, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "BertForTokenClassification")

    exported = run_pass("export-onnx", artifact_of(folder, "token-classification"), tmp_path, route=route)

    assert free_dimensions(exported)["logits"] == [0, 1]


def test_route_is_found_for_a_roberta_that_knows_two_token_types(tmp_path: Path) -> None:
    folder = write_text_model(
        tmp_path / "model", "RobertaForSequenceClassification", type_vocab_size=2
    )  # optimum exports no token_type_ids for it

    exported = run_pass("export-onnx", artifact_of(folder), tmp_path)

    feeds = text_feeds(exported, 3, 9)
    feeds["token_type_ids"][:, 5:] = 1
    np.testing.assert_allclose(
        outputs(exported, feeds), torch_outputs(loaded(folder, "RobertaForSequenceClassification"), feeds), atol=1e-5
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("opset", [14, 18])
def test_opset_is_the_one_asked_for(opset: int, route: str, classifier: Path, tmp_path: Path) -> None:
    import onnx

    exported = run_pass("export-onnx", artifact_of(classifier), tmp_path, opset=opset, route=route)

    assert [entry.version for entry in onnx.load(exported.model.main_file).opset_import if entry.domain == ""] == [opset]
    feeds = text_feeds(exported, padded=True)
    np.testing.assert_allclose(
        outputs(exported, feeds), torch_outputs(loaded(classifier, "BertForSequenceClassification"), feeds), atol=1e-5
    )


def test_model_with_few_positions_is_checked_within_them(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "BertForSequenceClassification", max_position_embeddings=20)

    exported = run_pass("export-onnx", artifact_of(folder), tmp_path)

    feeds = text_feeds(exported, 2, 20)
    np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(loaded(folder, "BertForSequenceClassification"), feeds), atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "ResNetForImageClassification"])
def test_image_model_equals_pytorch_at_every_batch(architecture: str, route: str, tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "model", architecture)

    exported = run_pass("export-onnx", artifact_of(folder, "image-classification"), tmp_path, route=route)

    for batch in (1, 4):
        np.testing.assert_allclose(
            outputs(exported, image_feeds(batch)), torch_outputs(loaded(folder, architecture), image_feeds(batch)), atol=1e-5
        )


def pooled(folder: Path, feeds: dict[str, np.ndarray], pooling: str, *, normalize: bool) -> np.ndarray:
    """What sentence-transformers computes, by hand from the encoder's token embeddings."""
    tokens = torch_outputs(loaded(folder, "BertModel"), feeds)
    mask = feeds["attention_mask"][..., None].astype(bool)
    means = np.where(mask, tokens, 0).sum(1) / mask.sum(1)
    vectors = {"mean": means, "cls": tokens[:, 0], "max": np.where(mask, tokens, -np.inf).max(1)}[pooling]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("mean", False), ("cls", True), ("max", False)])
@pytest.mark.parametrize("task", ["sentence-similarity", "fidelity"])
def test_sentence_encoder_pools_as_its_folder_says(pooling: str, normalize: bool, task: str, tmp_path: Path) -> None:
    folder = write_sentence_encoder(tmp_path / "model", pooling=pooling, normalize=normalize)

    exported = run_pass("export-onnx", artifact_of(folder, task), tmp_path)

    output = exported.model.signature["outputs"][0]
    assert [type(size) for size in output["shape"]] == [str, int]
    for feeds in (text_feeds(exported, 1, 5), text_feeds(exported, 4, 20, padded=True)):
        np.testing.assert_allclose(outputs(exported, feeds), pooled(folder, feeds, pooling, normalize=normalize), atol=1e-5)


def test_plain_encoder_is_mean_pooled_for_sentence_similarity(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "BertModel")

    exported = run_pass("export-onnx", artifact_of(folder, "sentence-similarity"), tmp_path)

    feeds = text_feeds(exported, 3, 11, padded=True)
    np.testing.assert_allclose(outputs(exported, feeds), pooled(folder, feeds, "mean", normalize=True), atol=1e-5)


def test_masked_language_model_is_exported_for_fidelity(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "BertForMaskedLM")

    exported = run_pass("export-onnx", artifact_of(folder, "fidelity"), tmp_path)

    feeds = text_feeds(exported, 2, 7)
    np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(loaded(folder, "BertForMaskedLM"), feeds), atol=1e-5)


FACTORY = """
import torch

class BagOfWords(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.words = torch.nn.Embedding(config["vocab_size"], config["width"])
        self.head = torch.nn.Linear(config["width"], 2)

    def forward(self, tokens, present):  # names of its own: inputs come in the usual order
        mask = present.unsqueeze(-1).float()
        return self.head((torch.tanh(self.words(tokens)) * mask).sum(1) / mask.sum(1))

def make_model(config):
    return BagOfWords(config)
"""


def test_architecture_of_the_users_own_is_built_by_its_factory(classifier: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "own"
    folder.mkdir()
    rng = np.random.default_rng(0)
    words, head, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((128, 16), (2, 16), (2,)))
    save_file({"words.weight": words, "head.weight": head, "head.bias": bias}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 128, "width": 16}))
    shutil.copy(classifier / "tokenizer.json", folder)
    (tmp_path / "build.py").write_text(FACTORY)
    artifact = artifact_of(folder, factory=f"{tmp_path / 'build.py'}:make_model", labels=["negative", "positive"])

    exported = run_pass("export-onnx", artifact, tmp_path)

    feeds = text_feeds(exported, 3, 8, padded=True)
    mask = feeds["attention_mask"][..., None]
    expected = (np.tanh(words[feeds["input_ids"]]) * mask).sum(1) / mask.sum(1) @ head.T + bias
    np.testing.assert_allclose(outputs(exported, feeds), expected, atol=1e-5)
    assert "factory" not in exported.program  # the bundle must not depend on the user's file


def test_trainer_checkpoint_is_taken_and_its_other_files_stay_behind(classifier: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-500"
    shutil.copytree(classifier, checkpoint)
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"\x80\x04not to be opened")
    (checkpoint / "trainer_state.json").write_text("{}")

    artifact = artifact_of(checkpoint)
    exported = run_pass("export-onnx", artifact, tmp_path)

    assert {ref.path for ref in artifact.model.files} == {"config.json", "model.safetensors"}
    feeds = text_feeds(exported)
    np.testing.assert_array_equal(torch_outputs(load_torch(artifact), feeds), torch_outputs(load_torch(artifact_of(classifier)), feeds))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_half_precision_checkpoint_of_either_transformers_is_exported_in_float32(key: str, classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    config = {
        name: value for name, value in json.loads((folder / "config.json").read_text()).items() if name not in ("dtype", "torch_dtype")
    }
    loaded(classifier, "BertForSequenceClassification").half().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, key: "float16", "transformers_version": "5.0.0"}))

    exported = run_pass("export-onnx", artifact_of(folder), tmp_path)

    assert {value.dtype for value in initializers(exported).values() if value.dtype.kind == "f"} == {np.dtype(np.float32)}
    feeds = text_feeds(exported)
    np.testing.assert_allclose(
        outputs(exported, feeds), torch_outputs(loaded(folder, "BertForSequenceClassification").float(), feeds), atol=1e-5
    )


def test_weights_only_bin_file_is_taken(classifier: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    exported = run_pass("export-onnx", artifact_of(folder), tmp_path)

    feeds = text_feeds(exported)
    np.testing.assert_allclose(
        outputs(exported, feeds), torch_outputs(loaded(classifier, "BertForSequenceClassification"), feeds), atol=1e-5
    )


class Payload:
    """Unpickled by a careless loader, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w').write('executed')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickled_checkpoint_is_not_executed(zipped: bool, classifier: Path, tmp_path: Path) -> None:
    import torch

    folder, sentinel = tmp_path / "model", tmp_path / "sentinel"
    shutil.copytree(classifier, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1), "bias": Payload(sentinel)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)

    with pytest.raises(ModelError) as caught:
        run_pass("export-onnx", artifact_of(folder), tmp_path)

    assert not sentinel.exists()
    assert caught.value.exit_code == 3
    assert "run code" in str(caught.value)


def test_optimum_route_is_refused_where_optimum_knows_no_way(sentence_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="optimum's exporter cannot take this model"):
        run_pass("export-onnx", artifact_of(sentence_encoder, "sentence-similarity"), tmp_path, route="optimum")


def test_export_reports_how_close_it_is(classifier: Path, tmp_path: Path) -> None:
    done = run_done("export-onnx", artifact_of(classifier), tmp_path)

    check = next(check for check in done.checks if check["name"] == "close-outputs")
    assert check["held"]
    assert 0 <= check["value"] <= check["limit"]
