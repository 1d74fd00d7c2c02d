"""All objectives of a run together: student and teacher on each batch, one number a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError, PassError
from edgepipe.structure import LAYOUTS, layers_are_known
from edgepipe.training.losses import gives_classes
from edgepipe.training.objectives import Pair, Setup, make_objectives
from edgepipe.training.outputs import called
from edgepipe.training.pieces import on_device
from edgepipe.training.precision import Precision
from edgepipe.training.views import Watched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.artifact import Artifact
    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.importance_sampling import ImportanceSampler
    from edgepipe.training.objectives import Objective

WHERE = "pass recover"
LOOKED_AT = 8  # batches, to see whether both models split texts alike
ALIKE = 0.5  # share of tokens that must have their like for position-wise objectives
BY_POSITION = ("hidden", "attention", "relations")


@dataclass(slots=True)
class Lessons:
    """A loss for the training loop: Σ weight · objective, [batch]."""

    student: Watched
    teacher: Watched | None
    objectives: Mapping[str, Objective]
    weights: Mapping[str, float]
    precision: Precision = field(default_factory=Precision)  # of both models
    sampler: ImportanceSampler | None = None  # weighs what it draws, and is told of it

    def __call__(self, batch: Batch) -> Tensor:
        import torch

        self.student.module.train(torch.is_grad_enabled())
        pair = Pair(self.student, self.teacher, on_device(batch, self.precision.device))
        with self.precision.while_training(torch.is_grad_enabled()):
            rows = torch.stack([self.weights[name] * objective(pair) for name, objective in self.objectives.items()]).sum(0)
        return self.sampler.weighed(pair, rows) if self.sampler and torch.is_grad_enabled() else rows

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
    known = layers_are_known(module)
    weights = options.objectives or ({"logits": 1.0, "hidden": 1.0} if known else {"logits": 1.0})
    with torch.no_grad():
        outputs = called(module, on_device(next(train.in_order()), options.device).inputs)
    their_module = load_torch(teacher).to(options.device)
    precision = Precision(options.precision, options.device)
    setup = Setup(artifact, module, their_module, options, gives_classes(artifact, outputs), known, train)
    if "task" in weights and not train.labelled:
        raise DataError(
            "the training data has no classes to learn", where="recover.objectives", fix="leave task out: the teacher needs no labels"
        )
    inside = [name for name in weights if name in BY_POSITION]
    if inside and not known:
        raise PassError(
            f"{inside[0]} looks into the layers of a model, and the layers of this one are not known",
            where="recover.objectives",
            fix=f"known: {', '.join(sorted(LAYOUTS))}; leave {inside[0]} out, logits serve every model",
        )
    objectives = make_objectives(weights, setup)
    if inside:
        _check_alike(train)
    for objective in objectives.values():
        for parameter in objective.parameters().values():
            parameter.data = parameter.data.to(options.device)
    taught = [objective for objective in objectives.values() if objective.teaches]
    return Lessons(
        Watched(module, inside=any(each.inside for each in objectives.values()), precision=precision),
        Watched(their_module.requires_grad_(False), inside=any(each.inside for each in taught), precision=precision) if taught else None,
        objectives,
        weights,
        precision,
    )


def _check_alike(train: Batches) -> None:
    seen = [batch.aligned for batch, _ in zip(train.epoch(0), range(LOOKED_AT), strict=False) if batch.aligned is not None]
    if seen and sum(aligned.share for aligned in seen) < ALIKE * len(seen):
        raise PassError(
            "teacher and student have different tokenizers: most tokens of the one begin where none of the other does",
            where="recover.objectives",
            fix="learn from logits alone, which need no positions, or keep more of the vocabulary",
        )
