"""Projects and caches for end-to-end tests: a small model that builds in seconds, and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import Project, copy
from tests.models import sentences, write_adapter, write_csv
from tests.onnx_models import write_onnx_classifier

if TYPE_CHECKING:
    from pathlib import Path

# Tiny weights shrink less than real ones, few samples say little, and microseconds are noise.
PROJECT = """\
name = "small"
model = "base"
adapters = ["adapter"]

[task]
name = "text-classification"

[data]
file = "samples.csv"

[budget]
max_size_ratio = 0.9
max_accuracy_drop = 25.0
max_latency_ratio = 20.0
"""
ONNX_PROJECT = PROJECT.replace('model = "base"\nadapters = ["adapter"]', 'model = "onnx"')


@pytest.fixture(scope="session")
def e2e_cache(tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Path:
    """EDGEPIPE_CACHE of end-to-end tests: a store of its own, the user's downloads."""
    folder = tmp_path_factory.mktemp("e2e") / "cache"
    folder.mkdir()
    (folder / "downloads").symlink_to(user_cache / "downloads")
    return folder


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> Path:
    """A torch classifier with a LoRA adapter, samples and a project file. Read only."""
    folder = tmp_path_factory.mktemp("e2e") / "small"
    copy(classifier, folder / "base")
    write_adapter(folder / "base", folder / "adapter")
    write_csv(folder / "samples.csv", sentences(200))
    (folder / "edgepipe.toml").write_text(PROJECT)
    return folder


@pytest.fixture(scope="session")
def built(small_source: Path, e2e_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project with its bundle in `build`, and the cache that holds all its passes. Read only."""
    project = Project(copy(small_source, tmp_path_factory.mktemp("e2e") / "built"), e2e_cache)
    project.passes("compress", "--profile", "host")
    return project


@pytest.fixture
def small(built: Project, small_source: Path, tmp_path: Path) -> Project:
    """A copy of the small project to change; its passes are in the cache."""
    return Project(copy(small_source, tmp_path / "project"), built.cache)


@pytest.fixture
def bundled(built: Project, tmp_path: Path) -> Project:
    """A copy of the small project with its bundle in `build`."""
    return Project(copy(built.folder, tmp_path / "project"), built.cache)


@pytest.fixture
def onnx_project(e2e_cache: Path, tmp_path: Path) -> Project:
    """A project whose model is ONNX already: its builds take no torch and little time."""
    return Project(write_onnx_project(tmp_path / "onnx-project"), e2e_cache)


def write_onnx_project(folder: Path) -> Path:
    write_onnx_classifier(folder / "onnx")
    write_csv(folder / "samples.csv", sentences(200))
    (folder / "edgepipe.toml").write_text(ONNX_PROJECT)
    return folder
