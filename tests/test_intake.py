"""Models in: what is found, what is refused and why, and the artifact that enters a build."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from edgepipe.config import Data, Task
from edgepipe.errors import ModelError, UsageError
from edgepipe.intake import find_source, make_artifact, weight_files
from edgepipe.tasks import load_task
from tests.models import write_tokenizer
from tests.onnx_models import bag_of_words, one_node, write_external, write_onnx_classifier

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact

CONFIG = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "id2label": {"0": "negative", "1": "positive"},
    "vocab_size": 128, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip


def write_torch(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    """A folder that looks as save_pretrained left it, with one small tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({"w": np.ones((2, 3), np.float32)} if weights is None else weights, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_adapter(folder: Path, kind: str = "LORA", name: str = "adapter_model.safetensors") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    save_file({"lora_A": np.ones((2, 3), np.float32)}, folder / name)
    return folder


def take(
    folder: Path,
    task: str = "text-classification",
    *,
    adapters: tuple[Path, ...] = (),
    factory: str | None = None,
    labels: tuple[str, ...] = (),
    **data: Any,
) -> Artifact:
    source = find_source(str(folder))
    return make_artifact(
        source, [str(path) for path in adapters], load_task(Task(name=task)), labels or source.labels, Data(**data), factory
    )


def test_folder_of_save_pretrained_is_found(classifier: Path) -> None:
    source = find_source(str(classifier))

    assert (source.folder, source.onnx, source.labels) == (classifier, None, ("negative", "positive"))


def test_onnx_file_and_its_folder_are_the_same_model(onnx_classifier: Path) -> None:
    assert find_source(str(onnx_classifier)) == find_source(str(onnx_classifier / "model.onnx"))


def test_torch_weights_come_before_an_onnx_file_beside_them(tmp_path: Path) -> None:
    onnx.save_model(bag_of_words(), write_torch(tmp_path) / "model.onnx")

    assert find_source(str(tmp_path)).onnx is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "neither config.json with weights nor an ONNX file"),
        (["a.onnx", "b.onnx"], "holds 2 ONNX files"),
        (["adapter_config.json"], "is an adapter, not a model"),
        (["config.json"], "has config.json but no weights"),
        (["config.json", "model.pt", "x.pkl"], r"weights are pickled \(model\.pt, x\.pkl\)"),
    ],
)
def test_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")

    with pytest.raises(ModelError, match=message) as caught:
        find_source(str(tmp_path))
    assert caught.value.where == str(tmp_path)


def test_missing_model_and_lone_weights_are_model_errors(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()

    with pytest.raises(ModelError, match="no such model"):
        find_source(str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r'"\.pt" file alone is no model'):
        find_source(str(tmp_path / "model.pt"))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_damaged_config_is_a_model_error(tmp_path: Path, text: str) -> None:
    (write_torch(tmp_path) / "config.json").write_text(text, encoding="latin-1")

    with pytest.raises(ModelError, match="JSON"):
        find_source(str(tmp_path))


@pytest.mark.parametrize("name", ["hf://org/name", "hf://name@main", "hf://a/b/c@main"])
def test_hub_name_needs_owner_and_revision(name: str) -> None:
    with pytest.raises(UsageError, match="needs its revision"):
        find_source(name)


def test_hub_model_that_was_fetched_before_needs_no_network(own_cache: Path) -> None:
    folder = write_torch(own_cache / "downloads/hf/org/name/abc123")

    assert find_source("hf://org/name@abc123").folder == folder


def test_labels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(index): f"label {index}" for index in (10, 9, *range(9))}

    assert find_source(str(write_torch(tmp_path, id2label=names))).labels == tuple(f"label {index}" for index in range(11))


def test_model_without_a_head_has_no_labels(tmp_path: Path) -> None:
    assert find_source(str(write_torch(tmp_path, architectures=["BertModel"]))).labels == ()


def test_labels_that_are_not_numbered_are_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="id2label"):
        take(write_torch(tmp_path, id2label={"negative": 0, "positive": 1}))


def test_shards_follow_their_index(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}})
    )

    assert weight_files(tmp_path) == ["model.safetensors.index.json", "a.safetensors", "b.safetensors"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "b.safetensors"}}))

    with pytest.raises(ModelError, match=r"shards of the weights are missing: b\.safetensors"):
        weight_files(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "{folder}/../outside.safetensors"])
def test_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    (tmp_path / "outside.safetensors").touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard.format(folder=tmp_path / "inner")}}))

    with pytest.raises(ModelError, match="leaves the model folder"):
        weight_files(tmp_path / "inner")


@pytest.mark.parametrize("index", [{"weight_map": ["a"]}, {"weight_map": {"x": 3}}, {"weight_map": {"x": []}}])
def test_damaged_index_is_a_model_error(tmp_path: Path, index: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelError, match="weight_map"):
        weight_files(tmp_path)


