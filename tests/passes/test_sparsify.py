"""sparsify: exactly the zeros that were asked for, where they cost least, and a model that compresses better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, ModelError, PassError
from edgepipe.linear_layers import linear_layers
from edgepipe.loader import load_torch
from edgepipe.passes.sparsify import Sparsify
from edgepipe.sparsity import Pattern, lowest
from edgepipe.sparsity.magnitude import magnitude
from edgepipe.sparsity.sparsegpt import sparsegpt
from edgepipe.sparsity.wanda import wanda
from tests.models import bert_config, write_model, write_text_model, write_tokenizer
from tests.passes.running import artifact_of, initializers, outputs, run_done, run_pass, text_feeds

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = st.sampled_from([Pattern.of("2:4"), Pattern.of("4:8"), Pattern.of("1:4"), Pattern(0.5), Pattern(0.3), Pattern(0.9)])


def layer_and_inputs(seed: int, rows: int = 24, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A weight [out, in] and inputs [n, in] that go together, of unlike sizes, as activations do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((300, width)) @ (rng.standard_normal((width, width)) / 4 + np.eye(width))
    return rng.standard_normal((rows, width)).astype(np.float32), (mixed * np.exp(rng.standard_normal(width))).astype(np.float32)


def made_sparse(method: str, weight: np.ndarray, x: np.ndarray, pattern: Pattern) -> np.ndarray:
    moments = (x.T @ x / len(x)).astype(np.float32)
    if method == "magnitude":
        return magnitude(weight, pattern)
    return wanda(weight, np.diagonal(moments), pattern) if method == "wanda" else sparsegpt(weight, moments, pattern)


def check_zeros(weight: np.ndarray, pattern: Pattern) -> None:
    zeros = weight == 0
    if pattern.group:
        assert (zeros.reshape(len(weight), -1, pattern.group).sum(-1) == pattern.cut).all()
    else:
        assert abs(zeros.mean() - pattern.ratio) < 0.02


@given(st.integers(0, 1000), st.sampled_from(METHODS), PATTERNS)
@settings(deadline=None, max_examples=40)
def test_every_method_gives_exactly_the_pattern(seed: int, method: str, pattern: Pattern) -> None:
    weight, x = layer_and_inputs(seed)

    sparse = made_sparse(method, weight, x, pattern)

    check_zeros(sparse, pattern)
    assert sparse.dtype == np.float32
    if method != "sparsegpt":
        np.testing.assert_array_equal(sparse[sparse != 0], weight[sparse != 0])


@given(st.integers(0, 1000), PATTERNS)
@settings(deadline=None, max_examples=25)
def test_looking_at_inputs_moves_outputs_less(seed: int, pattern: Pattern) -> None:
    weight, x = layer_and_inputs(seed)

    by_size, by_input, moved = (float(np.linalg.norm(x @ (made_sparse(method, weight, x, pattern) - weight).T)) for method in METHODS)

    assert moved < by_input < by_size


@given(st.integers(0, 1000), st.sampled_from([Pattern(0.5), Pattern.of("2:4")]))
@settings(deadline=None, max_examples=10)
def test_blocks_are_walked_through_to_the_end(seed: int, pattern: Pattern) -> None:
    weight, x = layer_and_inputs(seed, rows=8, width=300)  # of 128

    check_zeros(sparsegpt(weight, x.T @ x / len(x), pattern), pattern)


@given(st.integers(0, 1000), PATTERNS, st.booleans())
def test_the_lowest_scores_go(seed: int, pattern: Pattern, per_row: bool) -> None:
    scores = np.random.default_rng(seed).integers(0, 5, (6, 24)).astype(float)  # many are equal

    gone = lowest(scores, pattern, per_row=per_row)

    places = (scores.reshape(-1, pattern.group), gone.reshape(-1, pattern.group)) if pattern.group else (scores, gone)
    for row, cut in zip(*places, strict=True) if pattern.group or per_row else [(scores.ravel(), gone.ravel())]:
        assert row[cut].max(initial=-1) <= row[~cut].min(initial=9)
    assert gone.sum() == (scores.size // pattern.group * pattern.cut if pattern.group else gone.sum())


def test_inputs_that_are_always_zero_are_no_trouble() -> None:
    weight, x = layer_and_inputs(0)
    x[:, 3:9] = 0

    sparse = sparsegpt(weight, x.T @ x / len(x), Pattern(0.5))

    assert np.isfinite(sparse).all()
    check_zeros(sparse, Pattern(0.5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"pattern": "2:4"}])
def test_a_sparse_model_reports_zeros_and_what_they_are_worth(method: str, options: dict[str, Any], reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))

    done = run_done("sparsify", before, tmp_path, data=reviews, method=method, **options)

    module = load_torch(done.value)
    layers = linear_layers(module, (), "")
    assert len(layers) == 12
    for layer in layers.values():
        check_zeros(layer.weight.detach().numpy(), Pattern.of(options["pattern"]) if "pattern" in options else Pattern(options["ratio"]))
    check = done.checks[0]
    zeros = sum(int((p == 0).sum()) for p in module.state_dict().values() if p.is_floating_point())
    assert check["value"] == pytest.approx(zeros / done.value.model.parameters)
    assert "compressed by zlib" in check["detail"]
    assert done.value.model.size_bytes == pytest.approx(before.model.size_bytes, rel=0.01)  # as large as it was
    exported = run_pass("export-onnx", done.value, tmp_path)
    feeds = text_feeds(before, padded=True)
    np.testing.assert_allclose(outputs(exported, feeds), outputs(done.value, feeds), atol=1e-5)
    products = [value for value in initializers(exported).values() if value.shape in ((32, 64), (64, 32))]
    assert all((value == 0).mean() == pytest.approx(options.get("ratio", 0.5), abs=0.02) for value in products)


def test_only_named_layers_are_touched(reviews: Data, tmp_path: Path) -> None:
    before = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))

    after = run_pass("sparsify", before, tmp_path, data=reviews, layers=("*.layer.1.output.dense",))

    whole, sparse = load_torch(before), load_torch(after)
    changed = [name for name, value in whole.state_dict().items() if not (value == sparse.state_dict()[name]).all()]
    assert changed == ["bert.encoder.layer.1.output.dense.weight"]


def test_a_width_that_the_pattern_does_not_divide_is_named(classifier: Path, reviews: Data, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="query reads 32 values, which is no multiple of 5"):
        run_pass("sparsify", artifact_of(classifier), tmp_path, data=reviews, pattern="3:5")


def test_a_tied_weight_is_refused_and_another_is_not(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    folder = write_model(tmp_path / "mlm", BertForMaskedLM(bert_config()))
    write_tokenizer(folder)

    with pytest.raises(ModelError, match=r"tied to bert\.embeddings"):
        run_pass("sparsify", artifact_of(folder, "fidelity"), tmp_path, method="magnitude", layers=("cls.*",))


def test_a_share_too_small_for_any_weight_changes_nothing(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="changed nothing"):
        run_pass("sparsify", artifact_of(classifier), tmp_path, method="magnitude", ratio=1e-5)


@pytest.mark.parametrize(
    "options", [{"pattern": "4:4"}, {"pattern": "2/4"}, {"pattern": "0:4"}, {"pattern": "2:4", "ratio": 0.5}, {"ratio": 1}]
)
def test_patterns_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sparsify(**options)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_methods_that_look_at_data_ask_for_it(method: str, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        run_pass("sparsify", artifact_of(classifier), tmp_path, method=method)
