"""`cache list|prune`: what is kept between runs, and that deleting it loses nothing but time."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import Project, copy, leftovers, manifest_of
from tests.e2e.conftest import write_onnx_project

if TYPE_CHECKING:
    from pathlib import Path

HOST = ("compress", "--profile", "host", "--force", "--quiet")


@pytest.fixture(scope="module")
def once(built: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An ONNX project, built in a cache of its own. Read only."""
    folder = tmp_path_factory.mktemp("cached")
    shutil.copytree(built.cache / "devices", folder / "cache" / "devices")  # fusions measured once for all
    write_onnx_project(folder / "project")
    project = Project(folder / "project", folder / "cache")
    project.passes(*HOST)
    return project


@pytest.fixture
def own(once: Project, tmp_path: Path) -> Project:
    """A copy of that project and its cache, to change."""
    return Project(copy(once.folder, tmp_path / "project"), copy(once.cache, tmp_path / "cache"))


def cached(project: Project) -> list[bool]:
    return [step["cached"] for step in manifest_of(project.folder / "build")["passes"]]


def test_list_tells_every_artifact_and_the_size(own: Project) -> None:
    found = json.loads(own.passes("cache", "list", "--json").stdout)

    digests = {entry["digest"] for entry in found["artifacts"]}
    assert found["root"] == str(own.cache)
    assert manifest_of(own.folder / "build")["artifact"] in digests
    assert found["size_bytes"] > 0
    assert f"{len(digests)} artifacts" in own.passes("cache", "list").stdout


def test_second_build_takes_every_pass_from_the_cache(own: Project) -> None:
    first = manifest_of(own.folder / "build")

    own.passes(*HOST)

    assert cached(own) == [True, True]
    assert manifest_of(own.folder / "build")["artifact"] == first["artifact"]


def test_prune_to_nothing_then_a_build_makes_the_same_again(own: Project) -> None:
    first = manifest_of(own.folder / "build")

    own.passes("cache", "prune", "--max-size", "0")
    empty = json.loads(own.passes("cache", "list", "--json").stdout)
    own.passes(*HOST)

    assert empty["artifacts"] == [] and empty["size_bytes"] == 0
    assert cached(own) == [False, False]
    assert manifest_of(own.folder / "build")["artifact"] == first["artifact"]


def test_prune_within_bounds_drops_nothing(own: Project) -> None:
    own.passes("cache", "prune", "--max-size", "1GB")
    own.passes(*HOST)

    assert cached(own) == [True, True]


def test_deleted_cache_loses_nothing_but_time(own: Project) -> None:
    first = manifest_of(own.folder / "build")
    shutil.rmtree(own.cache / "store")

    own.passes(*HOST)

    assert manifest_of(own.folder / "build")["artifact"] == first["artifact"]


def test_damaged_store_is_noticed_and_built_again(own: Project) -> None:
    first = manifest_of(own.folder / "build")
    for path in (own.cache / "store").rglob("*.onnx"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-10])
    for path in (own.cache / "store" / "results").glob("*.json"):
        path.write_text(path.read_text()[:-20])

    own.passes(*HOST)

    assert manifest_of(own.folder / "build")["artifact"] == first["artifact"]
    own.passes("validate", "build", "--quiet")
    assert not leftovers(own.cache)


def test_empty_cache_can_be_listed_and_pruned(onnx_project: Project, tmp_path: Path) -> None:
    empty = onnx_project.with_cache(tmp_path / "none")

    assert json.loads(empty.passes("cache", "list", "--json").stdout)["artifacts"] == []
    empty.passes("cache", "prune", "--max-size", "0")


def test_changed_option_runs_only_from_that_pass_on(own: Project) -> None:
    own.passes(*HOST, "--set", "quantize-dynamic.per_channel=false")

    assert cached(own) == [True, False, False]


def test_downloads_are_never_pruned(own: Project) -> None:
    (own.cache / "downloads").mkdir()
    (own.cache / "downloads" / "model.bin").write_bytes(b"kept")

    own.passes("cache", "prune", "--max-size", "0")

    assert (own.cache / "downloads" / "model.bin").read_bytes() == b"kept"
