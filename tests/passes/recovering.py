"""Runs recover as a build does: the uncompressed model as teacher, checkpoints in a folder that stays."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepipe.config import Data
from edgepipe.worker import Done, run_job
from tests.models import sentences, write_csv
from tests.passes.running import job_for

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact


def reviews(folder: Path, *, train: int = 48, unlabelled: int = 0) -> Data:
    """Labelled texts to learn from and to judge by, and some without labels."""
    rows = sentences(train + 16 + unlabelled)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "train": write_csv(folder / "train.csv", rows[:train]),
        "dev": write_csv(folder / "dev.csv", rows[train : train + 16]),
    }
    if unlabelled:
        files["unlabelled"] = write_csv(folder / "unlabelled.csv", [(text,) for text, _ in rows[train + 16 :]], ("text",))  # type: ignore[list-item]
    return Data(**{split: str(path) for split, path in files.items()})


def recovered(student: Artifact, teacher: Artifact, workdir: Path, data: Data, *, checkpoints: Path | None = None, **options: Any) -> Done:
    job = job_for("recover", student, workdir, data=data, **{"batch_size": 8, "epochs": 2, "learning_rate": 1e-3, **options})
    return run_job(replace(job, teacher=teacher, checkpoints=checkpoints), io.BytesIO())
