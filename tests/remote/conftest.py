"""A board, an artifact to push, and a runner that reaches the board."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepipe.artifact import Artifact
from edgepipe.runners import runner_for
from edgepipe.runners.ssh import SshRunner
from edgepipe.store import Store
from tests.remote.board import Board, profile


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board(tmp_path / "board")
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BOARD", str(made.folder))
    monkeypatch.setenv("EDGEPIPE_DEVICE_PYTHON", sys.executable)
    return made


@pytest.fixture(scope="module")
def stored(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Store(tmp_path_factory.mktemp("store")).put(onnx_artifact)


@pytest.fixture
def runner(device: Board) -> Iterator[SshRunner]:
    made = runner_for(profile())
    assert isinstance(made, SshRunner)
    yield made
    made.close()
