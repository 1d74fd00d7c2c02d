"""crop: an image is moved by up to a share of its sides; what it leaves is filled with its edge.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, section 4.1, in the form that
He et al., arXiv 1512.03385, section 4.2, give it (pad, then a random crop of the old size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.augmentation.images import check_images, each_image

if TYPE_CHECKING:
    import random

    from torch import Tensor

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch


@dataclass(frozen=True, slots=True)
class Crop:
    strength: float
    share: float

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        return each_image(batch, rng, self.share, self._moved)

    def _moved(self, image: Tensor, rng: random.Random) -> Tensor:
        from torch.nn import functional

        height, width = image.shape[-2:]
        far_down, far_right = max(1, round(self.strength * height)), max(1, round(self.strength * width))
        down, right = rng.randint(0, 2 * far_down), rng.randint(0, 2 * far_right)
        padded = functional.pad(image[None], (far_right, far_right, far_down, far_down), mode="replicate")[0]
        return padded[:, down : down + height, right : right + width]


def make(setup: Setup) -> Crop:
    check_images("crop", setup)
    return Crop(setup.options.augment_strength, setup.options.augment_share)
