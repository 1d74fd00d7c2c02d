"""cutmix: a rectangle of each image is that of another one, and classes are mixed by its area.

Yun et al., arXiv 1905.04899, section 3.1: one share from Beta(α, α) and one rectangle for the batch, α = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepipe.training.augmentation.images import check_images, with_images
from edgepipe.training.augmentation.mixup import mix_of, partners

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch

ALPHA = 1.0


@dataclass(frozen=True, slots=True)
class Cutmix:
    share: float
    alpha: float

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        order = partners(batch, rng, self.share)
        if order is None:
            return batch
        side = math.sqrt(1 - rng.betavariate(self.alpha, self.alpha))
        down, right = rng.random(), rng.random()
        kept = 1.0

        def mixed(images: Tensor) -> Tensor:
            nonlocal kept
            height, width = images.shape[-2:]
            rows, columns = cut(height, down, side), cut(width, right, side)
            kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
            other, images = images[order], images.clone()
            images[..., rows, columns] = other[..., rows, columns]
            return images

        batch = with_images(batch, mixed)
        return replace(batch, mix=mix_of(batch, order, kept))


def cut(length: int, middle: float, side: float) -> slice:
    """The pixels of one side that a rectangle covers; its middle and side are shares of the length."""
    return slice(max(0, round((middle - side / 2) * length)), min(length, round((middle + side / 2) * length)))


def make(setup: Setup) -> Cutmix:
    check_images("cutmix", setup)
    return Cutmix(setup.options.augment_share, setup.options.mix_alpha or ALPHA)
