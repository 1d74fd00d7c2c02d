"""recover by what it trains and in how much memory: what leaves loads, exports, can be pruned further, and is the same after a kill."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import ModelError, PassError, UsageError
from edgepipe.loader import load_torch
from edgepipe.passes.recover import Recover
from edgepipe.training.methods import METHODS
from edgepipe.worker import run_job
from tests.models import write_classifier, write_images, write_sentence_encoder, write_text_model, write_vision_model
from tests.passes.recovering import recovered, reviews
from tests.passes.running import artifact_of, image_feeds, job_for, outputs, run_pass, text_feeds, torch_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepipe.artifact import Artifact

STAY = {"bottleneck": {"adapter": 24}, "prefix": {"prefix": 16}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def teacher(classifier: Path) -> Artifact:
    return artifact_of(classifier)


@pytest.fixture(scope="module")
def texts(home: Path) -> Data:
    return reviews(home / "texts")


@pytest.fixture(scope="module")
def student(home: Path, texts: Data) -> Artifact:
    """Fewer heads, neurons and layers, and products of two: everything that a method may meet."""
    whole = artifact_of(write_classifier(home / "other", seed=3))
    layers = run_pass("prune-layers", whole, home, layers=[1])
    heads = run_pass("prune-heads", layers, home, ratio=0.5, importance="magnitude")
    ffn = run_pass("prune-ffn", heads, home, ratio=0.5, importance="magnitude")
    return run_pass("factorize", ffn, home, layers=["*.value", "*.attention.output.dense"], rank=4)


def structure(artifact: Artifact) -> dict[str, Any]:
    path = artifact.model.folder / "structure.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_pruned_student_and_its_model_loads_and_exports(
    name: str, student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path
) -> None:
    done = recovered(student, teacher, tmp_path, texts, train=name, epochs=3)

    curve = [loss for _, loss in done.figures["training"]["dev"]]
    assert all(check["held"] for check in done.checks)
    assert name == "movement" or min(curve) < curve[0]
    assert {key: size for key, size in structure(done.value).items() if key in ("adapter", "prefix")} == STAY.get(name, {})
    feeds = text_feeds(student, padded=True)
    exported = run_pass("export-onnx", done.value, tmp_path, data=texts)
    np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(load_torch(done.value), feeds), atol=1e-4)


@pytest.mark.parametrize("name", ["bottleneck", "prefix"])
@pytest.mark.parametrize(
    "architecture", ["DistilBertForSequenceClassification", "RobertaForSequenceClassification", "ElectraForSequenceClassification"]
)
def test_what_stays_in_a_model_does_not_see_neighbours_or_padding(name: str, architecture: str, texts: Data, tmp_path: Path) -> None:
    """A row alone, and with longer ones: the mask was extended to the right side."""
    model = artifact_of(write_text_model(tmp_path / "model", architecture))
    other = artifact_of(write_text_model(tmp_path / "other", architecture, seed=4))
    done = recovered(other, model, tmp_path, texts, train=name, epochs=1)

    exported = run_pass("export-onnx", done.value, tmp_path, data=texts)

    feeds = text_feeds(other, batch=3, length=12, padded=True)
    alone = {key: value[1:2, :6] for key, value in feeds.items()}
    np.testing.assert_allclose(outputs(exported, feeds)[1:2], outputs(exported, alone), atol=1e-5)
    np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(load_torch(done.value), feeds), atol=1e-4)


def test_prefixes_and_adapters_of_images_and_sentences_export(tmp_path: Path, texts: Data) -> None:
    pictures = Data(train=str(write_images(tmp_path / "pictures")), dev=str(write_images(tmp_path / "others", seed=1)))
    vit = artifact_of(write_vision_model(tmp_path / "vit", "ViTForImageClassification"), "image-classification")
    vit_student = artifact_of(write_vision_model(tmp_path / "vit2", "ViTForImageClassification", seed=2), "image-classification")
    encoder = artifact_of(write_sentence_encoder(tmp_path / "encoder"), "fidelity")
    encoder_student = artifact_of(write_sentence_encoder(tmp_path / "encoder2", seed=2), "fidelity")

    for name in ("prefix", "bottleneck"):
        for ours, theirs, data, feeds in (
            (vit_student, vit, pictures, image_feeds()),
            (encoder_student, encoder, texts, text_feeds(encoder_student, padded=True)),
        ):
            done = recovered(ours, theirs, tmp_path, data, train=name)
            exported = run_pass("export-onnx", done.value, tmp_path, data=data)
            np.testing.assert_allclose(outputs(exported, feeds), torch_outputs(load_torch(done.value), feeds), atol=1e-4)


def test_heads_neurons_and_width_can_be_cut_after_training_added_to_them(teacher: Artifact, texts: Data, tmp_path: Path) -> None:
    other = artifact_of(write_classifier(tmp_path / "other", seed=3))
    both = other
    for name in ("prefix", "bottleneck"):
        both = recovered(both, teacher, tmp_path, texts, train=name).value

    cut = run_pass("prune-heads", both, tmp_path, ratio=0.5, importance="magnitude")
    cut = run_pass("prune-ffn", cut, tmp_path, ratio=0.5, importance="magnitude")
    cut = run_pass("prune-width", cut, tmp_path, data=Data(calibration=texts.dev), width=16)

    assert load_torch(cut).bert.encoder.layer[0].output.dense.adapter.down.weight.shape == (24, 16)
    assert structure(cut)["prefix"] == 16 and structure(cut)["adapter"] == 24
    assert load_torch(cut).bert.encoder.layer[0].attention.self.key.prefix.shape == (16, 16)
    assert np.isfinite(torch_outputs(load_torch(cut), text_feeds(cut))).all()


def test_a_layer_with_an_adapter_is_not_factorized(teacher: Artifact, texts: Data, tmp_path: Path) -> None:
    other = artifact_of(write_classifier(tmp_path / "other", seed=3))
    done = recovered(other, teacher, tmp_path, texts, train="bottleneck")

    with pytest.raises(ModelError, match="adapter or prefix"):
        run_pass("factorize", done.value, tmp_path, layers=["*.attention.output.dense"], rank=4)


class KilledAt:
    """A worker's answers that end with the process, at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def write(self, message: bytes) -> None:
        _, what, done, _ = pickle.loads(message[8:])
        if what.startswith("training") and done == self._step:
            raise KeyboardInterrupt

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    "options",
    [
        *({"train": name} for name in METHODS),
        {"train": "movement", "optimizer": "adamw-8bit", "accumulate": 2},
        {"precision": "float16", "gradient_checkpointing": True, "dropout": 0.1},
        {"precision": "bfloat16", "train": "fish"},
    ],
)
def test_killed_run_goes_on_to_the_same_bits(
    options: dict[str, Any], student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path
) -> None:
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, **options}
    whole = recovered(student, teacher, tmp_path, texts, checkpoints=tmp_path / "a", **settings)
    job = replace(job_for("recover", student, tmp_path, data=texts, **settings), teacher=teacher, checkpoints=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, KilledAt(8))  # type: ignore[arg-type]

    rest = recovered(student, teacher, tmp_path, texts, checkpoints=tmp_path / "b", **settings)

    assert rest.value.digest == whole.value.digest
    assert rest.figures == whole.figures


