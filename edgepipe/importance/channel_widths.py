"""How many channels each layer keeps, when a share of all is to go and widths are to land on what kernels like."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.channels import Channels

WHERE = "prune-channels.ratio"


def kept_units(channels: Sequence[Channels], scores: Sequence[np.ndarray], ratio: float, *, per_layer: bool, multiple_of: int) -> list[int]:
    """For each set of channels how many units stay; the least important go first, in blocks that take a width to the next multiple.

    A width that is no wider than a multiple stays as it is. Raises `UsageError` for a ratio that leaves a layer empty, and for one at
    which nothing goes.
    """
    steps = [multiple_of // gcd(multiple_of, each.rows) for each in channels]
    if per_layer:
        kept = [_nearest(each, step, ratio) for each, step in zip(channels, steps, strict=True)]
    else:
        kept = _least_important(channels, scores, steps, ratio)
    if all(units == each.units for units, each in zip(kept, channels, strict=True)):
        raise UsageError(
            f"no channel goes at a ratio of {ratio:g}: widths land on multiples of {multiple_of}, and no layer comes near the next",
            where=WHERE,
            fix="raise the ratio, or lower multiple_of",
        )
    return kept


def _nearest(each: Channels, step: int, ratio: float) -> int:
    if round(ratio * each.width) >= each.width:
        raise _empty(ratio, each, f"lower the ratio to {_rounded_down(1 - 1 / each.width)}")
    return min(each.units, max(step, round((1 - ratio) * each.units / step) * step))


def _least_important(channels: Sequence[Channels], scores: Sequence[np.ndarray], steps: Sequence[int], ratio: float) -> list[int]:
    kept, lost = [each.units for each in channels], 0.0
    wanted = ratio * sum(each.width for each in channels)
    blocks = sorted(
        (float(block.mean()) / each.rows, index, number, len(block))
        for index, (each, own, step) in enumerate(zip(channels, scores, steps, strict=True))
        for number, block in enumerate(_blocks(np.sort(own), step))
    )
    for _, index, _, units in blocks:
        size = units * channels[index].rows
        if wanted - lost < size / 2:
            return kept
        kept[index] -= units
        lost += size
    if wanted - lost >= 1:
        most = lost / sum(each.width for each in channels)
        raise _empty(ratio, _emptied(channels, scores, ratio), f"lower the ratio to {_rounded_down(most)}")
    return kept


def _blocks(ordered: np.ndarray, step: int) -> list[np.ndarray]:
    """What can go, least important first; the first block takes the width to a multiple, and one step stays."""
    first = len(ordered) % step or step
    edges = list(range(first, len(ordered) - step + 1, step))
    return [ordered[start:end] for start, end in zip([0, *edges], edges, strict=False)]


def _emptied(channels: Sequence[Channels], scores: Sequence[np.ndarray], ratio: float) -> Channels:
    """The layer that loses the greatest share by rank alone."""
    owner = np.repeat(np.arange(len(channels)), [len(own) for own in scores])
    ranked = np.argsort(np.concatenate([own / each.rows for own, each in zip(scores, channels, strict=True)]), kind="stable")
    lost = np.bincount(owner[ranked[: round(ratio * len(ranked))]], minlength=len(channels))
    return channels[int(np.argmax(lost / np.array([each.units for each in channels])))]


def _empty(ratio: float, each: Channels, fix: str) -> UsageError:
    return UsageError(
        f"a ratio of {ratio:g} leaves {each.name} none of its {each.width} channels",
        where=WHERE,
        fix=f"{fix} at most, lower multiple_of, or exclude layers",
    )


def _rounded_down(share: float) -> str:
    return f"{int(share * 100) / 100:g}"
