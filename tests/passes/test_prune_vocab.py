"""prune-vocab: fewer rows, the same answers for text of kept tokens, and a folder that plain transformers loads."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.config import Data
from edgepipe.errors import PassError, UsageError
from edgepipe.loader import load_torch
from edgepipe.passes.prune_vocab import PruneVocab
from edgepipe.probes import encoder_for, feeds_of
from edgepipe.toml import parse
from tests.models import sentences, write_text_model
from tests.passes.recovering import recovered
from tests.passes.running import artifact_of, outputs, run_done, run_pass, torch_outputs
from tests.vocabulary.models import write_kind, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact

NAME = "prune-vocab"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_texts(tmp_path_factory.mktemp("texts"))


def model_of_kind(kind: str, folder: Path, architecture: str, **changes: Any) -> Path:
    """A tiny model over one of the small tokenizers; its table has three rows that no token has."""
    rows = write_kind(kind, _made(folder)) + 3
    write_text_model(folder, architecture, vocab_size=rows, **changes)
    write_kind(kind, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seen(*samples: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in samples]


KEPT = [text for text, _ in sentences(120, seed=3)[:6]]


def assert_equal_on(before: Artifact, after: Artifact, texts: list[str]) -> None:
    """The same outputs for the same texts, each through its own tokenizer, singly and padded."""
    for samples in ([*map(seen, texts)], [seen(*texts)]):
        for given in samples:
            np.testing.assert_allclose(outputs(after, feeds_of(after, given)), outputs(before, feeds_of(before, given)), atol=1e-5)


def plain(after: Artifact, folder: Path) -> Path:
    """Model and tokenizer in one folder, as a user would lay them together."""
    for ref in (*after.model.files, *after.assets):
        (folder / ref.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ref.location, folder / ref.path)
    return folder


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("wordpiece", "BertForSequenceClassification"),
        ("wordpiece", "DistilBertForSequenceClassification"),
        ("wordpiece", "ElectraForTokenClassification"),
        ("bpe", "RobertaForSequenceClassification"),
        ("unigram", "XLMRobertaForSequenceClassification"),
        ("bpe", "BertForSequenceClassification"),
    ],
)
def test_table_shrinks_and_text_of_kept_tokens_is_answered_as_before(kind: str, architecture: str, texts: Data, tmp_path: Path) -> None:
    import transformers

    task = "token-classification" if "Token" in architecture else "text-classification"
    before = artifact_of(model_of_kind(kind, tmp_path / "model", architecture, pad_token_id=0 if kind == "wordpiece" else 1), task)
    data = texts
    if task == "token-classification":
        rows = [json.dumps({"tokens": text.split(), "label": ["negative"] * len(text.split())}) for text in KEPT]
        (tmp_path / "tags.jsonl").write_text("\n".join(rows))
        data = Data(train=str(tmp_path / "tags.jsonl"))

    done = run_done(NAME, before, tmp_path, data=data)
    after = done.value

    kept = done.figures["vocabulary"]["kept"]
    assert load_torch(after).get_input_embeddings().weight.shape[0] == kept < done.figures["vocabulary"]["before"]
    assert after.program["preprocess"]["vocab_size"] == kept
    assert after.model.parameters < before.model.parameters
    if task == "text-classification":
        assert_equal_on(before, after, KEPT)

    folder = plain(after, tmp_path / "plain")
    assert not (folder / "structure.json").exists()
    model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == kept
    if task == "text-classification":
        feeds = {name: np.array(value) for name, value in tokenizer(KEPT[:1]).items() if name in feeds_of(after, seen(KEPT[0]))}
        np.testing.assert_allclose(torch_outputs(model, feeds), outputs(before, feeds_of(before, seen(KEPT[0]))), atol=1e-5)


@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM", "GPT2LMHeadModel", "ElectraForMaskedLM"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_output_layer_over_the_vocabulary_shrinks_with_the_table(architecture: str, tied: bool, texts: Data, tmp_path: Path) -> None:
    import transformers

    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    before = artifact_of(model_of_kind("bpe", tmp_path / "model", architecture, tie_word_embeddings=tied, **ids), "fidelity")

    done = run_done(NAME, before, tmp_path, data=texts)

    module, kept = load_torch(done.value), done.figures["vocabulary"]["kept"]
    assert module.get_output_embeddings().weight.shape[0] == kept
    assert (module.get_output_embeddings().weight is module.get_input_embeddings().weight) == tied
    assert next(check for check in done.checks if check["name"] == "equal-on-kept-text")["value"] <= 1e-5
    assert getattr(transformers, architecture).from_pretrained(done.value.model.folder).config.vocab_size == kept


def test_positions_stay_where_the_padding_token_is_not_among_the_first(texts: Data, tmp_path: Path) -> None:
    """RoBERTa counts positions from behind the padding token's id."""
    folder = model_of_kind("bpe", tmp_path / "model", "RobertaForSequenceClassification", pad_token_id=7)
    before = artifact_of(folder)

    after = run_pass(NAME, before, tmp_path, data=texts)

    assert json.loads((after.model.folder / "config.json").read_text())["pad_token_id"] == 7
    assert_equal_on(before, after, KEPT)


