"""`edgepipe init`: the project file it writes is one that edgepipe reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgepipe.cli import run
from edgepipe.config import Project, load_project
from tests.models import sentences, write_csv
from tests.onnx_models import CONFIG, write_onnx_classifier


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a model in it."""
    write_onnx_classifier(tmp_path / "models/m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(*arguments: str, file: str = "edgepipe.toml") -> Project:
    assert run(["init", *arguments]) == 0
    return load_project(Path(file))


def test_project_names_the_model_its_labels_and_task(here: Path) -> None:
    project = written("models/m")

    assert project.model == str(here / "models/m")
    assert project.task is not None
    assert (project.task.name, project.task.labels) == ("text-classification", ("negative", "positive"))


def test_labels_of_any_text_are_written_so_that_they_read_back(here: Path) -> None:
    labels = {"0": 'the "good"', "1": "back\\slash", "2": "it's #1", "3": "schön"}
    (here / "models/m/config.json").write_text(json.dumps({**CONFIG, "id2label": labels}))

    project = written("models/m")

    assert project.task is not None
    assert project.task.labels == tuple(labels.values())


def test_adapters_and_data_beside_it_are_found(here: Path) -> None:
    for name in ("it's", "other"):
        (here / name).mkdir()
        (here / name / "adapter_config.json").write_text("{}")
    for name in ("train.csv", "test.jsonl", "notes.csv"):
        (here / name).touch()

    project = written("models/m")

    assert project.adapters == (str(here / "it's"), str(here / "other"))
    assert (project.data.train, project.data.test, project.data.file) == (str(here / "train.csv"), str(here / "test.jsonl"), None)


def test_lone_data_file_serves_all_roles(here: Path) -> None:
    write_csv(here / "reviews.csv", sentences(4))

    assert written("models/m").data.file == str(here / "reviews.csv")


def test_without_data_none_is_named(here: Path) -> None:
    project = written("models/m")

    assert (project.data.file, project.data.test) == (None, None)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForTokenClassification", "token-classification"),
        ("ViTForImageClassification", "image-classification"),
        ("BertModel", "fidelity"),
    ],
)
def test_task_follows_from_the_architecture(here: Path, architecture: str, task: str) -> None:
    (here / "models/m/config.json").write_text(json.dumps({**CONFIG, "architectures": [architecture]}))

    project = written("models/m")

    assert project.task is not None
    assert project.task.name == task


def test_file_elsewhere_still_points_at_the_same_things(here: Path) -> None:
    (here / "train.csv").touch()
    (here / "sub").mkdir()

    project = written("models/m", "--out", "sub/mine.toml", file="sub/mine.toml")

    assert project.model is not None
    assert project.data.train is not None
    assert [os.path.realpath(path) for path in (project.model, project.data.train)] == [str(here / "models/m"), str(here / "train.csv")]


def test_hub_name_stays_as_it_is(here: Path, own_cache: Path) -> None:
    write_onnx_classifier(own_cache / "downloads/hf/org/small/v1")

    assert written("hf://org/small@v1").model == "hf://org/small@v1"


def test_existing_file_is_replaced_only_by_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "edgepipe.toml").write_text("# mine\n")

    assert run(["init", "models/m"]) == 2
    assert (here / "edgepipe.toml").read_text() == "# mine\n"
    assert "--force replaces it" in capsys.readouterr().err
    assert written("models/m", "--force").model == str(here / "models/m")


def test_adapter_in_place_of_a_model_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "adapter").mkdir()
    (here / "adapter/adapter_config.json").write_text("{}")

    assert run(["init", "adapter"]) == 2
    assert "that is an adapter folder" in capsys.readouterr().err
    assert not (here / "edgepipe.toml").exists()
