"""All objectives of a run together: student and teacher on each batch, one number a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError, PassError
from edgepipe.structure import LAYOUTS, transformer_of
from edgepipe.training.losses import gives_classes
from edgepipe.training.objectives import Pair, Setup, make_objectives
from edgepipe.training.outputs import called
from edgepipe.training.views import Watched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.artifact import Artifact
    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.objectives import Objective

WHERE = "pass recover"
LOOKED_AT = 8  # batches, to see whether both models split texts alike
ALIKE = 0.5  # share of samples that must be split alike for position-wise objectives


@dataclass(slots=True)
class Lessons:
    """A loss for the training loop: Σ weight · objective, [batch]."""

    student: Watched
    teacher: Watched | None
    objectives: Mapping[str, Objective]
    weights: Mapping[str, float]

    def __call__(self, batch: Batch) -> Tensor:
        import torch

        self.student.module.train(torch.is_grad_enabled())
        pair = Pair(self.student, self.teacher, batch)
        return torch.stack([self.weights[name] * objective(pair) for name, objective in self.objectives.items()]).sum(0)

    def parameters(self) -> dict[str, Parameter]:
        return {name: parameter for objective in self.objectives.values() for name, parameter in objective.parameters().items()}


def lessons(artifact: Artifact, teacher: Artifact, module: Any, options: Any, train: Batches) -> Lessons:
    """Raises `PassError` for a teacher of other labels or of a tokenizer that position-wise objectives cannot follow, and
    `DataError` for labels that are asked for and not there."""
    import torch

    from edgepipe.loader import load_torch

    ours, theirs = artifact.program.get("labels"), teacher.program.get("labels")
    if ours and theirs and list(ours) != list(theirs):
        raise PassError(
            f"teacher and student know different labels: {', '.join(theirs)} against {', '.join(ours)}",
            where=WHERE,
            fix="take a teacher that was trained for the same labels, in the same order",
        )
    known = getattr(getattr(transformer_of(module), "config", None), "model_type", "") in LAYOUTS
    weights = options.objectives or ({"logits": 1.0, "hidden": 1.0} if known else {"logits": 1.0})
    with torch.no_grad():
        outputs = called(module, next(train.in_order()).inputs)
    their_module = load_torch(teacher)
    setup = Setup(artifact, module, their_module, options, gives_classes(artifact, outputs))
    if "task" in weights and not train.labelled:
        raise DataError(
            "the training data has no classes to learn", where="recover.objectives", fix="leave task out: the teacher needs no labels"
        )
    inside = [name for name in weights if name in ("hidden", "attention", "relations")]
    if inside and not known:
        raise PassError(
            f"{inside[0]} looks into the layers of a model, and the layers of this one are not known",
            where="recover.objectives",
            fix=f"known: {', '.join(sorted(LAYOUTS))}; leave {inside[0]} out, logits serve every model",
        )
    objectives = make_objectives(weights, setup)
    if any(objective.inside for objective in objectives.values()):
        _check_alike(train)
    return Lessons(
        Watched(module, inside=any(objective.inside for objective in objectives.values())),
        Watched(their_module.requires_grad_(False), inside=bool(inside)) if any(o.teaches for o in objectives.values()) else None,
        objectives,
        weights,
    )


def _check_alike(train: Batches) -> None:
    seen = [batch.aligned for batch, _ in zip(train.epoch(0), range(LOOKED_AT), strict=False) if batch.aligned is not None]
    rows = sum(len(aligned) for aligned in seen)
    if rows and sum(int(aligned.sum()) for aligned in seen) < ALIKE * rows:
        raise PassError(
            "teacher and student have different tokenizers: they split most samples into other tokens",
            where="recover.objectives",
            fix="learn from logits alone, which need no positions, or keep more of the vocabulary",
        )
