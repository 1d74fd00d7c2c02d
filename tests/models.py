"""Small real models that tests build: two layers, a real tokenizer, seeded weights."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

WORDS = (  # noqa: SIM905
    "the a film movie plot acting is was very good great fine bad dull poor awful slow funny sharp warm cold and but "
    "not never this that it with without story scene cast director of in on at long short"
).split()
GOOD, BAD = ["good", "great", "fine", "funny", "sharp", "warm"], ["bad", "dull", "poor", "awful", "slow", "cold"]


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer over a few dozen words and all letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}))


def bert_config(**changes: Any) -> Any:
    from transformers import BertConfig

    settings = {
        "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
        "num_labels": 2, "id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1},
    }  # fmt: skip
    return BertConfig(**{**settings, **changes})


def write_classifier(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A two-layer BERT sequence classifier with its tokenizer, as save_pretrained writes it."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config(**changes)).eval()
    with torch.no_grad():  # fresh weights are too small for outputs to differ much
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_adapter(base: Path, folder: Path, *, seed: int = 1, architecture: str = "BertForSequenceClassification", **options: Any) -> Path:
    """A LoRA adapter for a classifier whose update is not zero, as peft's save_pretrained writes it."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        **options,
    }
    model = get_peft_model(getattr(transformers, architecture).from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or parameter.requires_grad:  # whole modules and trained biases too
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct (text, label) pairs whose label follows from their words."""
    rng = random.Random(seed)
    seen: dict[str, str] = {}
    while len(seen) < count:
        label = rng.choice(["negative", "positive"])
        tone = GOOD if label == "positive" else BAD
        words = [rng.choice(WORDS[:8]) for _ in range(rng.randint(2, 12))] + [rng.choice(tone) for _ in range(3)]
        rng.shuffle(words)
        seen.setdefault(" ".join(words), label)
    return list(seen.items())


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_model(folder: Path, model: Any, *, seed: int = 0) -> Path:
    """Any transformers model as save_pretrained writes it, its weights drawn wide enough for outputs to differ."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * (0.5 / parameter[0].numel() ** 0.5 if parameter.ndim == 4 else 0.1))
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    return folder


def write_text_model(folder: Path, architecture: str, *, seed: int = 0, **changes: Any) -> Path:
    """A tiny text model of any transformers architecture ("DistilBertForSequenceClassification"), with its tokenizer."""
    import transformers

    widths = {
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0},
    }
    family = architecture.split("For")[0].removesuffix("Model").removesuffix("LMHead")
    bert_like = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
    }
    labels = (
        {"num_labels": 2, "id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
        if "Classification" in architecture
        else {}
    )
    config = getattr(transformers, f"{family}Config")(**{"vocab_size": 128, **labels, **widths.get(family, bert_like), **changes})
    write_model(folder, getattr(transformers, architecture)(config), seed=seed)
    write_tokenizer(folder)
    return folder


def write_vision_model(folder: Path, architecture: str, *, seed: int = 0, **changes: Any) -> Path:
    """A tiny image classifier ("ViTForImageClassification", "ResNetForImageClassification"), with its preprocessor."""
    import transformers

    sizes = {
        "ViT": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
        },
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }
    family = architecture.split("For")[0].removesuffix("Model")
    labels = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}
    write_model(
        folder,
        getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**{**labels, **sizes.get(family, {}), **changes})),
        seed=seed,
    )
    normalised = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    settings = {"do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True, **normalised}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_images(folder: Path, labels: tuple[str, ...] = ("cat", "dog", "fox"), *, per_label: int = 4, seed: int = 0) -> Path:
    """Noise images in a folder per label."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_label):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / label / f"{number}.png")
    return folder


def write_sentence_encoder(folder: Path, *, pooling: str = "mean", normalize: bool = True, seed: int = 0) -> Path:
    """A tiny BERT encoder as sentence-transformers lays it out: modules.json, 1_Pooling, and 2_Normalize."""
    from transformers import BertModel

    write_model(folder, BertModel(bert_config(), add_pooling_layer=False), seed=seed)
    write_tokenizer(folder)
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    modules = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_max_tokens": pooling == "max",
             "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder
