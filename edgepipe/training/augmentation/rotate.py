"""rotate: an image is turned about its middle, by up to strength · 90°; what that uncovers is filled with the nearest edge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.augmentation.images import check_images, each_image

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch


@dataclass(frozen=True, slots=True)
class Rotate:
    strength: float
    share: float

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        return each_image(batch, rng, self.share, self._turned)

    def _turned(self, image: Tensor, rng: random.Random) -> Tensor:
        import torch
        from torch.nn import functional

        angle = rng.uniform(-1, 1) * self.strength * math.pi / 2
        height, width = image.shape[-2:]
        sine, cosine = math.sin(angle), math.cos(angle)
        turn = torch.tensor([[[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]], dtype=image.dtype)
        grid = functional.affine_grid(turn, [1, *image.shape], align_corners=False)
        return functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def make(setup: Setup) -> Rotate:
    check_images("rotate", setup)
    return Rotate(setup.options.augment_strength, setup.options.augment_share)
