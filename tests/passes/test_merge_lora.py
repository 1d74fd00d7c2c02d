"""merge-lora against PEFT itself: every form of adapter it writes, merged, gives what PEFT gives unmerged."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.errors import ModelError, UsageError
from edgepipe.loader import load_torch
from tests.models import write_adapter, write_classifier, write_text_model
from tests.passes.running import artifact_of, outputs, run_done, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from pathlib import Path

BERT = "BertForSequenceClassification"
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without a head": {"modules_to_save": None},
    "rank and alpha patterns": {"rank_pattern": {"layer.0.attention.self.query": 2, "value": 8}, "alpha_pattern": {"value": 3}},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA on embeddings": {"use_dora": True, "target_modules": ["word_embeddings", "query"]},
    "all biases": {"bias": "all"},
    "all biases without a head": {"bias": "all", "modules_to_save": None},
    "biases of LoRA layers": {"bias": "lora_only"},
    "bias in the update": {"lora_bias": True},
    "whole pooler and head": {"modules_to_save": ["classifier", "pooler"]},
    "whole layer norms": {"bias": "all", "modules_to_save": ["classifier", "LayerNorm"]},
    "embeddings": {"target_modules": ["word_embeddings", "query"]},
    "trained tokens": {"trainable_token_indices": {"word_embeddings": [3, 5, 9]}},
    "every linear layer": {"target_modules": "all-linear"},
    "layers by pattern": {"target_modules": r".*layer\.1\.attention\.self\.(query|key)"},
    "one layer only": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "parameters": {"target_modules": ["value"], "target_parameters": ["attention.self.query.weight"]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}
CONV1D = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
OTHER_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2ForSequenceClassification", "text-classification", {**CONV1D, "modules_to_save": ["score"]}),
    "GPT-2, DoRA": ("GPT2ForSequenceClassification", "text-classification", {**CONV1D, "modules_to_save": ["score"], "use_dora": True}),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "text-classification",
        {"target_modules": ["q_lin", "lin1"], "modules_to_save": ["pre_classifier"]},
    ),
    "RoBERTa": ("RobertaForSequenceClassification", "text-classification", {}),
    "token classification": ("BertForTokenClassification", "token-classification", {"task_type": "TOKEN_CLS"}),
    "tied embeddings": (
        "BertForMaskedLM",
        "fidelity",
        {"task_type": None, "modules_to_save": None, "target_modules": ["word_embeddings", "query"]},
    ),
    "tied decoder": ("BertForMaskedLM", "fidelity", {"task_type": None, "modules_to_save": None, "target_modules": ["decoder"]}),
    "tied, untouched": ("BertForMaskedLM", "fidelity", {"task_type": None, "modules_to_save": None}),
    "tied GPT-2": (
        "GPT2LMHeadModel",
        "fidelity",
        {"task_type": "CAUSAL_LM", "modules_to_save": None, **CONV1D, "target_modules": ["wte", "c_attn"]},
    ),
    "tied GPT-2, own head": ("GPT2LMHeadModel", "fidelity", {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"], **CONV1D}),
}


def peft_model(base: Path, adapter: Path, architecture: str = BERT) -> Any:
    """PEFT's own way to an adapted model, in float32, nothing merged."""
    import torch
    import transformers
    from peft import PeftModel

    plain = getattr(transformers, architecture).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(plain, adapter).eval()


