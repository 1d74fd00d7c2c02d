"""Samples that teach more are drawn more often, and their losses count less, so that the gradient is right on average.

Katharopoulos and Fleuret, "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", arXiv 1803.00942,
section 3: weights 1 / (N · p), and (section 3.2) the norm of the gradient at the last layer's outputs as a bound of the whole
one's. Probabilities come from what was last seen of each sample (Loshchilov and Hutter, arXiv 1511.06343), which costs
nothing. Draws are systematic (Kitagawa, 1996): a sample is drawn ⌊N · p⌋ or ⌈N · p⌉ times; with equal ones each once.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import PassError
from edgepipe.training.batches import Draw
from edgepipe.training.losses import first

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgepipe.training.objectives import Pair

UNIFORM = 0.2  # share of the draws that is dealt evenly: a weight is never above 1 / UNIFORM
NEWEST = 0.7  # share of the newest score in what is known of a sample


class ImportanceSampler:
    """How much each of `count` samples taught when it was last seen. In the first epoch nothing is known: each comes once."""

    def __init__(self, count: int, by: Literal["loss", "gradient-norm"], seed: int) -> None:
        import torch

        self._by, self._seed = by, seed
        self._scores = torch.full((count,), torch.nan, dtype=torch.float64)
        self._epoch, self._drawn_by = -1, self._scores.clone()

    def draws(self, epoch: int) -> list[Draw]:
        """As many samples as there are, each with the weight that makes up for its probability."""
        if epoch != self._epoch:
            self._epoch, self._drawn_by = epoch, self._scores.clone()
        return systematic(probabilities(self._drawn_by), random.Random(f"{self._seed}/{epoch}/draws"))

    def weighed(self, pair: Pair, rows: Tensor) -> Tensor:
        """The losses of rows, [batch], as they count; what they say of their samples is kept."""
        import torch

        assert pair.batch.samples is not None and pair.batch.weights is not None
        seen = rows.detach() if self._by == "loss" else _gradient_norms(pair, rows)
        owners, places = torch.unique(pair.batch.samples, return_inverse=True)
        sums = torch.zeros(len(owners), dtype=torch.float64).index_add(0, places, seen.double().cpu())
        means = sums / torch.bincount(places)
        old = self._scores[owners]
        self._scores[owners] = torch.where(old.isnan(), means, NEWEST * means + (1 - NEWEST) * old)
        return rows * pair.batch.weights

    def state(self) -> dict[str, Any]:
        """For a checkpoint: scores, and those that the running epoch was drawn by."""
        return {"scores": self._scores, "epoch": self._epoch, "drawn_by": self._drawn_by}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._scores, self._epoch, self._drawn_by = state["scores"].clone(), state["epoch"], state["drawn_by"].clone()


def probabilities(scores: Tensor) -> Tensor:
    """Of each sample, [samples], which add up to 1. One that was not seen yet (NaN) counts as much as the mean."""
    import torch

    known = scores[~scores.isnan()].clamp(min=0)
    total = float(known.sum())
    even = torch.full_like(scores, 1 / len(scores))
    if total <= 0:
        return even
    shares = torch.where(scores.isnan(), total / len(known), scores.clamp(min=0))
    return (1 - UNIFORM) * shares / shares.sum() + UNIFORM * even


def systematic(chances: Tensor, rng: random.Random) -> list[Draw]:
    """N draws of N samples: equal steps through the samples in random order, each as wide as its probability."""
    import torch

    count = len(chances)
    order = list(range(count))
    rng.shuffle(order)
    ends = (chances[torch.tensor(order)] * count).cumsum(0)
    steps = torch.arange(count, dtype=torch.float64) + rng.random()
    places = torch.searchsorted(ends, steps, right=True).clamp(max=count - 1)
    return [Draw(order[place], 1 / (count * float(chances[order[place]]))) for place in places.tolist()]


def _gradient_norms(pair: Pair, rows: Tensor) -> Tensor:
    """‖∂ loss / ∂ outputs‖ of every row, [batch]."""
    import torch

    outputs = first(pair.student.outputs)
    (gradient,) = torch.autograd.grad(rows.sum(), outputs, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise PassError(
            "gradient norms are taken at the model's outputs, and no objective looks at those",
            where="recover.sampling",
            fix='add the objective logits or task, or set sampling = "loss"',
        )
    return gradient.flatten(1).norm(dim=1)
