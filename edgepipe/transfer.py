"""Accuracy on a target that is too slow to run every sample: the host runs all, the target some, and corrects the host.

The target runs a random sample of the test data, and of the rest those whose outputs are nearest to a tie, where a small
difference shows first. Samples up to the last of those nearest make a stratum that the target ran whole: it counts as the
target has it. For the others the difference estimator of survey sampling (Cochran, Sampling Techniques, 1977, chapters 5
and 7) adds what their random samples show to the host's figure: nothing where both agree. Where the target ran all, the
figure is the target's own. (Extrapolated from all random samples, the near ties would count twice: 1.3 points of bias with
2,000 samples, of which 154 near ties flip.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.edit_distance import is_reading
from edgepipe.gaps import gap_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.runners import Prediction

NEAREST = 50
ENOUGH = 100  # random samples: where none differs, under 3 % of all do (95 %)
TOLERANCE = 0.01  # of the largest output: what the rounding of another instruction set moves


@dataclass(slots=True)
class Transfer:
    """What the target gave for the samples it ran: counts by index in the test data, and how far outputs are apart."""

    random: list[int]
    nearest: list[int]
    near: list[int] = field(default_factory=list)  # random ones that are as near to a tie as the nearest
    candidate: dict[int, list[float]] = field(default_factory=dict)
    baseline: dict[int, list[float]] = field(default_factory=dict)  # the host's, where its parity there was seen
    agreement: dict[str, float] = field(default_factory=dict)
    baseline_agreement: dict[str, float] = field(default_factory=dict)

    def fill(self, host: np.ndarray, target: Mapping[int, Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """(all samples with those near a tie as the target has them, the other random ones as the target has them, the same
        as the host has them, share of the data that these stand for)."""
        mixed = host.copy()
        whole = [*self.nearest, *self.near]
        for index in whole:
            mixed[index] = target[index]
        near = set(self.near)
        others = [index for index in self.random if index not in near]
        there = np.array([target[index] for index in others]).reshape(len(others), *host.shape[1:])
        return mixed, there, host[others], (len(host) - len(whole)) / len(host)

    def told(self, device: str) -> str:
        """What the target's part in the figure is, in words."""
        found, n = self.agreement, len(self.random)
        near = f" and on {found['nearest_differ']:.0f} of the {len(self.nearest)} nearest to a tie" if self.nearest else ""
        if found["of"] == n:
            return f"all {n} samples ran on {device}'s kernels"
        base = self.baseline_agreement
        baseline = (
            "" if base["differ"] or base["beyond"] else f"; the float32 baseline ran here, {base['n']:.0f} of {base['n']:.0f} agree there"
        )
        if not found["differ"]:
            return (
                f"every sample ran here, {n} random ones on {device}'s kernels too: 0 differ there (so under {upper_share(0, n):.1%} of all, 95 %, which the interval leaves out)"
                f"{near.replace(' and on ', ', and ') + ' do' if near else ''}{baseline}"
            )
        return (
            f"{device}'s kernels differ from this machine's on {found['differ']:.0f} of {n} random samples{near}; "
            f"the figure is corrected by them{baseline}"
        )

    @property
    def doubt(self) -> str:
        """Why so few samples on the target prove nothing."""
        n = len(self.random)
        if n >= ENOUGH or self.agreement["of"] == n:
            return ""
        return f"only {n} random samples ran on the target, too few to speak for the rest: --target-samples {ENOUGH} or more"

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
    nearest: list[int] = []
    near: list[int] = []
    for index in sorted(range(len(outputs)), key=lambda index: margin(outputs[index])) if labelled else ():
        if len(nearest) == NEAREST:
            break
        (near if index in taken else nearest).append(index)
    return Transfer(random, sorted(nearest), sorted(near))


def margin(prediction: Prediction) -> float:
    """How far the winning class is ahead of the next, at the position where that is least."""
    scores = next(iter(prediction.outputs[0].values()))
    if not scores.ndim or scores.shape[-1] < 2:
        return float(np.abs(scores).min()) if scores.size else 0.0
    two = np.sort(scores, axis=-1)[..., -2:]
    return float((two[..., 1] - two[..., 0]).min())


def agreement(host: Sequence[Prediction], target: Sequence[Prediction], random: int, of: int, *, labelled: bool = True) -> dict[str, float]:
    """How the first `random` and the other outputs compare, of a model that ran `of` samples here: samples that differ (in
    the top class, or beyond the tolerance where outputs are no scores of labels), and the largest difference as a share of
    the largest output."""
    gaps = [
        [gap_of(a, b) for a, b in zip(one.outputs, two.outputs, strict=True)] for one, two in zip(host, target, strict=True)
    ]  # fmt: skip
    sizes = (np.abs(value[np.isfinite(value)]) for one in host for run in one.outputs for value in run.values())
    largest = 1.0 if is_reading(host[0].outputs[0]) else max((float(size.max()) for size in sizes if size.size), default=1.0)
    moved = [max(gap.max_abs for gap in one) / max(largest, 1e-12) for one in gaps]
    other = [not all(gap.same_top for gap in one) if labelled else share > TOLERANCE for one, share in zip(gaps, moved, strict=True)]
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
