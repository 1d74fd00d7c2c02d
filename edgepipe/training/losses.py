"""What training lowers, one number a sample: the task's own loss, and the distance to a teacher, which needs no labels.

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
    """(1 − distill) · task + distill · distance to the teacher; the second alone for samples without a class."""

    classes: bool  # the first output holds a score per class
    teacher: nn.Module | None = None
    distill: float = 0.0
    temperature: float = 1.0

    def __call__(self, model: Model, batch: Batch) -> Tensor:
        """The loss of every row, [batch]."""
        import torch

        outputs = model(batch.inputs)
        parts = []
        share = self.distill if batch.targets is not None else 1.0
        if batch.targets is not None and share < 1:
            parts.append((1 - share) * task_loss(first(outputs), batch.targets))
        if share > 0:
            assert self.teacher is not None
            with torch.no_grad():
                wanted = called(self.teacher, batch.inputs)
            mask = batch.inputs.get("attention_mask")
            parts.append(share * distance(outputs, wanted, mask, classes=self.classes, temperature=self.temperature))
        return torch.stack(parts).sum(0)


def gives_classes(artifact: Artifact, outputs: Mapping[str, Tensor]) -> bool:
    """Whether a model's first output holds scores of classes: its task says so, or its name does."""
    task, name = artifact.program["task"], next(iter(outputs))
    return task.endswith("classification") or (task == "fidelity" and "logits" in name and outputs[name].shape[-1] > 1)


def first(outputs: Mapping[str, Tensor]) -> Tensor:
    return next(iter(outputs.values()))


def task_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every row, [batch], of scores [batch, classes] or [batch, seq, classes]: the mean over its positions
    that have a class; 0 without any."""
    from torch.nn import functional

    each = functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return mean_of_rows(each.view(targets.shape), targets != IGNORED)


def distance(
    outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor | None, *, classes: bool, temperature: float
) -> Tensor:
    """How far a model's outputs are from its teacher's, [batch], averaged over them; padding does not count.

    With `classes` only the first output counts, the one that is judged.
    """
    import torch

    if classes:
        ours = first(outputs)
        return mean_of_rows(divergence(ours, first(wanted), temperature), _shown(ours, mask))
    return torch.stack([remoteness(value, wanted[name], _shown(value, mask)) for name, value in outputs.items()]).mean(0)


def divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) · T² over the last dimension of […, classes]."""
    from torch.nn import functional

    found, wanted = functional.log_softmax(ours / temperature, -1), functional.log_softmax(theirs / temperature, -1)
    return functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1) * temperature**2


def remoteness(ours: Tensor, theirs: Tensor, shown: Tensor | None = None) -> Tensor:
    """1 − cosine, and the squared distance over the teacher's square, of every row of [batch, width] or [batch, seq, width].

    A feature map is one row.
    """
    from torch.nn import functional

    if ours.ndim != 3:
        ours, theirs = ours.flatten(1), theirs.flatten(1)
    cosine = mean_of_rows(functional.cosine_similarity(ours, theirs, dim=-1), shown)
    return 1 - cosine + relative_square(ours, theirs, shown)


def relative_square(ours: Tensor, theirs: Tensor, shown: Tensor | None = None) -> Tensor:
    """Σ (a − b)² / Σ b² of every row, over the positions that are shown."""
    apart, size = (ours - theirs).square().sum(-1), theirs.square().sum(-1)
    return mean_of_rows(apart, shown) / mean_of_rows(size, shown).clamp(min=SMALLEST)


def mean_of_rows(each: Tensor, shown: Tensor | None = None) -> Tensor:
    """[batch, …] as [batch]: means over the positions that `shown` [batch, …] marks, 0 where it marks none."""
    if shown is None:
        return each if each.ndim == 1 else each.flatten(1).mean(1)
    weights = shown.to(each.dtype)
    if each.ndim == 1:
        return each * weights
    return (each * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)


def _shown(output: Tensor, mask: Tensor | None) -> Tensor | None:
    """The positions of an output per position that are no padding."""
    return mask if mask is not None and output.ndim == 3 and output.shape[:2] == mask.shape else None
