"""The loader: what it takes is loaded as transformers would, what it cannot take is named, and nothing in a folder is run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.errors import ModelError, UsageError
from edgepipe.loader import load_torch
from tests.models import write_sentence_encoder, write_text_model
from tests.passes.running import artifact_of, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.config import Data

LABELS = ("negative", "positive")


@pytest.fixture
def copy(classifier: Path, tmp_path: Path) -> Path:
    """The classifier's folder, to be changed."""
    return shutil.copytree(classifier, tmp_path / "copy")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path, task: str = "text-classification", **settings: Any) -> str:
    """What the user is told: an error about the input (exit code 3) that says where and what to do."""
    with pytest.raises(ModelError) as caught:
        load_torch(artifact_of(folder, task, **settings))
    assert caught.value.exit_code == 3
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


def test_model_is_loaded_as_transformers_loads_it(classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    artifact = artifact_of(classifier)

    module = load_torch(artifact)

    assert not module.training
    feeds = text_feeds(artifact, padded=True)
    expected = torch_outputs(AutoModelForSequenceClassification.from_pretrained(classifier, attn_implementation="eager"), feeds)
    np.testing.assert_array_equal(torch_outputs(module, feeds), expected)


@pytest.fixture
def sharded(classifier: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    folder = shutil.copytree(classifier, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_pretrained(classifier).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_are_loaded_as_one_model(sharded: Path, classifier: Path) -> None:
    whole = artifact_of(classifier)

    module = load_torch(artifact_of(sharded))

    np.testing.assert_array_equal(torch_outputs(module, text_feeds(whole)), torch_outputs(load_torch(whole), text_feeds(whole)))


def test_missing_shard_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()

    assert lost.name in refused(sharded)


def test_tensor_missing_from_the_shards_is_named(copy: Path) -> None:
    lost = "bert.encoder.layer.1.output.dense.weight"
    change_weights(copy, lambda state: {name: value for name, value in state.items() if name != lost})

    assert lost in refused(copy)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 48}, "bert.embeddings.LayerNorm.weight"),
        ({"vocab_size": 100}, "word_embeddings.weight (the first should be 100 × 32)"),
        ({"num_hidden_layers": 3}, "bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "bert.encoder.layer.1"),
        ({"model_type": "distilbert"}, "config.json and the weights belong together"),
        ({"model_type": "no-such-type"}, "no-such-type"),
    ],
    ids=["other width", "other vocabulary", "more layers", "fewer layers", "other family", "unknown family"],
)
def test_config_that_does_not_belong_to_the_weights_is_refused(changes: dict[str, Any], named: str, copy: Path) -> None:
    change_config(copy, **changes)

    assert named in refused(copy)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "text-classification"), ("BertForMaskedLM", "text-classification"), ("BertForTokenClassification", "text-classification"),
        ("BertModel", "token-classification"), ("DistilBertModel", "text-classification"),
    ],
)  # fmt: skip
def test_model_without_a_head_for_the_task_is_refused(architecture: str, task: str, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", architecture)

    told = refused(folder, task, labels=LABELS)

    assert "weights are missing for" in told
    assert "no trained head for this task" in told


def test_head_for_other_labels_is_refused(classifier: Path) -> None:
    assert "classifier.bias, classifier.weight" in refused(classifier, labels=("a", "b", "c"))


def test_checkpoint_of_a_larger_model_gives_its_encoder(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "BertForMaskedLM")  # its head stays behind, which is no error

    module = load_torch(artifact_of(folder, "sentence-similarity"))

    artifact = artifact_of(folder, "sentence-similarity")
    assert torch_outputs(module, text_feeds(artifact)).shape == (3, 32)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None], ids=["empty", "zeros", "truncated"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_named(name: str, damage: bytes | None, copy: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    if name != "model.safetensors":
        (copy / "model.safetensors").unlink()
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2] if damage is None else damage)

    assert name in refused(copy)


