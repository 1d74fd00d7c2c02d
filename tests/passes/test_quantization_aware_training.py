"""quantization-aware-training: weights leave on their grid, closer to what the model did than rounding alone would leave it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepipe.config import Data, Recipe, Task
from edgepipe.errors import DataError, PassError, UsageError
from edgepipe.loader import load_torch
from edgepipe.passes.quantization_aware_training import QuantizationAwareTraining
from edgepipe.probes import feeds_of
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.recipe_check import check_recipe
from edgepipe.request import Request, planned
from edgepipe.toml import parse
from tests.models import sentences, write_csv, write_images, write_text_model
from tests.passes.running import artifact_of, outputs, run_done, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepipe.artifact import Artifact

QAT = "quantization-aware-training"
FAST = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and on a busy machine two wait for each other at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Labelled texts to train and to judge on."""
    folder, rows = tmp_path_factory.mktemp("texts"), sentences(240)
    return Data(train=str(write_csv(folder / "train.csv", rows[:200])), dev=str(write_csv(folder / "dev.csv", rows[200:])))


def weights(artifact: Artifact) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_torch(artifact).state_dict().items()}


def off_grid(weight: np.ndarray, grid: Grid) -> float:
    """How far rounding [output, input] again would move it."""
    matrix = weight.reshape(len(weight), -1).T
    return float(np.abs(quantize("nearest", matrix, grid).dequantized() - matrix).max())


def is_layer(name: str, weight: np.ndarray) -> bool:
    return weight.ndim > 1 and "embeddings" not in name


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"bits": 4}, Grid(4, True, 32)),
        ({"bits": 8, "group_size": 0, "reduced_range": True}, Grid(8, True, 0, True)),
        ({"bits": 3, "symmetric": False, "group_size": 16}, Grid(3, False, 16)),
        ({"bits": 2, "symmetric": False}, Grid(2, False, 32)),
        ({"bits": 4, "learned_step": True}, Grid(4, True, 32)),
        ({"bits": 4, "activations": True, "group_size": -1}, Grid(4, True, -1)),
    ],
)
def test_weights_leave_on_their_grid_and_the_rest_as_it_was(
    options: dict[str, Any], grid: Grid, classifier: Path, texts: Data, tmp_path: Path
) -> None:
    before = artifact_of(classifier)

    after = run_pass(QAT, before, tmp_path, data=texts, **FAST, **options)

    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    for name, weight in new.items():
        if is_layer(name, weight):
            assert off_grid(weight, grid) < 1e-6, name
            assert off_grid(old[name], grid) > 1e-4, name
        elif "embeddings" in name and weight.ndim > 1:
            np.testing.assert_array_equal(weight, old[name])


def test_model_is_nearer_to_what_it_was_than_rounding_leaves_it(classifier: Path, texts: Data, tmp_path: Path) -> None:
    """Distillation alone, at 3 bits, judged on inputs that were not trained on."""
    before = artifact_of(classifier)
    rounded = load_torch(before)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if is_layer(name, parameter.numpy()):
                grid_values = quantize("nearest", parameter.numpy().T, Grid(3, True, 32)).dequantized()
                parameter.copy_(torch.from_numpy(grid_values.T))

    after = run_pass(QAT, before, tmp_path, data=texts, bits=3, distill=1.0, **FAST)

    feeds = feeds_of(before, [{"text": text} for text, _ in sentences(300, seed=9)[240:]])
    original = lead(load_torch(before), feeds)
    trained_gap = np.abs(lead(load_torch(after), feeds) - original).mean()
    rounded_gap = np.abs(lead(rounded, feeds) - original).mean()
    assert trained_gap < 0.5 * rounded_gap


