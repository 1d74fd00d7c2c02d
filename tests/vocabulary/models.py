"""Small real tokenizers of every kind, trained on the sentences that tests use."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from edgepipe.config import Data
from edgepipe.vocabulary.tokenizer_file import TokenizerFile
from tests.models import sentences, write_csv, write_tokenizer

OTHER = ["Über größte Straßen", "naïve café, œuvre!", "x = f(a) # 3.14", "antidisestablishmentarianism shortstory"]


def texts() -> list[str]:
    return [text for text, _ in sentences(60)] + OTHER


def bpe() -> Any:
    """Byte-level, with RoBERTa's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Any:
    """As XLM-R's: pieces that say where words start, the unknown token among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        texts(), trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@cache
def _trained(kind: str) -> str:
    from tempfile import TemporaryDirectory

    if kind != "wordpiece":
        made: str = {"bpe": bpe, "unigram": unigram}[kind]().to_str()
        return made
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        data = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] = [{"id": data["model"]["vocab"][token], "content": token, **flags} for token in special]
    return json.dumps(data)


def tokenizer_file(kind: str) -> TokenizerFile:
    return TokenizerFile(Path("tokenizer.json"), json.loads(_trained(kind)))


def write_kind(kind: str, folder: Path) -> int:
    """Put this tokenizer in the place of a model folder's own; how many tokens it has."""
    found = tokenizer_file(kind)
    (folder / "tokenizer.json").write_text(json.dumps(found.data), encoding="utf-8")
    return len(found.tokens)


def write_texts(folder: Path) -> Data:
    """Labelled texts for every choice; dev has words that no other split has."""
    rows = sentences(120, seed=3)
    return Data(
        train=str(write_csv(folder / "train.csv", rows[:80])),
        calibration=str(write_csv(folder / "calibration.csv", rows[80:100])),
        dev=str(write_csv(folder / "dev.csv", [*rows[100:], ("a scene without cast", "negative")])),
    )