def assert_merged_as_peft_runs(
    base: Path, adapter: Path, workdir: Path, *, architecture: str = BERT, task: str = "text-classification", labels: tuple[str, ...] = ()
) -> None:
    merged = run_pass("merge-lora", artifact_of(base, task, adapters=[adapter], labels=labels), workdir)

    assert list(merged.components) == ["model"]
    reference = peft_model(base, adapter, architecture)
    for feeds in (text_feeds(merged, 1, 7), text_feeds(merged, 3, 12, padded=True, seed=1)):
        expected = torch_outputs(reference, feeds)
        with reference.disable_adapter():
            plain = torch_outputs(reference, feeds)
        assert np.abs(expected - plain).max() > 1e-2  # the adapter matters, or the next line would prove nothing
        np.testing.assert_allclose(outputs(merged, feeds), expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_adapter_merges_to_what_peft_computes(form: str, classifier: Path, tmp_path: Path) -> None:
    adapter = write_adapter(classifier, tmp_path / "adapter", **FORMS[form])

    assert_merged_as_peft_runs(classifier, adapter, tmp_path)


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_architectures_merge_to_what_peft_computes(name: str, tmp_path: Path) -> None:
    architecture, task, options = OTHER_MODELS[name]
    base = write_text_model(tmp_path / "base", architecture)
    adapter = write_adapter(base, tmp_path / "adapter", architecture=architecture, **options)

    assert_merged_as_peft_runs(base, adapter, tmp_path, architecture=architecture, task=task)


def test_adapter_brings_the_head_its_bare_base_lacks(tmp_path: Path) -> None:
    encoder = write_text_model(tmp_path / "encoder", "BertModel")
    adapter = write_adapter(encoder, tmp_path / "adapter")

    assert_merged_as_peft_runs(encoder, adapter, tmp_path, labels=("negative", "positive"))


def test_adapter_of_a_sentence_encoder_is_merged_inside_its_pooling(sentence_encoder: Path, tmp_path: Path) -> None:
    options = {"task_type": "FEATURE_EXTRACTION", "modules_to_save": None, "target_modules": "all-linear"}
    adapter = write_adapter(sentence_encoder, tmp_path / "adapter", architecture="BertModel", **options)

    merged = run_pass("merge-lora", artifact_of(sentence_encoder, "sentence-similarity", adapters=[adapter]), tmp_path)

    feeds = text_feeds(merged, padded=True)
    mask = feeds["attention_mask"][..., None]
    means = (torch_outputs(peft_model(sentence_encoder, adapter, "BertModel"), feeds) * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(outputs(merged, feeds), means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)


def test_head_of_an_old_peft_that_its_config_does_not_name_is_merged(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    old = changed_config(adapter, tmp_path / "old", modules_to_save=None)

    assert_merged_as_peft_runs(classifier, old, tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_base_is_merged_in_float32(dtype: str, classifier: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / dtype
    shutil.copytree(classifier, base)
    half = {name: value.to(getattr(torch, dtype)) for name, value in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype, "dtype": dtype}))
    adapter = write_adapter(classifier, tmp_path / "adapter")

    assert_merged_as_peft_runs(base, adapter, tmp_path)
    merged = run_pass("merge-lora", artifact_of(base, adapters=[adapter]), tmp_path)
    query = load_file(merged.model.folder / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]
    assert query.dtype == torch.float32
    assert not torch.equal(query, query.to(getattr(torch, dtype)).float())  # the update keeps bits that the base's dtype has no room for


@pytest.mark.parametrize("weights", [(), (0.7, -0.3), (0.0, 2.0)])
def test_several_adapters_add_up_by_their_weights(weights: tuple[float, ...], classifier: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapters = [
        write_adapter(classifier, tmp_path / "first", seed=5, task_type=None, modules_to_save=None, lora_alpha=6),
        write_adapter(classifier, tmp_path / "second", seed=6, task_type=None, modules_to_save=None, r=2, target_modules=["query", "key"]),
    ]

    merged = run_pass("merge-lora", artifact_of(classifier, adapters=adapters), tmp_path, weights=list(weights))

    base, after = (load_file(folder / "model.safetensors") for folder in (classifier, merged.model.folder))
    updates = [load_file(folder / "adapter_model.safetensors") for folder in adapters]
    for layer in (0, 1):
        for part in ("query", "key", "value"):
            name = f"bert.encoder.layer.{layer}.attention.self.{part}"
            expected = base[f"{name}.weight"].clone()
            for update, weight, scale in zip(updates, weights or (1, 1), (6 / 4, 8 / 2), strict=True):
                if f"base_model.model.{name}.lora_A.weight" in update:
                    expected += (
                        weight * scale * update[f"base_model.model.{name}.lora_B.weight"] @ update[f"base_model.model.{name}.lora_A.weight"]
                    )
            np.testing.assert_allclose(after[f"{name}.weight"].numpy(), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("head_first", [True, False])
def test_adapter_without_a_head_merges_beside_one_that_brings_it(head_first: bool, classifier: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    domain = write_adapter(classifier, tmp_path / "domain", seed=5, task_type=None, modules_to_save=None)

    merged = run_pass("merge-lora", artifact_of(classifier, adapters=[adapter, domain] if head_first else [domain, adapter]), tmp_path)

    head = load_file(adapter / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(load_torch(merged).classifier.weight.detach().numpy(), head.numpy())


def test_two_heads_are_refused(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_adapter(classifier, tmp_path / "other", seed=9)

    with pytest.raises(ModelError, match="more than one adapter brings a whole module"):
        run_pass("merge-lora", artifact_of(classifier, adapters=[adapter, other]), tmp_path)


def test_number_of_weights_must_match(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 weights for 1 adapters"):
        run_pass("merge-lora", artifact_of(classifier, adapters=[adapter]), tmp_path, weights=[1.0, 0.5])


def test_weights_do_not_scale_trained_biases(classifier: Path, tmp_path: Path) -> None:
    biased = write_adapter(classifier, tmp_path / "biased", bias="lora_only")

    with pytest.raises(UsageError, match="trained biases"):
        run_pass("merge-lora", artifact_of(classifier, adapters=[biased]), tmp_path, weights=[0.5])


def test_merge_reports_that_outputs_stay_equal(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    checks = {check["name"]: check for check in run_done("merge-lora", artifact_of(classifier, adapters=[adapter]), tmp_path).checks}

    assert checks["equal-outputs"]["held"]
    assert checks["equal-outputs"]["value"] <= checks["equal-outputs"]["limit"]
    assert checks["same-signature"]["held"]


def changed_config(adapter: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


def changed_tensors(adapter: Path, folder: Path, change: Any) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


def refused(base: Path, adapter: Path, workdir: Path) -> str:
    """What the user is told: an error about the input (exit code 3) that names this adapter or base."""
    with pytest.raises(ModelError) as caught:
        run_pass("merge-lora", artifact_of(base, adapters=[adapter]), workdir)
    assert caught.value.exit_code == 3
    assert caught.value.fix
    assert str(workdir) in str(caught.value.where)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"hidden_size": 48}, {}, "encoder.layer.0.attention.self.query (32 against 48 × 48)"),
        ({"intermediate_size": 96}, {"target_modules": ["dense"]}, "encoder.layer.0.intermediate.dense (64 against 96 × 32)"),
        ({"vocab_size": 140}, {"target_modules": ["word_embeddings"]}, "word_embeddings"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}, {}, "classifier"),
        ({"num_hidden_layers": 1}, {}, "layers the base model does not have: bert.encoder.layer.1.attention.self.query"),
    ],
    ids=["hidden size", "feed-forward width", "vocabulary", "labels", "fewer layers"],
)
def test_adapter_for_a_base_of_other_widths_names_the_layers(
    changes: dict[str, Any], options: dict[str, Any], named: str, classifier: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(classifier, tmp_path / "adapter", **options)
    other = write_classifier(tmp_path / "other", **changes)

    assert named in refused(other, adapter, tmp_path)


def test_adapter_for_a_base_with_other_layer_names_names_the_layers(adapter: Path, tmp_path: Path) -> None:
    base = write_text_model(tmp_path / "base", "DistilBertForSequenceClassification")
    shutil.copytree(adapter, tmp_path / "adapter")

    assert "bert.encoder.layer.0.attention.self.query" in refused(base, tmp_path / "adapter", tmp_path)


QUERY = "bert.encoder.layer.1.attention.self.query"


@pytest.mark.parametrize("lost", [f"{QUERY}.lora_", f"{QUERY}.lora_A", "classifier.", "classifier.bias"])
def test_adapter_whose_file_lacks_tensors_names_them(lost: str, classifier: Path, adapter: Path, tmp_path: Path) -> None:
    cut = changed_tensors(adapter, tmp_path / "cut", lambda state: {key: value for key, value in state.items() if lost not in key})

    assert lost.rstrip(".") in refused(classifier, cut, tmp_path)


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.attention.self.key.lora_A.weight", "bert.adapter_gate.weight"])
def test_adapter_with_unexpected_tensors_names_them(name: str, classifier: Path, adapter: Path, tmp_path: Path) -> None:
    import torch

    swollen = changed_tensors(adapter, tmp_path / "swollen", lambda state: {**state, f"base_model.model.{name}": torch.ones(4, 32)})

    assert name in refused(classifier, swollen, tmp_path)


def test_adapter_whose_config_says_another_rank_names_the_layers(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    assert f"{QUERY.replace('1', '0')}.lora_A" in refused(classifier, changed_config(adapter, tmp_path / "rank", r=8), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"no tensors at all" * 20, None], ids=["empty", "garbage", "truncated"])
def test_corrupt_adapter_file_is_named(damage: bytes | None, classifier: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "corrupt")
    path = tmp_path / "corrupt" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)

    assert "adapter_model.safetensors" in refused(classifier, tmp_path / "corrupt", tmp_path)


def test_adapter_with_nan_names_the_tensor(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    diverged = changed_tensors(
        adapter,
        tmp_path / "diverged",
        lambda state: {key: value / 0 if f"{QUERY}.lora_B" in key else value for key, value in state.items()},
    )

    assert f"{QUERY}.lora_B.weight" in refused(classifier, diverged, tmp_path)


def test_quantized_base_is_refused(classifier: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "base")
    config = json.loads((classifier / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )

    assert "quantized" in refused(tmp_path / "base", adapter, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"peft_type": "IA3"}, 'type "IA3"'), ({"alora_invocation_tokens": [1, 2]}, "invocation tokens"), ({"r": "four"}, "does not fit")],
)
def test_adapter_that_cannot_be_merged_says_why(
    changes: dict[str, Any], said: str, classifier: Path, adapter: Path, tmp_path: Path
) -> None:
    assert said in refused(classifier, changed_config(adapter, tmp_path / "other", **changes), tmp_path)