def lead(module: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """By how much the second class is ahead: all that class probabilities depend on."""
    logits = torch_outputs(module, feeds)
    return logits[:, 1] - logits[:, 0]


def test_labels_teach_what_the_model_did_not_know(classifier: Path, texts: Data, tmp_path: Path) -> None:
    """The tiny classifier's weights are random; its labels follow from words."""
    before = artifact_of(classifier)

    after = run_pass(QAT, before, tmp_path, data=texts, distill=0.0, learning_rate=3e-3, epochs=6, batch_size=16)

    assert accuracy(after) > max(75.0, accuracy(before) + 10)


def accuracy(artifact: Artifact) -> float:
    samples = sentences(400, seed=9)[240:]
    wanted = np.array([artifact.program["labels"].index(label) for _, label in samples])
    found = torch_outputs(load_torch(artifact), feeds_of(artifact, [{"text": text} for text, _ in samples])).argmax(-1)
    return 100.0 * float((found == wanted).mean())


def test_result_is_a_plain_transformers_folder(classifier: Path, texts: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    after = run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, **FAST)

    module, info = AutoModelForSequenceClassification.from_pretrained(after.model.folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    feeds = text_feeds(after, padded=True)
    np.testing.assert_allclose(torch_outputs(module, feeds), outputs(after, feeds), atol=1e-5)
    exported = run_pass("export-onnx", after, tmp_path)
    np.testing.assert_allclose(outputs(exported, feeds), outputs(after, feeds), atol=1e-4)


def test_same_inputs_give_the_same_bytes_and_another_seed_others(classifier: Path, texts: Data, tmp_path: Path) -> None:
    before = artifact_of(classifier)

    first, again, other = (run_pass(QAT, before, tmp_path, data=texts, seed=seed, **FAST) for seed in (1, 1, 2))

    assert first.digest == again.digest != other.digest


def test_tables_go_on_a_grid_of_their_own(classifier: Path, texts: Data, tmp_path: Path) -> None:
    after = run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, bits=8, tables=4, **FAST)

    for name, weight in weights(after).items():
        if weight.ndim > 1 and "embeddings" in name:
            assert off_grid(weight, Grid(4, True, 32)) < 1e-6, name
        elif is_layer(name, weight):
            assert off_grid(weight, Grid(8, True, 32)) < 1e-6, name


@pytest.mark.parametrize("method", ["nearest", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_are_stored_in_few_bits_afterwards_are_the_trained_ones(
    method: str, symmetric: bool, classifier: Path, texts: Data, tmp_path: Path
) -> None:
    after = run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, tables=4, symmetric=symmetric, **FAST)
    exported = run_pass("export-onnx", after, tmp_path)

    stored = run_pass("quantize-weights", exported, tmp_path, data=texts, method=method, symmetric=symmetric, accuracy_level=0)

    assert stored.model.size_bytes < 0.5 * exported.model.size_bytes
    feeds = text_feeds(after, padded=True)
    np.testing.assert_allclose(outputs(stored, feeds), outputs(after, feeds), atol=1e-4)


def test_excluded_layers_stay_off_the_grid(classifier: Path, texts: Data, tmp_path: Path) -> None:
    after = weights(run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, exclude=["classifier", "bert.encoder.layer.0.*"], **FAST))

    assert off_grid(after["classifier.weight"], Grid(4, True, 32)) > 1e-4
    assert off_grid(after["bert.encoder.layer.0.intermediate.dense.weight"], Grid(4, True, 32)) > 1e-4
    assert off_grid(after["bert.encoder.layer.1.intermediate.dense.weight"], Grid(4, True, 32)) < 1e-6


def test_pruned_model_keeps_its_structure(classifier: Path, texts: Data, tmp_path: Path) -> None:
    given = texts.model_copy(update={"calibration": str(write_csv(tmp_path / "c.csv", sentences(300)[240:]))})
    pruned = run_pass("prune-ffn", artifact_of(classifier), tmp_path, data=given, ratio=0.5)

    after = run_pass(QAT, pruned, tmp_path, data=given, **FAST)

    assert json.loads((after.model.folder / "structure.json").read_text()) == json.loads(
        (pruned.model.folder / "structure.json").read_text()
    )
    assert off_grid(weights(after)["bert.encoder.layer.1.intermediate.dense.weight"], Grid(4, True, 32)) < 1e-6


def test_sentence_encoder_learns_from_itself(sentence_encoder: Path, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("dev", 1)):
        rows = sentences(60, seed=seed)
        lines = [f"{a},{b},{i % 5}\n" for i, ((a, _), (b, _)) in enumerate(zip(rows[::2], rows[1::2], strict=True))]
        (tmp_path / f"{split}.csv").write_text("text,text_pair,label\n" + "".join(lines))
    before = artifact_of(sentence_encoder, "sentence-similarity")
    data = Data(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.csv"))

    after = run_pass(QAT, before, tmp_path, data=data, bits=3, **FAST)

    assert (after.model.folder / "modules.json").is_file()
    ours, theirs = outputs(after, text_feeds(before)), outputs(before, text_feeds(before))
    assert (ours * theirs).sum(-1).min() > 0.9


@pytest.mark.parametrize("architecture", ["BertModel", "GPT2Model"])
def test_unlabelled_text_is_enough_for_fidelity(architecture: str, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("dev", 1)):
        write_csv(tmp_path / f"{split}.csv", [(text,) for text, _ in sentences(40, seed=seed)], ("text",))  # type: ignore[misc]
    before = artifact_of(write_text_model(tmp_path / "model", architecture), "fidelity")

    after = run_pass(QAT, before, tmp_path, data=Data(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.csv")), **FAST)

    if architecture == "GPT2Model":  # whose weights are [input, output]
        assert off_grid(weights(after)["h.0.mlp.c_fc.weight"].T, Grid(4, True, 32)) < 1e-6
    else:
        assert off_grid(weights(after)["encoder.layer.0.intermediate.dense.weight"], Grid(4, True, 32)) < 1e-6


def test_convolutions_are_grouped_over_input_channels_and_kernel(resnet: Path, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("dev", 1)):
        write_images(tmp_path / split, seed=seed)
    before = artifact_of(resnet, "image-classification")

    after = run_pass(QAT, before, tmp_path, data=Data(train=str(tmp_path / "train"), dev=str(tmp_path / "dev")), **FAST)

    convolutions = {name: weight for name, weight in weights(after).items() if weight.ndim == 4}
    assert convolutions
    assert all(off_grid(weight, Grid(4, True, 32)) < 1e-6 for weight in convolutions.values())
    statistics = {name: value for name, value in weights(after).items() if "running" in name}
    assert all(np.array_equal(value, weights(before)[name]) for name, value in statistics.items())


def test_tags_train(tmp_path: Path) -> None:
    names = {"num_labels": 3, "id2label": {0: "O", 1: "B-X", 2: "I-X"}, "label2id": {"O": 0, "B-X": 1, "I-X": 2}}
    before = artifact_of(write_text_model(tmp_path / "model", "BertForTokenClassification", **names), "token-classification")
    for split, seed in (("train", 0), ("dev", 1)):
        rows = [
            {"tokens": text.split(), "label": ["B-X" if word == "film" else "O" for word in text.split()]}
            for text, _ in sentences(80, seed=seed)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    data = Data(train=str(tmp_path / "train.jsonl"), dev=str(tmp_path / "dev.jsonl"))
    after = run_pass(QAT, before, tmp_path, data=data, distill=0.0, learning_rate=3e-3, epochs=5, batch_size=8)

    assert off_grid(weights(after)["bert.encoder.layer.0.intermediate.dense.weight"], Grid(4, True, 32)) < 1e-6


def test_progress_counts_steps_and_tells_the_loss(classifier: Path, texts: Data, tmp_path: Path) -> None:
    import io

    from edgepipe.worker import receive, run_job
    from tests.passes.running import job_for

    said = io.BytesIO()
    run_job(job_for(QAT, artifact_of(classifier), tmp_path, data=texts, max_samples=64, patience=9, **FAST), said)

    said.seek(0)
    messages = []
    while said.tell() < len(said.getvalue()):
        messages.append(receive(said))
    steps = [(done, total) for _, what, done, total in messages if what.startswith("training")]
    assert steps == [(step, 12) for step in range(1, 13)]
    assert any("dev loss" in what and "min left" in what for _, what, _, _ in messages)


def test_checks_are_those_of_a_model_that_only_changed_its_weights(classifier: Path, texts: Data, tmp_path: Path) -> None:
    done = run_done(QAT, artifact_of(classifier), tmp_path, data=texts, **FAST)

    assert [(check["name"], check["held"]) for check in done.checks] == [("same-signature", True), ("loads", True)]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_missing_data_is_named(split: str, classifier: Path, texts: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no {split} data"):
        run_pass(QAT, artifact_of(classifier), tmp_path, data=texts.model_copy(update={split: None}))


def test_build_without_training_data_is_refused_before_anything_runs(classifier: Path, texts: Data, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f'[[step]]\npass = "{QAT}"\n[[step]]\npass = "export-onnx"\n')
    given = Data(test=str(write_csv(tmp_path / "test.csv", sentences(20, seed=7))), dev=texts.dev)
    request = Request(
        str(classifier), ("host",), Task(name="text-classification"), data=given, recipe=str(tmp_path / "recipe.toml"), out=tmp_path / "out"
    )

    with pytest.raises(DataError, match=f"{QAT} needs train data"):
        planned(request)


def test_export_must_come_after_it(classifier: Path) -> None:
    recipe = Recipe.model_validate({"step": [{"pass": "export-onnx"}, {"pass": QAT}]})

    with pytest.raises(UsageError, match="must come before export-onnx"):
        check_recipe(recipe, artifact_of(classifier))


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": 0.0},
        {"bits": 5},
        {"tables": 6},
        {"group_size": -2},
        {"epochs": 0},
        {"distill": 1.5},
        {"learned_step": True, "symmetric": False},
    ],
)
def test_options_without_sense_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(QuantizationAwareTraining, options, source=lambda loc: ".".join(loc))

    assert next(iter(options)) in str(caught.value)


def test_pattern_that_no_layer_has_is_an_error(classifier: Path, texts: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layer is named"):
        run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, exclude=["bert.encoder.layer.7.*"])


def test_model_without_layers_to_quantize_is_an_error(classifier: Path, texts: Data, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="no linear layer"):
        run_pass(QAT, artifact_of(classifier), tmp_path, data=texts, exclude=["*"])


def test_unlabelled_data_without_distillation_is_an_error(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("dev", 1)):
        write_csv(tmp_path / f"{split}.csv", [(text,) for text, _ in sentences(20, seed=seed)], ("text",))  # type: ignore[misc]
    before = artifact_of(write_text_model(tmp_path / "model", "BertModel"), "fidelity")

    with pytest.raises(DataError, match="no classes"):
        run_pass(QAT, before, tmp_path, data=Data(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.csv")), distill=0.0)


def test_training_that_diverges_is_an_error_and_leaves_nothing(classifier: Path, texts: Data, tmp_path: Path) -> None:
    """A weight near the largest float32 makes a loss that is no number."""
    before = artifact_of(classifier)
    module = load_torch(before)
    with torch.no_grad():
        module.classifier.weight.mul_(1e38)
    module.save_pretrained(tmp_path / "wild")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "wild" / name).write_bytes((classifier / name).read_bytes())

    with pytest.raises(PassError, match="diverged"):
        run_pass(QAT, artifact_of(tmp_path / "wild"), tmp_path, data=texts, distill=0.5, **FAST)

    assert not list(tmp_path.glob(f"{QAT}-*/model"))
