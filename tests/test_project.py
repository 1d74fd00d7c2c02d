"""What a build is asked for: flag before project file before default."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepipe.errors import UsageError
from edgepipe.project import make_request

PROJECT = """
model = "model"
adapters = ["adapter"]
profiles = ["rpi4"]
task = "text-classification"
plugins = ["mine.py"]
[data]
train = "train.csv"
test = "test.csv"
text = "review"
[budget]
max_size_ratio = 0.5
[passes.quantize-dynamic]
per_channel = false
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, and a folder in it to stand in."""
    (tmp_path / "edgepipe.toml").write_text(PROJECT)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    return tmp_path


def test_project_file_alone_makes_the_request(project: Path) -> None:
    request = make_request()

    assert request.model == str(project / "model")
    assert (request.adapters, request.profiles, request.task.name) == ((str(project / "adapter"),), ("rpi4",), "text-classification")
    assert (request.data.train, request.data.text, request.budget.max_size_ratio) == (str(project / "train.csv"), "review", 0.5)
    assert request.settings == {"quantize-dynamic": {"per_channel": False}}
    assert request.out == project / "build"


def test_flags_come_before_the_project_file(project: Path) -> None:
    request = make_request(
        profiles=["rpi5"], budget=["max_size_ratio=0.1"], settings=["quantize-dynamic.per_channel=true"], out="here", plugins=["more.py"]
    )

    assert (request.profiles, request.budget.max_size_ratio, request.out) == (("rpi5",), 0.1, project / "sub/here")
    assert request.settings == {"quantize-dynamic": {"per_channel": True}}
    assert request.plugins == (str(project / "mine.py"), str(project / "sub/more.py"))


def test_set_keeps_the_other_options_of_the_project(project: Path) -> None:
    request = make_request(settings=["quantize-dynamic.reduce_range=true"])

    assert request.settings == {"quantize-dynamic": {"per_channel": False, "reduce_range": True}}


def test_another_model_does_not_take_the_projects_adapters(project: Path) -> None:
    assert make_request(model="other").adapters == ()
    assert make_request(model="../model").adapters == (str(project / "adapter"),)


def test_one_file_of_data_replaces_the_projects_splits(project: Path) -> None:
    data = make_request(data={"file": "all.csv"}).data

    assert (data.file, data.train, data.test, data.text) == (str(project / "sub/all.csv"), None, None, "review")


def test_one_split_replaces_the_projects_own(project: Path) -> None:
    data = make_request(data={"test": "other.csv", "train": None}).data

    assert (data.test, data.train) == (str(project / "sub/other.csv"), str(project / "train.csv"))


def test_without_a_project_model_and_task_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match="no model is given"):
        make_request(task="fidelity")
    with pytest.raises(UsageError, match="no task is given"):
        make_request(model="m")
    assert make_request(model="m", task="fidelity").model == str(tmp_path / "m")


def test_named_project_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        make_request(project=str(tmp_path / "none.toml"))
