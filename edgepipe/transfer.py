"""Accuracy on a target that is too slow to run every sample: the host runs all, the target some, and corrects the host.

The target runs a random sample of the test data, and of the rest those whose outputs are nearest to a tie, where a small
difference shows first. The difference estimator of survey sampling (Cochran, Sampling Techniques, 1977, chapter 7) adds
what the random sample shows to the host's figure: nothing where both agree, and the target's own figure where it ran all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.gaps import gap_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.runners import Prediction

NEAREST = 50
TOLERANCE = 0.01  # of the largest output: what the rounding of another instruction set moves


@dataclass(slots=True)
class Transfer:
    """What the target gave for the samples it ran: counts by index in the test data, and how far outputs are apart."""

    random: list[int]
    nearest: list[int]
    candidate: dict[int, list[float]] = field(default_factory=dict)
    baseline: dict[int, list[float]] = field(default_factory=dict)  # the host's, where its parity there was seen
    agreement: dict[str, float] = field(default_factory=dict)
    baseline_agreement: dict[str, float] = field(default_factory=dict)

    def fill(self, host: np.ndarray, target: Mapping[int, Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """(all samples with the nearest ones as the target has them, the random ones as the target has them, the same as the
        host has them, share of the data that the random ones stand for)."""
        mixed = host.copy()
        for index in self.nearest:
            mixed[index] = target[index]
        there = np.array([target[index] for index in self.random])
        return mixed, there, host[self.random], (len(host) - len(self.nearest)) / len(host)

    def told(self, device: str) -> str:
        """What the target's part in the figure is, in words."""
        found, n = self.agreement, len(self.random)
        near = f" and on {found['nearest_differ']:.0f} of the {len(self.nearest)} nearest to a tie" if self.nearest else ""
        if found["of"] == n:
            return f"all {n} samples ran on {device}'s kernels"
        if not found["differ"]:
            bound = upper_share(0, n)
            return (
                f"every sample ran here, {n} random ones on {device}'s kernels too: 0 differ there (so under {bound:.1%} of all, 95 %)"
                f"{near.replace(' and on ', ', and ') + ' do' if near else ''}"
            )
        return f"{device}'s kernels differ from this machine's on {found['differ']:.0f} of {n} random samples{near}; the figure is corrected by them"

    def to_json(self) -> dict[str, Any]:
        """With string keys, as JSON has them."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {name: {str(key): value for key, value in data[name].items()} for name in ("candidate", "baseline")}


def transfer_of(data: Mapping[str, Any]) -> Transfer:
    """The transfer that `to_json` noted."""
    return Transfer(**{**data, **{name: {int(k): v for k, v in data[name].items()} for name in ("candidate", "baseline")}})


def sampling_plan(outputs: Sequence[Prediction], labelled: bool, wanted: int | None) -> Transfer:
    """Which samples the target runs: `wanted` random ones (None: every one), and the nearest to a tie of the others."""
    if wanted is None or wanted >= len(outputs):
        return Transfer(list(range(len(outputs))), [])
    random = sorted(np.random.default_rng(0).choice(len(outputs), wanted, replace=False).tolist())
    taken = set(random)
    rest = [index for index in range(len(outputs)) if index not in taken]
    nearest = sorted(rest, key=lambda index: margin(outputs[index]))[:NEAREST] if labelled else []
    return Transfer(random, sorted(nearest))


def margin(prediction: Prediction) -> float:
    """How far the winning class is ahead of the next, at the position where that is least."""
    scores = next(iter(prediction.outputs[0].values()))
    if not scores.ndim or scores.shape[-1] < 2:
        return float(np.abs(scores).min()) if scores.size else 0.0
    two = np.sort(scores, axis=-1)[..., -2:]
    return float((two[..., 1] - two[..., 0]).min())


def agreement(host: Sequence[Prediction], target: Sequence[Prediction], random: int, of: int) -> dict[str, float]:
    """How the first `random` and the other outputs compare, of a model that ran `of` samples here: samples whose top class
    differs, and the largest difference as a share of the largest output."""
    gaps = [
        [gap_of(a, b) for a, b in zip(one.outputs, two.outputs, strict=True)] for one, two in zip(host, target, strict=True)
    ]  # fmt: skip
    largest = max((float(np.abs(value).max()) for one in host for run in one.outputs for value in run.values() if value.size), default=1.0)
    moved = [max(gap.max_abs for gap in one) / max(largest, 1e-12) for one in gaps]
    other = [not all(gap.same_top for gap in one) for one in gaps]
    return {
        "of": float(of),
        "n": float(random),
        "differ": float(sum(other[:random])),
        "nearest": float(len(gaps) - random),
        "nearest_differ": float(sum(other[random:])),
        "max_share": max(moved, default=0.0),
        "beyond": float(sum(share > TOLERANCE for share in moved)),
    }


def upper_share(differ: int, n: int) -> float:
    """Upper 95 % bound of the share of samples that differ, when `differ` of `n` random ones did: exact for none (1 − 0.05^(1/n)),
    else Wilson's (1927), one-sided."""
    if differ == 0:
        return float(1 - 0.05 ** (1 / n))
    z, p = 1.645, differ / n
    centre, spread = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return min(1.0, (centre + spread) / (1 + z * z / n))
