"""Batches of images: each image is changed by itself, for student and teacher alike."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepipe.training.augmentation import misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from edgepipe.training.augmentation import Setup
    from edgepipe.training.batches import Batch


def each_image(batch: Batch, rng: random.Random, share: float, change: Callable[[Tensor, random.Random], Tensor]) -> Batch:
    """The batch with `share` of its images, [channels, height, width], changed at random."""
    import torch

    seed = rng.getrandbits(64)

    def changed(images: Tensor) -> Tensor:
        own = random.Random(seed)
        return torch.stack([change(image, own) if own.random() < share else image for image in images])

    return with_images(batch, changed)


def with_images(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with its images [batch, channels, height, width] changed, and those that the teacher sees."""

    def changed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: change(value) if value.ndim == 4 and value.is_floating_point() else value for name, value in inputs.items()}

    return replace(batch, inputs=changed(batch.inputs), teacher_inputs=batch.teacher_inputs and changed(batch.teacher_inputs))


def check_images(name: str, setup: Setup) -> None:
    kind = setup.artifact.program["preprocess"]["kind"]
    shapes = [entry["shape"] for entry in setup.artifact.model.signature["inputs"]]
    if kind != "image" and not (kind == "tensors" and any(len(shape) == 4 for shape in shapes)):
        raise misfit(name, "images", setup)