def test_ids_in_every_config_follow_their_tokens(texts: Data, tmp_path: Path) -> None:
    folder = model_of_kind("wordpiece", tmp_path / "model", "BertForSequenceClassification")
    data = json.loads((folder / "tokenizer.json").read_text())
    special = [entry["content"] for entry in data["added_tokens"]]
    order = sorted(data["model"]["vocab"], key=lambda piece: (piece in special, data["model"]["vocab"][piece]))  # the special ones last
    ids = data["model"]["vocab"] = {piece: index for index, piece in enumerate(order)}
    for entry in data["added_tokens"]:
        entry["id"] = ids[entry["content"]]
    for entry in data["post_processor"]["special_tokens"].values():
        entry["ids"] = [ids[entry["id"]]]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((folder / "config.json").read_text())
    config |= {"pad_token_id": ids["[PAD]"], "eos_token_id": [ids["[SEP]"], ids["[MASK]"]], "bos_token_id": 5000}
    (folder / "config.json").write_text(json.dumps(config))
    decoder = {str(ids[token]): {"content": token, "special": True} for token in special}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "added_tokens_decoder": decoder})
    )
    generation = {"pad_token_id": ids["[PAD]"], "suppress_tokens": [ids["[UNK]"], ids["long"]], "bad_words_ids": [[ids["bad"]]]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    before = artifact_of(folder)

    after = run_pass(NAME, before, tmp_path, data=texts)

    new = encoder_for(after).tokenizer.get_vocab()
    assert new["[PAD]"] != ids["[PAD]"]
    config = json.loads((after.model.folder / "config.json").read_text())
    assert config["pad_token_id"] == after.program["preprocess"]["pad_id"] == new["[PAD]"]
    assert config["eos_token_id"] == [new["[SEP]"], new["[MASK]"]]
    assert config["bos_token_id"] == 5000  # no row then, none now
    assets = {ref.path: json.loads(ref.location.read_text()) for ref in after.assets}
    assert {int(index): token["content"] for index, token in assets["tokenizer_config.json"]["added_tokens_decoder"].items()} == {
        new[token]: token for token in special
    }
    assert assets["generation_config.json"]["pad_token_id"] == new["[PAD]"]
    assert assets["generation_config.json"]["suppress_tokens"] == [new[token] for token in ("[UNK]", "long") if token in new]
    assert not assets["generation_config.json"]["bad_words_ids"]
    assert_equal_on(before, after, KEPT)


def test_sentence_encoder_keeps_its_answers(sentence_encoder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text_pair,label\n" + "".join(f"the film {i},a movie {i},{i % 5}\n" for i in range(8)))
    before = artifact_of(sentence_encoder, "sentence-similarity")

    after = run_pass(NAME, before, tmp_path, data=Data(calibration=str(pairs)))

    given = [{"text": "the film", "text_pair": "a movie"}]
    np.testing.assert_allclose(outputs(after, feeds_of(after, given)), outputs(before, feeds_of(before, given)), atol=1e-5)
    assert (after.model.folder / "modules.json").is_file()


def test_pruned_model_loses_its_tokens_too_and_is_exported(texts: Data, classifier: Path, tmp_path: Path) -> None:
    before = run_pass("prune-ffn", artifact_of(classifier), tmp_path, ratio=0.5, importance="magnitude")

    after = run_pass(NAME, before, tmp_path, data=texts)
    graph = run_pass("export-onnx", after, tmp_path, data=texts)

    assert (after.model.folder / "structure.json").is_file()
    given = seen(*KEPT)
    np.testing.assert_allclose(outputs(graph, feeds_of(graph, given)), outputs(before, feeds_of(before, given)), atol=1e-5)


def test_factorized_table_loses_rows_of_its_first_factor(texts: Data, classifier: Path, tmp_path: Path) -> None:
    from edgepipe.factorized import filled, replace_layer
    from edgepipe.saving import save_torch

    plain_artifact = artifact_of(classifier)
    module = load_torch(plain_artifact)
    table = module.bert.embeddings.word_embeddings
    outer = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 8)))[0].astype(np.float32)
    import torch

    second = torch.from_numpy(outer)
    replace_layer(module, "bert.embeddings.word_embeddings", filled(table, table.weight.detach() @ second, second))
    (tmp_path / "factors").mkdir()
    before = plain_artifact.with_component("model", save_torch(module, plain_artifact, tmp_path / "factors"))

    after = run_pass(NAME, before, tmp_path, data=texts)

    assert load_torch(after).bert.embeddings.word_embeddings[0].num_embeddings == after.program["preprocess"]["vocab_size"] < 128
    assert_equal_on(before, after, KEPT)


