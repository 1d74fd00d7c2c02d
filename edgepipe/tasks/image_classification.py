"""Image classification: one label for an image; a folder per label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.tasks.classification import classification

if TYPE_CHECKING:
    from edgepipe.config import Task
    from edgepipe.tasks import TaskSpec


def make(config: Task) -> TaskSpec:
    return classification(config.name, ("label",))
