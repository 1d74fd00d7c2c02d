"""What prune-heads and prune-ffn go by: each importance, and counts that are given layer by layer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, UsageError
from edgepipe.importance.moments import second_moments
from edgepipe.loader import load_torch
from edgepipe.passes import get_pass
from edgepipe.structure import encoder_layers
from edgepipe.worker_context import WorkerContext
from tests.models import write_csv
from tests.passes.cutting import assert_cut_cleanly, kept_rows, quietened, structure
from tests.passes.running import artifact_of, job_for, run_pass, text_feeds


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "activation"])
@pytest.mark.parametrize(("name", "part", "units"), [("prune-heads", "heads", (1, 3)), ("prune-ffn", "ffn", (7, 40))])
def test_every_importance_keeps_what_is_asked_for_in_each_layer(
    name: str, part: str, units: tuple[int, ...], importance: str, classifier: Path, reviews: Data, tmp_path: Path
) -> None:
    before = artifact_of(classifier)

    after = run_pass(name, before, tmp_path, data=reviews, importance=importance, keep=units)

    assert [layer[part] for layer in structure(after)] == list(units)
    assert_cut_cleanly(before, after, text_feeds(before, padded=True))


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_what_is_never_written_goes_first_by_other_importances_too(
    importance: str, classifier: Path, reviews: Data, tmp_path: Path
) -> None:
    """Neurons 20 to 35 and head 2 alone have weights on both sides."""
    from safetensors.torch import load_file, save_file

    folder = quietened(classifier, tmp_path / "model", {})
    state = load_file(folder / "model.safetensors")
    silent = {"neurons": [n for n in range(64) if not 20 <= n < 36], "rows": [n for n in range(32) if n // 8 != 2]}
    for layer in (f"bert.encoder.layer.{index}" for index in (0, 1)):
        state[f"{layer}.output.dense.weight"][:, silent["neurons"]] *= 0.01
        state[f"{layer}.intermediate.dense.weight"][silent["neurons"]] *= 0.01
        state[f"{layer}.attention.output.dense.weight"][:, silent["rows"]] *= 0.01
        for part in ("query", "key", "value"):
            state[f"{layer}.attention.self.{part}.weight"][silent["rows"]] *= 0.01
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    before = artifact_of(folder)

    heads = run_pass("prune-heads", before, tmp_path, data=reviews, importance=importance, ratio=0.75, scope="layer")
    neurons = run_pass("prune-ffn", before, tmp_path, data=reviews, importance=importance, ratio=0.75)

    for whole, cut, narrow in zip(*(encoder_layers(load_torch(each)) for each in (before, heads, neurons)), strict=True):
        assert kept_rows(whole.attention.query, cut.attention.query) == list(range(16, 24))
        assert kept_rows(whole.ffn_in, narrow.ffn_in) == list(range(20, 36))


def test_weights_alone_need_no_data_and_the_others_say_so(classifier: Path, tmp_path: Path) -> None:
    run_pass("prune-heads", artifact_of(classifier), tmp_path, importance="magnitude")

    for importance in ("taylor", "activation"):
        with pytest.raises(DataError, match="needs calibration data"):
            run_pass("prune-ffn", artifact_of(classifier), tmp_path, importance=importance)


def test_padding_does_not_move_what_is_measured(classifier: Path, tmp_path: Path) -> None:
    texts = [("good film", "positive"), ("the film was slow and dull and long and poor and cold", "negative")]
    both, *each = (Data(calibration=str(write_csv(tmp_path / f"{i}.csv", rows))) for i, rows in enumerate([texts, texts[:1], texts[1:]]))
    artifact = artifact_of(classifier)

    def energies(data: Data) -> np.ndarray:
        module = load_torch(artifact)
        layers = {str(index): layer.ffn_out for index, layer in enumerate(encoder_layers(module))}
        ctx = WorkerContext(job_for("prune-ffn", artifact, tmp_path, data=data), get_pass("prune-ffn"), io.BytesIO())
        return np.stack([value.numpy() for value in second_moments(module, layers, artifact, ctx, "test").values()])

    lengths = [len(text.split()) + 2 for text, _ in texts]
    apart = sum(energies(data) * length for data, length in zip(each, lengths, strict=True)) / sum(lengths)
    np.testing.assert_allclose(energies(both), apart, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("prune-heads", (2,), "1 numbers for 2 layers"),
        ("prune-heads", (2, 5), "layer 1 cannot keep 5 of its 4 heads"),
        ("prune-ffn", (65, 8), "layer 0 cannot keep 65 of its 64 neurons"),
    ],
)
def test_counts_that_no_layer_can_keep_are_refused(
    name: str, keep: tuple[int, ...], message: str, classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run_pass(name, artifact_of(classifier), tmp_path, importance="magnitude", keep=keep)

    assert caught.value.where == f"{name}.keep"


@pytest.mark.parametrize("name", ["prune-heads", "prune-ffn"])
@pytest.mark.parametrize("options", [{"keep": [0, 2]}, {"keep": [2, 2], "ratio": 0.5}, {"ratio": 1.0}, {"importance": "luck"}])
def test_options_that_contradict_themselves_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_pass(name).options(**options)