def test_share_that_fell_back_is_told_of_data_that_had_no_say(texts: Data, classifier: Path, tmp_path: Path) -> None:
    done = run_done(NAME, artifact_of(classifier), tmp_path, data=texts)

    check = next(check for check in done.checks if check["name"] == "fallback-share")
    assert 0 < check["value"] < 0.1  # "scene", "without" and "cast" stand in dev alone
    assert check["detail"].startswith(f"{done.figures['vocabulary']['kept']} of ")
    for split in ("dev", "calibration", "train"):
        assert f"{split}: " in check["detail"]
    assert "calibration: 0.00% of tokens fell back" in check["detail"]
    assert "0.00% are unknown" in check["detail"]


def test_words_the_data_lack_fall_to_shorter_tokens(texts: Data, classifier: Path, tmp_path: Path) -> None:
    after = run_pass(NAME, artifact_of(classifier), tmp_path, data=texts)

    tokenizer = encoder_for(after).tokenizer
    assert tokenizer.encode("cast", add_special_tokens=False).tokens == ["c", "##a", "##s", "##t"]
    assert np.isfinite(outputs(after, feeds_of(after, seen("cast of quartz", "", "日本")))).all()


def test_same_data_give_the_same_bytes(texts: Data, classifier: Path, tmp_path: Path) -> None:
    first, second = (run_pass(NAME, artifact_of(classifier), tmp_path, data=texts, size=70) for _ in range(2))

    assert first.digest == second.digest


def test_reserved_words_of_a_file_stay_and_their_content_is_part_of_the_options(texts: Data, classifier: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the cast of this story\n")
    options = PruneVocab(reserve_file=str(words))

    after = run_pass(NAME, artifact_of(classifier), tmp_path, data=texts, reserve=["director"], **options.model_dump(exclude={"reserve"}))

    assert {"cast", "story", "director"} <= set(encoder_for(after).tokenizer.get_vocab())
    words.write_text("another story\n")
    assert PruneVocab(reserve_file=str(words)) != options
    with pytest.raises(UsageError, match="another file"):
        parse(PruneVocab, options.model_dump(), source=".".join)
    with pytest.raises(UsageError, match="no file"):
        parse(PruneVocab, {"reserve_file": str(tmp_path / "none.txt")}, source=".".join)


def test_reserved_texts_alone_say_what_stays(classifier: Path, tmp_path: Path) -> None:
    after = run_pass(NAME, artifact_of(classifier), tmp_path, reserve=["a great film"])

    vocabulary = set(encoder_for(after).tokenizer.get_vocab())
    assert {"great", "film"} <= vocabulary
    assert "movie" not in vocabulary


def test_recovery_trains_it_with_a_teacher_that_has_all_tokens(texts: Data, classifier: Path, tmp_path: Path) -> None:
    before = artifact_of(classifier)
    after = run_pass(NAME, before, tmp_path, data=texts, size=70)
    trained = recovered(after, before, tmp_path, texts, objectives={"logits": 1.0, "task": 1.0}).value

    assert trained.program["preprocess"] == after.program["preprocess"]
    assert load_torch(trained).config.vocab_size == 70


def test_wrong_table_fails_the_check(texts: Data, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in another order than the tokenizer's ids."""
    from edgepipe.vocabulary import table

    right = table.keep_tokens
    monkeypatch.setattr(table, "keep_tokens", lambda module, kept: right(module, [*kept[1:], kept[0]]))

    with pytest.raises(PassError, match="equal-on-kept-text"):
        run_pass(NAME, artifact_of(classifier), tmp_path, data=texts)
