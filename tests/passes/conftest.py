"""Models and data that several pass tests start from; built once, never written to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgepipe.config import Data
from tests.models import sentences, write_adapter, write_csv, write_images, write_sentence_encoder, write_vision_model
from tests.passes.running import artifact_of, run_pass

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def adapter(models: Path, classifier: Path) -> Path:
    """LoRA on query and value, with a head of its own."""
    return write_adapter(classifier, models / "adapter")


@pytest.fixture(scope="session")
def vit(models: Path) -> Path:
    return write_vision_model(models / "vit", "ViTForImageClassification")


@pytest.fixture(scope="session")
def resnet(models: Path) -> Path:
    return write_vision_model(models / "resnet", "ResNetForImageClassification")


@pytest.fixture(scope="session")
def sentence_encoder(models: Path) -> Path:
    """Mean pooling and normalisation."""
    return write_sentence_encoder(models / "sentence_encoder")


@pytest.fixture(scope="session")
def reviews(models: Path) -> Data:
    """Forty labelled texts for calibration."""
    return Data(calibration=str(write_csv(models / "reviews.csv", sentences(40))))


@pytest.fixture(scope="session")
def pictures(models: Path) -> Data:
    """Twelve labelled images for calibration."""
    return Data(calibration=str(write_images(models / "pictures")))


@pytest.fixture(scope="session")
def exported(classifier: Path, models: Path) -> Artifact:
    """The classifier as ONNX."""
    return run_pass("export-onnx", artifact_of(classifier), models)


@pytest.fixture(scope="session")
def optimised(exported: Artifact, models: Path) -> Artifact:
    """The exported classifier with every fusion."""
    return run_pass("optimize-graph", exported, models)
