"""The JavaScript driver says what the Python driver says: ids, truncation, padding, outputs and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.runners.browser import BrowserModel
from edgepipe.store import Store
from tests.browser import give_runtime
from tests.conftest import read_classifier
from tests.models import sentences, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.onnx speaks of its other exporter

NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TEXTS = [
    "", " ", "\n\t", "a good film", "A GOOD Film!", "the film is good " * 40, "x" * 300, "don't, won't... (it's)",
    "naïve Café ÀÉÎ ß ẞ", "e\u0301 and \u00e9", "ﬁne ﬂat Ⅷ ① ½ €7", "你好，世界 good 电影", "日本語のテスト", "한국어 테스트", "مرحبا بالعالم", "שלום עולם", "ไทยภาษา",
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 👎", "\u200b\u200d\ufeffgood", "a\u0000b\u0001c\ufffd", "a\u00a0b\u2009c\u3000d", "one\u2028two\u2029three", "[SEP] good [CLS] [MASK][UNK]",
    "<s> good </s>", "İstanbul ı Σίσυφος ΣΑΣ", "𝕳𝖊𝖑𝖑𝖔", "http://a.b/c?d=e&f=#g", "a_b-c—d…e", "\r\ngood\r\n", "12345 6.7 8,9", "   spaced   out   ",
]  # fmt: skip


def word_piece(folder: Path) -> None:
    write_tokenizer(folder)


def byte_level(folder: Path) -> None:
    """GPT-2's kind, with RoBERTa's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text, _ in sentences(100)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))


def unigram(folder: Path) -> None:
    """SentencePiece's kind, with a template among several post-processors."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text for text, _ in sentences(200)], trainer)
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(torch_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Path:
    """A two-layer BERT as ONNX, laid out as on a device."""
    give_runtime(user_cache)
    torch = pytest.importorskip("torch")
    from transformers import BertForSequenceClassification

    source = tmp_path_factory.mktemp("bert")
    model = BertForSequenceClassification.from_pretrained(torch_artifact.model.folder, attn_implementation="eager").eval()
    inputs = {name: torch.ones((2, 8), dtype=torch.int64) for name in NAMES}
    axes = {name: {0: "batch", 1: "seq"} for name in NAMES}
    torch.onnx.export(
        model, ({**inputs},), str(source / "model.onnx"), input_names=NAMES, output_names=["logits"], dynamic_axes=axes, dynamo=False
    )
    for ref in torch_artifact.assets:
        (source / ref.path).write_bytes(ref.location.read_bytes())
    (source / "config.json").write_bytes((torch_artifact.model.folder / "config.json").read_bytes())
    return Store(tmp_path_factory.mktemp("store")).put(read_classifier(source)).model.folder.parent


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[BrowserModel]:
    model = BrowserModel(folder, threads=1, optimise=True)
    yield model
    model.close()


def in_page(model: BrowserModel, expression: str, **values: Any) -> Any:
    """A JavaScript expression that may use the driver's module as `js`, and values by name."""
    names = "".join(f"const {name} = {json.dumps(value)}; " for name, value in values.items())
    return model.page.evaluate(f'(async () => {{ const js = await import("./driver.js"); {names} return {expression}; }})()')


ENCODED = """((encoder) => samples.map((sample) => encoder.parts(sample).map((part) => [part.ids, part.typeIds])))(
    new js.TextEncoder(tokenizer, settings, names))"""


@pytest.mark.parametrize("max_length", [16, 64])
@pytest.mark.parametrize("write", [word_piece, byte_level, unigram])
def test_texts_become_the_same_ids(opened: BrowserModel, tmp_path: Path, write: Any, max_length: int) -> None:
    write(tmp_path)
    settings = {"tokenizer": "tokenizer.json", "max_length": max_length, "pad_id": 0}
    pairs = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, reversed(TEXTS), strict=True)]
    samples = [*({"text": text} for text in TEXTS), *pairs]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))

    found = in_page(opened, ENCODED, tokenizer=tokenizer, settings=settings, names=NAMES, samples=samples)

    encoder = driver_module().TextEncoder(str(tmp_path), settings, NAMES)
    for sample, ours in zip(samples, found, strict=True):
        assert ours == [[part.ids, part.type_ids] for part in encoder.parts(sample)], sample


def test_words_start_where_the_python_driver_says(opened: BrowserModel, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    settings = {"tokenizer": "tokenizer.json", "max_length": 12, "pad_id": 0, "split_words": True}
    samples = [{"tokens": text.split() or [""]} for text in TEXTS] + [{"tokens": ["good", "\u200b", "films"]}, {"tokens": []}]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    expression = "samples.map((sample) => new js.TextEncoder(tokenizer, settings, names).wordStarts(sample))"

    found = in_page(opened, expression, tokenizer=tokenizer, settings=settings, names=NAMES, samples=samples)

    encoder = driver_module().TextEncoder(str(tmp_path), settings, NAMES)
    assert found == [encoder.word_starts(sample) for sample in samples]


def test_outputs_are_those_of_the_native_runtime(opened: BrowserModel, folder: Path) -> None:
    samples = [{"text": text} for text in TEXTS]

    found = opened.predict(samples)

    driver = driver_module().Driver(str(folder))
    for sample, prediction in zip(samples, found, strict=True):
        np.testing.assert_allclose(prediction.outputs[0]["logits"], driver.predict(sample)[0]["logits"], atol=1e-4, err_msg=str(sample))
        assert 0 < prediction.model_ns <= prediction.total_ns


def test_a_batch_is_padded_to_the_length_asked_for(opened: BrowserModel) -> None:
    samples = [{"text": "good"}, {"text": "a very bad film"}]

    np.testing.assert_allclose(opened.batch(samples, 32)["logits"], opened.batch(samples)["logits"], atol=1e-4)


def test_answers_are_those_of_the_python_driver(opened: BrowserModel, folder: Path) -> None:
    opening = '((driver) => Promise.all(samples.map((one) => driver.answer(one))))(await js.Driver.open(new URL("artifact/", location)))'
    samples = [{"text": text} for text in TEXTS[:8]]

    found = in_page(opened, opening, samples=samples)

    driver = driver_module().Driver(str(folder))
    for sample, answer in zip(samples, found, strict=True):
        expected = driver.answer(sample)
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert sum(answer["scores"].values()) == pytest.approx(1)