def test_two_processes_give_what_one_gives(student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path) -> None:
    one = recovered(student, teacher, tmp_path, texts)
    two = recovered(student, teacher, tmp_path, texts, processes=2)

    ours, theirs = (each.figures["training"] for each in (two, one))
    np.testing.assert_allclose(np.array(ours["dev"]), np.array(theirs["dev"]), rtol=1e-4)
    assert ours["best_step"] == theirs["best_step"]
    for (name, value), other in zip(load_torch(two.value).named_parameters(), load_torch(one.value).parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)
    assert torch.get_num_threads() == 1 and not torch.distributed.is_initialized()


class PeersEndAt(KilledAt):
    """A worker's answers that end the processes that train along, at a step."""

    def write(self, message: bytes) -> None:
        try:
            super().write(message)
        except KeyboardInterrupt:
            for child in psutil.Process().children():
                if "edgepipe.training.processes" in " ".join(child.cmdline()):
                    child.kill()


def test_process_that_ends_early_is_told(student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path) -> None:
    job = replace(job_for("recover", student, tmp_path, data=texts, processes=2, batch_size=8), teacher=teacher, checkpoints=tmp_path / "a")

    with pytest.raises(PassError, match="ended early"):
        run_job(job, PeersEndAt(3))  # type: ignore[arg-type]

    assert torch.get_num_threads() == 1 and not torch.distributed.is_initialized()


def test_pieces_and_layers_computed_again_change_nothing_but_memory(
    student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path
) -> None:
    plain = recovered(student, teacher, tmp_path, texts).figures["training"]["dev"]

    saving = recovered(student, teacher, tmp_path, texts, accumulate=4, gradient_checkpointing=True).figures["training"]["dev"]

    np.testing.assert_allclose(np.array(saving), np.array(plain), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, 'rank is for train = "lora"'),
        ({"train": "lora", "density": 0.3}, 'density is for train = "movement"'),
        ({"train": "adapters"}, "train"),
        ({"density": 1.0, "train": "movement"}, "density"),
        ({"accumulate": 2, "objectives": {"contrastive": 1.0}}, "compares all of its samples"),
        ({"processes": 2, "sampling": "loss"}, "processes share the samples"),
        ({"processes": 2, "device": "cuda"}, "processes are for CPUs"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_options_that_do_not_fit_each_other_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recover(**options)


@pytest.mark.parametrize("name", ["bottleneck", "prefix"])
def test_training_the_same_addition_twice_is_an_error(name: str, teacher: Artifact, texts: Data, tmp_path: Path) -> None:
    other = artifact_of(write_classifier(tmp_path / "other", seed=3))
    done = recovered(other, teacher, tmp_path, texts, train=name)

    with pytest.raises(PassError, match="already"):
        recovered(done.value, teacher, tmp_path, texts, train=name)
    assert recovered(done.value, teacher, tmp_path, texts, train="lora").value.digest != done.value.digest


def test_device_that_is_not_there_is_an_error(
    student: Artifact, teacher: Artifact, texts: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # wherever this runs

    with pytest.raises(UsageError, match="no CUDA device"):
        recovered(student, teacher, tmp_path, texts, device="cuda")
