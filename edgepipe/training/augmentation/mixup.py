"""mixup: a batch is mixed with itself in another order, and what is to be learned with it.

Zhang et al., arXiv 1710.09412, section 2: pixels and classes by one share, drawn from Beta(α, α) for the batch. Texts are mixed
where they are vectors first, in the table of token embeddings: Guo et al., arXiv 1905.08941, section 3 (wordMixup). The teacher
sees the same mixture, in its own table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.training.augmentation.images import check_images, with_images
from edgepipe.training.batches import Mix, OtherText
from edgepipe.training.views import token_table

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch

ALPHA = 0.2  # Zhang et al., section 3.1: 0.1 to 0.4 for ImageNet


@dataclass(frozen=True, slots=True)
class Mixup:
    share: float
    alpha: float

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        order = partners(batch, rng, self.share)
        if order is None:
            return batch
        share = rng.betavariate(self.alpha, self.alpha)
        if "input_ids" in batch.inputs:
            return _texts_mixed(batch, order, share)
        return replace(with_images(batch, lambda images: share * images + (1 - share) * images[order]), mix=mix_of(batch, order, share))


def partners(batch: Batch, rng: random.Random, share: float) -> Tensor | None:
    """The row that each one is mixed with, [batch]; None for a batch that is left as it is."""
    import torch

    if batch.rows < 2 or batch.mix is not None or rng.random() >= share:
        return None
    order = list(range(batch.rows))
    rng.shuffle(order)
    return torch.tensor(order)


def mix_of(batch: Batch, order: Tensor, share: float) -> Mix:
    import torch

    return Mix(torch.full((batch.rows,), share), None if batch.targets is None else batch.targets[order])


def _texts_mixed(batch: Batch, order: Tensor, share: float) -> Batch:
    """Positions of either text are shown; their embeddings are added when a model is called."""
    import torch

    def joined(inputs: dict[str, Tensor]) -> tuple[OtherText, dict[str, Tensor]]:
        mask = inputs["attention_mask"]
        other = OtherText(inputs["input_ids"][order], mask[order], mask)
        return other, {**inputs, "attention_mask": torch.maximum(mask, mask[order])}

    text, inputs = joined(batch.inputs)
    teacher_text, teacher_inputs = joined(batch.teacher_inputs) if batch.teacher_inputs else (None, None)
    return replace(
        batch,
        inputs=inputs,
        teacher_inputs=teacher_inputs,
        aligned=None if batch.aligned is None else batch.aligned.mixed(order),
        mix=replace(mix_of(batch, order, share), text=text, teacher_text=teacher_text),
    )


def _inputs(setup: Setup) -> set[str]:
    return {entry["name"] for entry in setup.artifact.model.signature["inputs"]}


def make(setup: Setup) -> Mixup:
    if setup.artifact.program["preprocess"]["kind"] != "text":
        check_images("mixup", setup)
    elif token_table(setup.module) is None or "attention_mask" not in _inputs(setup):
        raise PassError(
            "mixup adds token embeddings, which takes a model that says where it keeps them and an attention mask",
            where="recover.augment",
            fix="leave mixup out",
        )
    return Mixup(setup.options.augment_share, setup.options.mix_alpha or ALPHA)