@pytest.mark.parametrize("pickled", [False, True])
def test_nan_in_the_weights_names_the_tensor(pickled: bool, copy: Path) -> None:
    import torch
    from safetensors.torch import load_file

    change_weights(copy, lambda state: {name: value / 0 if name == "bert.pooler.dense.weight" else value for name, value in state.items()})
    if pickled:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()

    assert 'tensor "bert.pooler.dense.weight" holds NaN' in refused(copy)


def test_quantized_checkpoint_is_refused(copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})

    assert "already quantized" in refused(copy)


def test_code_in_the_model_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    (copy / "modeling.py").write_text(f"open({str(sentinel)!r}, 'w').write('executed')\nclass Model: ...\nclass Config: ...\n")
    auto_map = {"AutoConfig": "modeling.Config", "AutoModelForSequenceClassification": "modeling.Model"}
    change_config(copy, model_type="my-own", architectures=["Model"], auto_map=auto_map)

    with pytest.raises(ModelError):
        load_torch(artifact_of(copy, labels=LABELS))

    assert not sentinel.exists()


def test_unknown_sentence_transformers_module_is_named(tmp_path: Path) -> None:
    folder = write_sentence_encoder(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(
        json.dumps([*modules, {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    )

    assert "Dense" in refused(folder, "sentence-similarity")


def test_pooling_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = write_sentence_encoder(tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_weightedmean_tokens": True})
    )

    assert "weightedmean" in refused(folder, "sentence-similarity")


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ("{", "not what a pruning pass writes"),
        ('{"layers": [{"heads": 4}]}', "not what a pruning pass writes"),
        ('{"layers": [{"heads": 4, "ffn": 64}]}', "1 layers, the model has 2"),
        ('{"layers": [{"heads": 4, "ffn": 64}, {"heads": 1, "ffn": 64}]}', "widths structure.json says"),
        ('{"layers": [{"heads": 9, "ffn": 64}, {"heads": 2, "ffn": 64}]}', "widths structure.json says"),
        ('{"layers": [{"heads": 0, "ffn": 64}, {"heads": 2, "ffn": 64}]}', "not what a pruning pass writes"),
    ],
)
def test_structure_that_is_not_true_is_refused(structure: str, said: str, classifier: Path, reviews: Data, tmp_path: Path) -> None:
    pruned = run_pass("prune-heads", artifact_of(classifier), tmp_path, data=reviews, ratio=0.5)
    folder = shutil.copytree(pruned.model.folder, tmp_path / "broken")
    shutil.copy(classifier / "tokenizer.json", folder)
    (folder / "structure.json").write_text(structure)

    assert said in refused(folder)


def test_pruned_folder_is_taken_as_a_model(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    pruned = run_pass("prune-heads", artifact_of(classifier), tmp_path, data=reviews, ratio=0.5)
    shutil.copy(classifier / "tokenizer.json", pruned.model.folder)

    again = artifact_of(pruned.model.folder)

    np.testing.assert_array_equal(torch_outputs(load_torch(again), text_feeds(again)), torch_outputs(load_torch(pruned), text_feeds(again)))


@pytest.mark.parametrize(
    ("source", "function", "said"),
    [
        ("def make(config): raise RuntimeError('no such width')", "make", "no such width"),
        ("def make(config): return 3", "make", "int, not a torch module"),
        ("import torch\ndef make(config): return torch.nn.Linear(3, 3)", "make", "do not fit"),
        ("x = 1", "make", "make"),
        ("def make(:", "make", "SyntaxError"),
    ],
    ids=["raises", "no module", "other module", "no function", "syntax error"],
)
def test_what_is_wrong_with_a_factory_is_told(source: str, function: str, said: str, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(source)

    assert said in refused(classifier, factory=f"{tmp_path / 'build.py'}:{function}")


def test_factory_that_changes_while_the_build_runs_is_refused(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text("def make(config): ...")
    artifact = artifact_of(classifier, factory=f"{tmp_path / 'build.py'}:make")
    (tmp_path / "build.py").write_text("def make(config): return 1")

    with pytest.raises(UsageError, match="changed while the build ran"):
        load_torch(artifact)
