"""logits: the teacher's outputs, class probabilities at a temperature or embeddings by direction and distance.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.losses import distance

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class Logits:
    classes: bool
    temperature: float
    inside: bool = False
    teaches: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        mask = pair.batch.inputs.get("attention_mask")
        return distance(pair.student.outputs, pair.teacher.outputs, mask, classes=self.classes, temperature=self.temperature)

    def parameters(self) -> dict[str, Parameter]:
        return {}


def make(setup: Setup) -> Logits:
    return Logits(setup.classes, setup.options.temperature)
