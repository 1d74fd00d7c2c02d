"""Checkpoints are whole or not there: what was saved last stays when the next cannot be written or is damaged."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import torch

from edgepipe.errors import ResourceError
from edgepipe.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load() is None

    checkpoint.save({"step": 3, "values": [torch.arange(4.0)]})

    found = checkpoint.load()
    assert found is not None and found["step"] == 3
    assert torch.equal(found["values"][0], torch.arange(4.0))


def test_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"step": 3})
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:100])

    assert checkpoint.load() is None


def test_full_disk_is_an_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        checkpoint = Checkpoint(tmp_path)
        checkpoint.save({"step": 1})

        with pytest.raises(ResourceError, match="disk is full"):
            checkpoint.save({"step": 2, "values": [torch.zeros(1_000_000)]})

        found = checkpoint.load()
        assert found is not None and found["step"] == 1
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
