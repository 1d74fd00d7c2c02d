"""`--device` on the command line, with a script in place of `ssh`: what a user sees, and what the bundle tells."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Project, assert_one_message, manifest_of
from tests.remote.board import Board

PROFILE = """\
extends = "host"
name = "my-board"
title = "a board"

[reach]
runner = "ssh"
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


@pytest.fixture
def project(onnx_project: Project, board: Board) -> Project:
    (onnx_project.folder / "board.toml").write_text(PROFILE)
    variables = {
        "PATH": f"{board.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BOARD": str(board.folder),
        "EDGEPIPE_DEVICE_PYTHON": sys.executable,
    }
    return Project(onnx_project.folder, onnx_project.cache, variables)


def test_bundle_is_measured_on_the_device_and_does_not_tell_where_it_is(project: Project, board: Board) -> None:
    project.passes("compress", "--profile", "board.toml", "--device", "anna@secret-host.example", "--out", "out")

    manifest = manifest_of(project.folder / "out")
    assert {row["provenance"] for row in manifest["results"] if row["axis"] in ("accuracy", "latency", "memory", "parity")} == {"measured"}
    measurements = json.loads((project.folder / "out" / "measurements.json").read_text())
    assert measurements["runner"] == "ssh" and measurements["board"]["after"]
    for path in (project.folder / "out").rglob("*"):
        if path.is_file():
            assert b"secret-host" not in path.read_bytes() and b"anna@" not in path.read_bytes(), path
    assert board.files() == []


@pytest.mark.parametrize(
    ("instead", "code", "says"),
    [
        ("echo 'ssh: connect to host b port 22: Connection refused' >&2; exit 255", 5, "the device cannot be reached"),
        ('line="ulimit -f 1; $line"', 5, "the device could not put"),
    ],
)
def test_device_that_fails_is_one_message_and_no_bundle(project: Project, board: Board, instead: str, code: int, says: str) -> None:
    board.does("instead", instead)

    done = project.run("compress", "--profile", "board.toml", "--device", "pi@board", "--out", "out")

    assert_one_message(done, code, [says, "pi@board"])
    assert not (project.folder / "out").exists()
    assert board.files() == []
