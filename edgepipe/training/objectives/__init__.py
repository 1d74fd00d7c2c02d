"""What a student learns by, one file an objective. A new one is a file here and a line in `OBJECTIVES`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.artifact import Artifact
    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.views import Views, Watched

OBJECTIVES = {
    "task": "labels",
    "logits": "logits",
    "hidden": "hidden_states",
    "attention": "attention",
    "relations": "relations",
    "masked-tokens": "masked_tokens",
    "causal": "causal",
    "contrastive": "contrastive",
}  # name → module


@dataclass(slots=True)
class Pair:
    """Student and teacher on one batch; each runs once, when an objective first looks."""

    student_model: Watched
    teacher_model: Watched | None
    batch: Batch
    _student: Views | None = None
    _teacher: Views | None = None

    @property
    def student(self) -> Views:
        if self._student is None:
            self._student = self.student_again()
        return self._student

    def student_again(self) -> Views:
        """The student once more: under other dropout."""
        mix = self.batch.mix
        return self.student_model(self.batch.inputs, mix, mix.text if mix else None)

    @property
    def teacher(self) -> Views:
        import torch

        assert self.teacher_model is not None
        if self._teacher is None:
            with torch.no_grad():
                mix = self.batch.mix
                other = (mix.teacher_text if self.batch.teacher_inputs else mix.text) if mix else None
                self._teacher = self.teacher_model(self.batch.teacher_inputs or self.batch.inputs, mix, other)
        return self._teacher


class Objective(Protocol):
    """Made once a run by the module's `make(setup)`."""

    inside: bool  # looks at hidden states or projections
    teaches: bool  # needs the teacher

    def __call__(self, pair: Pair) -> Tensor:
        """The loss of every row, [batch]."""

    def parameters(self) -> dict[str, Parameter]:
        """Weights of its own, trained beside the student's and dropped afterwards."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What an objective is made from. `options` are those of the pass."""

    artifact: Artifact
    student: Any
    teacher: Any
    options: Any
    classes: bool  # the model's first output holds scores of classes
    known: bool  # where the model keeps its layers
    train: Batches


def make_objectives(weights: Mapping[str, float], setup: Setup) -> dict[str, Objective]:
    return {name: import_module(f"edgepipe.training.objectives.{OBJECTIVES[name]}").make(setup) for name in weights}
