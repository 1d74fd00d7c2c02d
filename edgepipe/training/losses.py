"""What training lowers: the task's own loss, and the distance to a teacher, which needs no labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2: the divergence of
class probabilities at a temperature T, times T² so that its gradients keep their size. Outputs that are no classes
(embeddings, hidden states) are compared by direction and, relative to the teacher's size, by squared distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.batches import IGNORED
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from edgepipe.artifact import Artifact
    from edgepipe.training.batches import Batch
    from edgepipe.training.outputs import Model

SMALLEST = 1e-12  # keeps a division by an output of zeros finite


@dataclass(frozen=True, slots=True)
class Loss:
    """(1 − distill) · task + distill · distance to the teacher; the second alone where samples carry no classes."""

    classes: bool  # the first output holds a score per class
    teacher: nn.Module | None = None
    distill: float = 0.0
    temperature: float = 1.0

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        """The mean loss of one batch, a scalar."""
        import torch

        outputs = model(batch.inputs)
        share = self.distill if batch.targets is not None else 1.0
        parts = []
        if batch.targets is not None and share < 1:
            parts.append((1 - share) * task_loss(first(outputs), batch.targets))
        if share > 0:
            assert self.teacher is not None
            with torch.no_grad():
                wanted = called(self.teacher, batch.inputs)
            mask = batch.inputs.get("attention_mask")
            parts.append(share * distance(outputs, wanted, mask, classes=self.classes, temperature=self.temperature))
        return torch.stack(parts).sum()


def gives_classes(artifact: Artifact, outputs: Mapping[str, Tensor]) -> bool:
    """Whether a model's first output holds scores of classes: its task says so, or its name does."""
    task, name = artifact.program["task"], next(iter(outputs))
    return task.endswith("classification") or (task == "fidelity" and "logits" in name and outputs[name].shape[-1] > 1)


def first(outputs: Mapping[str, Tensor]) -> Tensor:
    return next(iter(outputs.values()))


def task_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of [batch, classes], or [batch, seq, classes], over the positions that have a class; 0 without any."""
    from torch.nn import functional

    total = functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def distance(
    outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor | None, *, classes: bool, temperature: float
) -> Tensor:
    """How far a model's outputs are from its teacher's, averaged over them; padding does not count.

    With `classes` only the first output counts, the one that is judged.
    """
    import torch

    if classes:
        return divergence(*_rows(first(outputs), first(wanted), mask), temperature)
    return torch.stack([remoteness(*_rows(value, wanted[name], mask)) for name, value in outputs.items()]).mean()


def divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) · T² of [rows, classes]."""
    from torch.nn import functional

    found, wanted = functional.log_softmax(ours / temperature, -1), functional.log_softmax(theirs / temperature, -1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2


def remoteness(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 − cosine, and the squared distance over the teacher's square, of [rows, width]."""
    from torch.nn import functional

    cosine = functional.cosine_similarity(ours, theirs, dim=-1).mean()
    return 1 - cosine + (ours - theirs).square().sum() / theirs.square().sum().clamp(min=SMALLEST)


def _rows(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """[…, width] as [rows, width]; of an output per position, the positions the mask shows. A feature map is one row."""
    if ours.ndim == 3 and mask is not None and ours.shape[:2] == mask.shape:
        shown = mask.bool()
        return ours[shown], theirs[shown]
    if ours.ndim == 3:
        return ours.flatten(0, 1), theirs.flatten(0, 1)
    return ours.flatten(1), theirs.flatten(1)
