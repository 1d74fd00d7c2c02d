"""Raw figures from real processes of the local runner: candidate and baseline over the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepipe.artifact import Artifact
from edgepipe.config import Data, Task
from edgepipe.driver import driver_module
from edgepipe.gaps import gap_of, summary
from edgepipe.intake import find_source, make_artifact
from edgepipe.measure import Measurement, measure
from edgepipe.profile import host_profile
from edgepipe.progress import Silent
from edgepipe.runners import runner_for
from edgepipe.store import Store
from edgepipe.tasks import load_task
from edgepipe.tasks.token_classification import entities
from tests.models import sentences, write_tokenizer
from tests.onnx_models import bag_of_words, one_node, sentence_embedder, word_tagger

LABELS = ("negative", "positive")
SAMPLES = [{"text": text, "label": label} for text, label in sentences(41)]


def build(folder: Path, model: Any, task: str, labels: tuple[str, ...] = ()) -> Artifact:
    """An artifact in a store, as `measure` takes it."""
    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx")
    write_tokenizer(folder)
    artifact = make_artifact(find_source(str(folder)), (), load_task(Task(name=task)), labels, Data(max_length=64), None)
    return Store(folder / "cache").put(artifact)


def run(candidate: Artifact, baseline: Artifact, task: str, samples: list[dict[str, Any]]) -> Measurement:
    return measure(candidate, baseline, runner_for(host_profile()), load_task(Task(name=task)), samples, 1, Silent())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Two classifiers of unlike weights: candidate and baseline."""
    folder = tmp_path_factory.mktemp("measure")
    first, second = (build(folder / str(seed), bag_of_words(seed=seed), "text-classification", LABELS) for seed in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def measured(models: tuple[Artifact, Artifact]) -> Measurement:
    return run(*models, "text-classification", SAMPLES)


def test_every_sample_is_scored_once_by_both(measured: Measurement) -> None:
    assert len(measured.baseline_counts) == len(measured.candidate_counts) == len(SAMPLES)
    assert {count for row in measured.candidate_counts for count in row} == {0.0, 1.0}


def test_scores_do_not_depend_on_which_is_the_baseline(models: tuple[Artifact, Artifact], measured: Measurement) -> None:
    candidate, baseline = models

    swapped = run(baseline, candidate, "text-classification", SAMPLES)

    assert (swapped.candidate_counts, swapped.baseline_counts) == (measured.baseline_counts, measured.candidate_counts)


def test_changed_samples_and_classes_agree_with_the_scores(measured: Measurement) -> None:
    differing = [index for index, (a, b) in enumerate(zip(measured.baseline_counts, measured.candidate_counts, strict=True)) if a != b]

    assert [entry["input"] for entry in measured.changed] == [SAMPLES[index]["text"] for index in differing] != []
    assert sum(entry["n"] for entry in measured.classes.values()) == len(SAMPLES)
    assert sum(entry["candidate"] for entry in measured.classes.values()) == sum(row[0] for row in measured.candidate_counts)


def test_every_condition_is_timed_on_both(measured: Measurement) -> None:
    conditions = [(timing.batch, timing.length, timing.end_to_end) for timing in measured.timings]

    assert conditions == [
        (1, "task", False),
        (1, "task", True),
        (1, "16", False),
        (1, "64", False),
        (8, "64", False),
    ]  # 64 is the model's limit
    for timing in measured.timings:
        assert len(timing.baseline_ms) == len(timing.candidate_ms) > 0
        assert min(timing.baseline_ms + timing.candidate_ms) > 0
    assert all(total >= model for model, total in zip(measured.timings[0].candidate_ms, measured.timings[1].candidate_ms, strict=True))


def test_float_model_is_the_same_plain_batched_and_padded(measured: Measurement) -> None:
    for found in (measured.parity, measured.batch, measured.padding):
        assert found["cosine"] == pytest.approx(1.0)
        assert found["max_abs"] < 1e-5
        assert found["label_agreement"] == 1.0
    assert measured.parity["n"] == len(SAMPLES)


def test_memory_is_that_of_a_process_that_holds_the_runtime(measured: Measurement) -> None:
    assert set(measured.memory) == {"candidate", "baseline"}
    assert all(20_000_000 < value < 2_000_000_000 for value in measured.memory.values())


def test_tags_are_scored_at_the_first_piece_of_each_word(tmp_path: Path) -> None:
    tagger = build(tmp_path / "m", word_tagger(), "token-classification", ("O", "B-X", "I-X"))
    sample = {"tokens": ["good", "xy", "film", "\u200b", "bad"], "label": ["O"] * 5}

    found = run(tagger, tagger, "token-classification", [sample])

    tags = [tag for _, tag in driver_module().Driver(str(tagger.model.folder.parent)).answer(sample)["tags"]]
    assert len(tags) == 5
    assert found.candidate_counts == [[0.0, len(entities(tags)), 0.0]]
    assert found.candidate_counts[0][1] > 0


def test_pairs_are_compared_by_their_embeddings(tmp_path: Path) -> None:
    embedder = build(tmp_path / "m", sentence_embedder(), "sentence-similarity")
    samples = [
        {"text": "good film", "text_pair": pair, "label": score} for pair, score in (("film good", 5), ("bad plot", 1), ("good plot", 3))
    ]

    found = run(embedder, embedder, "sentence-similarity", samples)

    assert found.candidate_counts[0] == [pytest.approx(1.0), 5.0]
    assert found.candidate_counts[1][0] < found.candidate_counts[2][0] < 0.999
    assert found.changed == []


def test_plain_tensors_have_no_batch_to_vary(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    onnx.save_model(one_node("Relu"), tmp_path / "m" / "model.onnx")
    artifact = make_artifact(find_source(str(tmp_path / "m")), (), load_task(Task(name="fidelity")), (), Data(), None)
    kept = Store(tmp_path / "cache").put(artifact)
    samples = [{"tensors": {"x": np.arange(-3, 3, dtype=np.float32)}} for _ in range(3)]

    found = run(kept, kept, "fidelity", samples)

    assert load_task(Task(name="fidelity")).metric(np.array(found.candidate_counts)) == pytest.approx(100.0)
    assert (found.batch, found.padding) == ({}, {})
    assert found.parity["max_abs"] == 0.0


@pytest.mark.parametrize("wrong", [np.array([[np.nan, 1.0]]), np.array([[1.0, 2.0, 3.0]]), np.array([[np.inf, 1.0]])])
def test_outputs_that_are_no_numbers_or_of_another_shape_are_as_far_apart_as_can_be(wrong: np.ndarray) -> None:
    found = summary([gap_of({"y": np.array([[1.0, 2.0]])}, {"y": wrong})])

    assert found["cosine"] == 0.0
    assert found["label_agreement"] == 0.0
    json.dumps(found, allow_nan=False)
