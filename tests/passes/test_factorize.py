"""factorize: weights become products that are smaller, as near as their rank allows, and the model still exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, ModelError, UsageError
from edgepipe.factorized import factors_of, weight_of
from edgepipe.loader import load_torch
from edgepipe.low_rank import decompose, decompose_table
from edgepipe.passes.factorize import Factorize
from tests.models import bert_config, write_model, write_text_model, write_tokenizer
from tests.passes.running import artifact_of, initializers, operators, outputs, run_done, run_pass, text_feeds

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))


def drawn(rows: int, columns: int, seed: int) -> Any:
    import torch

    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SIZES, st.booleans())
@settings(deadline=None)
def test_full_rank_gives_the_weight_back(size: tuple[int, int, int], weighted: bool) -> None:
    rows, columns, seed = size
    weight, x = drawn(rows, columns, seed), drawn(3 * columns, columns, seed + 1)

    parts = decompose(weight, x.T @ x if weighted else None)

    np.testing.assert_allclose(parts.outer @ parts.inner, weight, atol=1e-6)
    assert (parts.values.diff() <= 1e-9).all()


@given(SIZES, st.integers(0, 99))
@settings(deadline=None)
def test_no_product_of_that_rank_is_nearer_to_the_outputs(size: tuple[int, int, int], other: int) -> None:
    rows, columns, seed = size
    weight, x = drawn(rows, columns, seed), drawn(4 * columns, columns, seed + 1) * drawn(1, columns, seed + 2).exp()
    rank = max(1, min(rows, columns) // 2)

    aware, plain = decompose(weight, x.T @ x / len(x)), decompose(weight)

    def lost(outer: Any, inner: Any) -> float:
        return float((x @ (weight - outer[:, :rank] @ inner[:rank]).T).norm())

    best = lost(aware.outer, aware.inner)
    slack = 1e-3 * float((x @ weight.T).norm())  # damping
    assert best <= lost(plain.outer, plain.inner) + slack
    assert best <= lost(drawn(rows, rank, other), drawn(rank, columns, other + 1)) + slack
    assert best == pytest.approx(aware.error(rank) * float((x @ weight.T).norm()), abs=slack)


@given(SIZES, st.floats(0.01, 1))
@settings(deadline=None)
def test_energy_is_held_by_the_lowest_rank_that_does(size: tuple[int, int, int], energy: float) -> None:
    parts = decompose(drawn(*size))

    rank = parts.rank_for(energy)

    assert 1 <= rank <= len(parts.values)
    assert 1 - parts.error(rank) ** 2 >= energy - 1e-9
    assert rank == 1 or 1 - parts.error(rank - 1) ** 2 < energy


@given(SIZES)
@settings(deadline=None)
def test_rows_of_a_table_that_are_read_often_are_nearer(size: tuple[int, int, int]) -> None:
    rows, width, seed = size
    table, frequency = drawn(rows, width, seed), drawn(rows, 1, seed + 1)[:, 0].exp()
    rank = max(1, width // 2)

    weighted, plain = decompose_table(table, frequency), decompose_table(table)

    def lost(parts: Any) -> float:
        return float(((table - (parts.outer[:, :rank] @ parts.inner[:rank]).T).pow(2).sum(1) * frequency).sum())

    np.testing.assert_allclose((plain.outer @ plain.inner).T, table, atol=1e-9)
    assert lost(weighted) <= lost(plain) + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 4},
        {"energy": 0.5},
        {"embedding": 8},
        {"embedding": 0.25, "ratio": 0.5},
        {"method": "activation", "ratio": 0.5, "embedding": 8},
    ],
)
def test_every_way_gives_a_smaller_model_that_exports(options: dict[str, Any], reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))

    done = run_done("factorize", before, tmp_path, data=reviews, **options)
    exported = run_pass("export-onnx", done.value, tmp_path)

    module, found = load_torch(done.value), done.figures["factorized"]
    assert factors_of(module) == {name: each["rank"] for name, each in found.items()}
    removed = sum(
        layer.weight.numel() - each["rank"] * sum(layer.weight.shape)
        for name, each in found.items()
        for layer in [load_torch(before).get_submodule(name)]
    )
    assert 0 < removed == before.model.parameters - done.value.model.parameters
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(exported, feeds), outputs(done.value, feeds), atol=1e-5)
    assert not np.array_equal(outputs(done.value, feeds), outputs(before, feeds))


def test_a_factorized_table_is_a_gather_and_a_product(classifier: Path, tmp_path: Path) -> None:
    before = artifact_of(classifier)

    after = run_pass("export-onnx", run_pass("factorize", before, tmp_path, embedding=8), tmp_path)

    assert (128, 8) in {value.shape for value in initializers(after).values()}
    assert (128, 32) not in {value.shape for value in initializers(after).values()}
    plain = operators(run_pass("export-onnx", before, tmp_path))
    assert operators(after).count("MatMul") == plain.count("MatMul") + 1


@pytest.mark.parametrize(
    "architecture", ["DistilBertForSequenceClassification", "RobertaForSequenceClassification", "ElectraForSequenceClassification"]
)
def test_other_families_and_sentence_encoders_are_factorized(architecture: str, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", architecture))

    after = run_pass("factorize", before, tmp_path, rank=6, embedding=6)

    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), feeds), outputs(after, feeds), atol=1e-5)


def test_sentence_encoder_is_factorized_with_its_pooling(sentence_encoder: Path, tmp_path: Path) -> None:
    after = run_pass("factorize", artifact_of(sentence_encoder, "sentence-similarity"), tmp_path, rank=6, embedding=6)

    feeds = text_feeds(after, padded=True)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), feeds), outputs(after, feeds), atol=1e-5)


def test_a_weight_of_low_rank_loses_nothing(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_text_model(tmp_path / "model", "BertForSequenceClassification")
    state = load_file(folder / "model.safetensors")
    for name in (name for name in state if ".intermediate.dense.weight" in name):
        state[name] = torch.randn(64, 3) @ torch.randn(3, 32) / 8
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    before = artifact_of(folder)

    done = run_done("factorize", before, tmp_path, energy=0.99999, layers=("*.intermediate.dense",), multiple_of=1)

    assert {each["rank"] for each in done.figures["factorized"].values()} == {3}
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(done.value, feeds), outputs(before, feeds), atol=1e-4)


def test_looking_at_data_moves_the_outputs_less_than_not(tmp_path: Path, reviews: Data) -> None:
    from edgepipe.probes import feeds_of
    from edgepipe.readers import Sample

    before = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))
    name = "bert.encoder.layer.1.intermediate.dense"
    plain, aware = (
        load_torch(run_pass("factorize", before, tmp_path, data=reviews, rank=6, layers=(name,), method=method))
        for method in ("svd", "activation")
    )
    whole = load_torch(before)
    seen: list[Any] = []
    whole.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    samples: list[Sample] = [{"text": line.rsplit(",", 1)[0]} for line in Path(str(reviews.calibration)).read_text().splitlines()[1:]]
    import torch

    for sample in samples:
        whole(**{key: torch.from_numpy(value) for key, value in feeds_of(before, [sample]).items()})
    x = torch.cat([each.flatten(0, 1) for each in seen])

    def moved(module: Any) -> float:
        return float((x @ (weight_of(module.get_submodule(name)) - weight_of(whole.get_submodule(name))).T).norm())

    assert moved(aware) < 0.8 * moved(plain)


def test_a_model_with_tied_tables_names_the_other_layer(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    folder = write_model(tmp_path / "mlm", BertForMaskedLM(bert_config()))
    write_tokenizer(folder)
    before = artifact_of(folder, "fidelity")

    with pytest.raises(ModelError, match=r"tied to cls\.predictions\.decoder\.weight"):
        run_pass("factorize", before, tmp_path, embedding=8)
    with pytest.raises(ModelError, match=r"tied to bert\.embeddings\.word_embeddings\.weight"):
        run_pass("factorize", before, tmp_path, rank=4, layers=("cls.predictions.decoder",))
    after = load_torch(run_pass("factorize", before, tmp_path, rank=4))  # the layers inside have nothing to do with it
    assert after.cls.predictions.decoder.weight is after.bert.embeddings.word_embeddings.weight


def test_a_second_time_only_what_is_left_is_factorized(classifier: Path, tmp_path: Path) -> None:
    first = run_pass("factorize", artifact_of(classifier), tmp_path, rank=6, layers=("*.query", "*.key"))

    second = run_done("factorize", first, tmp_path, rank=4)

    assert not [name for name in second.figures["factorized"] if name.endswith((".query", ".key"))]
    with pytest.raises(ModelError, match="no token embedding table"):
        run_pass("factorize", run_pass("factorize", first, tmp_path, embedding=4), tmp_path, embedding=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 30}, ModelError, "no layer's product is smaller"),
        ({"energy": 1.0}, ModelError, "no layer's product is smaller"),
        ({"embedding": 31}, UsageError, "no smaller as a product of rank 31"),
        ({"rank": 4, "layers": ("*.nothing",)}, UsageError, 'no linear layer is named "\\*.nothing"'),
        ({"method": "activation"}, DataError, "needs calibration data"),
    ],
)
def test_what_saves_nothing_is_refused(options: dict[str, Any], error: Any, message: str, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        run_pass("factorize", artifact_of(classifier), tmp_path, **options)


@pytest.mark.parametrize(
    "options", [{"rank": 4, "ratio": 0.5}, {"embedding": 1.5}, {"embedding": 0}, {"embedding": 4, "layers": ("*",)}, {"rank": 0}]
)
def test_options_that_contradict_themselves_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Factorize(**options)
