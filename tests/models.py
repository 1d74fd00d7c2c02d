"""Small real models that tests build: two layers, a real tokenizer, seeded weights."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

WORDS = (
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
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
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


def write_adapter(base: Path, folder: Path, *, seed: int = 1, **options: Any) -> Path:
    """A LoRA adapter for a classifier whose update is not zero, as peft's save_pretrained writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    settings = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "modules_to_save": ["classifier"], **options}
    model = get_peft_model(BertForSequenceClassification.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or (parameter.requires_grad and "modules_to_save" in name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.requires_grad:  # trained biases
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