def test_artifact_of_a_torch_model_has_its_signature_and_program(torch_artifact: Artifact) -> None:
    assert torch_artifact.model.format == "torch"
    assert [entry["name"] for entry in torch_artifact.model.signature["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert torch_artifact.program["labels"] == ["negative", "positive"]
    assert (torch_artifact.program["preprocess"]["max_length"], torch_artifact.program["preprocess"]["vocab_size"]) == (64, 128)
    assert torch_artifact.asset("tokenizer.json") is not None


def test_artifact_of_an_onnx_model_reads_the_graph(onnx_artifact: Artifact) -> None:
    assert [entry["name"] for entry in onnx_artifact.model.signature["inputs"]] == ["input_ids", "attention_mask"]
    assert onnx_artifact.program["preprocess"]["kind"] == "text"


def test_same_model_elsewhere_is_the_same_artifact(tmp_path: Path) -> None:
    first = write_torch(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")

    assert take(first).digest == take(tmp_path / "b").digest


def test_model_of_one_token_type_takes_none(tmp_path: Path) -> None:
    artifact = take(write_torch(tmp_path, type_vocab_size=1))

    assert [entry["name"] for entry in artifact.model.signature["inputs"]] == ["input_ids", "attention_mask"]


def test_positions_of_roberta_start_behind_the_padding(tmp_path: Path) -> None:
    assert take(write_torch(tmp_path, model_type="roberta")).program["preprocess"]["max_length"] == 62


def test_max_length_cuts_but_never_goes_over_the_models_positions(tmp_path: Path) -> None:
    folder = write_torch(tmp_path)

    assert take(folder, max_length=16).program["preprocess"]["max_length"] == 16
    with pytest.raises(UsageError, match="max_length 65 is over the model's 64 positions"):
        take(folder, max_length=65)


def test_missing_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    (write_torch(tmp_path) / "tokenizer.json").unlink()

    with pytest.raises(ModelError, match="tokenizer is missing"):
        take(tmp_path)


def test_weights_of_nan_and_empty_weights_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='"w" holds NaN'):
        take(write_torch(tmp_path / "nan", {"w": np.array([np.nan], np.float32)}))
    with pytest.raises(ModelError, match="holds no tensors"):
        take(write_torch(tmp_path / "none", {}))


def test_unknown_architecture_needs_a_factory(tmp_path: Path) -> None:
    folder = write_torch(tmp_path / "model", model_type=None)
    (tmp_path / "build.py").write_text("def make(config): ...\n")

    with pytest.raises(ModelError, match='names no "model_type"'):
        take(folder)
    assert take(folder, factory=f"{tmp_path / 'build.py'}:make").program["factory"]["function"] == "make"


@pytest.mark.parametrize("factory", ["none.py:make", "make", "build.py:"])
def test_factory_that_is_none_is_a_usage_error(tmp_path: Path, factory: str) -> None:
    with pytest.raises(UsageError, match=r"not FILE\.py:function"):
        take(write_torch(tmp_path), factory=factory)


def test_labels_must_be_as_many_as_the_outputs_of_an_onnx_model(tmp_path: Path) -> None:
    folder = write_onnx_classifier(tmp_path, labels=3)

    with pytest.raises(UsageError, match="2 labels are named, but the model has 3 outputs"):
        take(folder)
    assert take(folder, labels=("a", "b", "c")).program["labels"] == ["a", "b", "c"]


def test_external_weights_are_files_of_the_model(tmp_path: Path) -> None:
    write_tokenizer(write_external(tmp_path).parent)

    assert [ref.path for ref in take(tmp_path, labels=("a", "b")).model.files] == ["model.onnx", "weights.bin"]


def test_model_of_plain_tensors_needs_no_preprocessor(tmp_path: Path) -> None:
    onnx.save_model(one_node("Relu"), tmp_path / "model.onnx")

    assert take(tmp_path, task="fidelity").program["preprocess"] == {"kind": "tensors"}


def test_pairs_and_words_are_driven_as_their_task_needs(tmp_path: Path) -> None:
    folder = write_torch(tmp_path)

    assert take(folder, task="sentence-similarity").program["preprocess"]["twin"] is True
    assert take(folder, task="token-classification").program["preprocess"]["split_words"] is True


def test_image_model_takes_its_preprocessor(tmp_path: Path) -> None:
    folder = write_torch(tmp_path / "model", architectures=["ViTForImageClassification"], num_channels=1)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json is missing"):
        take(folder, task="image-classification")
    settings = {"image_mean": [0.5], "image_std": [0.5], "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "size": 32, "feature_extractor_type": "x"}))

    program = take(folder, task="image-classification", preprocessor=str(tmp_path / "preprocessor_config.json")).program

    assert program["preprocess"] == {"kind": "image", "channels": 1, "size": {"height": 32, "width": 32}, **settings}


def test_adapters_are_components_in_their_order(tmp_path: Path) -> None:
    artifact = take(write_torch(tmp_path / "m"), adapters=(write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")))

    assert {role: component.format for role, component in artifact.components.items()} == {
        "model": "torch",
        "adapter": "peft",
        "adapter_001": "peft",  # so that the eleventh does not come before the second
    }


def test_adapter_that_cannot_be_merged_says_why(tmp_path: Path) -> None:
    model = write_torch(tmp_path / "m")

    for folder, message in [
        (write_adapter(tmp_path / "prefix", kind="PREFIX_TUNING"), 'adapters of type "PREFIX_TUNING" cannot be merged'),
        (write_adapter(tmp_path / "pickled", name="adapter_model.bin"), "adapter's weights are pickled"),
        (write_adapter(tmp_path / "empty", name="other.safetensors"), "has no adapter_model.safetensors"),
        (tmp_path, "no adapter_config.json"),
    ]:
        with pytest.raises(ModelError, match=message):
            take(model, adapters=(folder,))
