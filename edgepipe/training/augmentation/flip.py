"""flip: an image is mirrored, left for right.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, section 4.1. Not for letters and digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.augmentation.images import check_images, each_image

if TYPE_CHECKING:
    import random

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch


@dataclass(frozen=True, slots=True)
class Flip:
    share: float

    def batch(self, batch: Batch, rng: random.Random) -> Batch:
        return each_image(batch, rng, self.share, lambda image, _: image.flip(-1))


def make(setup: Setup) -> Flip:
    check_images("flip", setup)
    return Flip(setup.options.augment_share)
