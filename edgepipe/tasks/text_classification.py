"""Text classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.tasks.classification import classification

if TYPE_CHECKING:
    from edgepipe.config import Task
    from edgepipe.tasks import TaskSpec


def make(config: Task) -> TaskSpec:
    return classification(config.name, ("text", "label"))
