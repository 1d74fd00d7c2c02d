"""contrastive: the embedding of a sample is to lie nearer to its own other view than to those of the rest of the batch.

InfoNCE: van den Oord et al., arXiv 1807.03748, section 2.3. The other view is the teacher's embedding of the same sample (Tian et
al., "Contrastive Representation Distillation", arXiv 1910.10699), or the model's own under other dropout (Gao et al., "SimCSE",
arXiv 2104.08821, section 3). An embedding is the model's output where it gives one, else what its last layer says at the first
position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import PassError
from edgepipe.training.losses import first
from edgepipe.training.outputs import called
from edgepipe.training.pieces import on_device

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup
    from edgepipe.training.views import Views


@dataclass(slots=True)
class Contrastive:
    positives: Literal["teacher", "dropout"]
    temperature: float
    projection: Any  # student width → teacher width; None where they are the same
    inside: bool  # the embedding is no output
    teaches: bool

    def __call__(self, pair: Pair) -> Tensor:
        ours = self._embedding(pair.student)
        if self.positives == "teacher":
            theirs = self._embedding(pair.teacher)
            ours = ours if self.projection is None else self.projection(ours)
        else:
            theirs = self._embedding(pair.student_again())
        return info_nce(ours, theirs, pair.batch.samples, self.temperature)

    def _embedding(self, views: Views) -> Tensor:
        return views.hidden[-1][:, 0] if self.inside else first(views.outputs)

    def parameters(self) -> dict[str, Parameter]:
        return {} if self.projection is None else dict(self.projection.named_parameters(prefix="contrastive.projection"))


def info_nce(ours: Tensor, theirs: Tensor, samples: Tensor | None, temperature: float) -> Tensor:
    """−log softmax of the cosine of own pairs among all of the batch, [batch]. Rows of one sample are not told from each other."""
    import torch
    from torch.nn import functional

    scores = functional.normalize(ours, dim=-1) @ functional.normalize(theirs, dim=-1).T / temperature
    if samples is not None:
        twins = (samples[:, None] == samples[None, :]).fill_diagonal_(False)
        scores = scores.masked_fill(twins.to(scores.device), torch.finfo(scores.dtype).min)
    return functional.cross_entropy(scores.float(), torch.arange(len(scores), device=scores.device), reduction="none")


def make(setup: Setup) -> Contrastive:
    """Raises `PassError` for models that take one sample at a time. A projection starts as the identity on what both have."""
    import torch
    from torch import nn

    from edgepipe.structure import hidden_width

    if setup.train.size < 2:
        raise PassError(
            "contrastive tells the samples of a batch from each other, and here each is a batch of its own",
            where="recover.objectives",
            fix="raise batch_size; leave contrastive out where the model takes one sample at a time",
        )
    batch = on_device(next(setup.train.in_order()), setup.options.device)
    with torch.no_grad():
        output = first(called(setup.student, batch.inputs))
    inside = setup.classes or output.ndim != 2
    if inside and not setup.known:
        raise PassError(
            "contrastive takes a sample's embedding from the model's layers, and the layers of this one are not known",
            where="recover.objectives",
            fix="leave contrastive out",
        )
    projection, teaches = None, setup.options.positives == "teacher"
    if teaches:
        if inside:
            ours, theirs = hidden_width(setup.student), hidden_width(setup.teacher)
        else:
            with torch.no_grad():
                ours, theirs = output.shape[-1], first(called(setup.teacher, batch.teacher_inputs or batch.inputs)).shape[-1]
        if ours != theirs:
            projection = nn.Linear(ours, theirs, bias=False)
            nn.init.eye_(projection.weight)
    return Contrastive(setup.options.positives, setup.options.contrast_temperature, projection, inside, teaches)
