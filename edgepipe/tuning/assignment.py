"""Which scheme each layer gets: the fastest that fits the size budget, and of equals the one that loses least.

The size budget makes it a knapsack; layers are moved to smaller schemes one by one, the cheapest byte first (Dantzig's
greedy rule for its linear relaxation), which is at most one layer away from the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIE = 0.05  # of a layer's time: what timing is uncertain by
NEAR = 0.15  # kernels this close are chosen between by what they lose


@dataclass(frozen=True, slots=True)
class Option:
    """One scheme for one layer: milliseconds on the target, bytes in the file, and what it alone moves the outputs by
    (1 − cosine on calibration data)."""

    scheme: str
    ms: float
    bytes: int
    loss: float = 0.0


def best_of(options: Sequence[Option]) -> Option:
    """Of one layer: the first (float32) unless others are faster by more than timing is uncertain by; of the fastest and
    those near it the one that loses least, so that neighbours do not differ for a hair's breadth of time."""
    faster = [option for option in options if option.ms <= options[0].ms * (1 - TIE)]
    if not faster:
        return options[0]
    least = min(option.ms for option in faster)
    near = [option for option in faster if option.ms <= least * (1 + NEAR)]
    return min(near, key=lambda option: (option.loss, option.ms, -option.bytes))


def assign(layers: Mapping[str, Sequence[Option]], max_bytes: float, fixed: Mapping[str, str] | None = None) -> dict[str, Option]:
    """An option for each layer. Where no choice is small enough, the smallest. `fixed` layers keep the scheme they have."""
    fixed = fixed or {}
    total_ms = sum(options[0].ms for options in layers.values()) or 1.0
    chosen = {
        name: next((option for option in options if option.scheme == fixed.get(name)), None) or best_of(options)
        for name, options in layers.items()
    }
    size = sum(option.bytes for option in chosen.values())
    while size > max_bytes:
        moves = [
            ((option.ms - chosen[name].ms) / total_ms + option.loss - chosen[name].loss, chosen[name].bytes - option.bytes, name, option)
            for name, options in layers.items()
            if name not in fixed
            for option in options
            if option.bytes < chosen[name].bytes
        ]
        if not moves:
            break
        _, saved, name, option = min(moves, key=lambda move: (move[0] / move[1], -move[1], move[2]))
        chosen[name] = option
        size -= saved
    return _with_room(layers, chosen, max_bytes - size, fixed)


def _with_room(
    layers: Mapping[str, Sequence[Option]], chosen: dict[str, Option], room: float, fixed: Mapping[str, str]
) -> dict[str, Option]:
    """Bytes that are left over go to the layers that lose most by what was saved on them."""
    slowest = {name: max(now.ms, min(now.ms * (1 + TIE), layers[name][0].ms)) for name, now in chosen.items()}
    while True:
        moves = [
            (chosen[name].loss - option.loss, option.bytes - chosen[name].bytes, name, option)
            for name, options in layers.items()
            if name not in fixed
            for option in options
            if option.loss < chosen[name].loss
            and option.ms <= slowest[name]
            and 0 <= option.bytes - chosen[name].bytes <= room
        ]
        if not moves:
            return chosen
        _, cost, name, option = max(moves, key=lambda move: (move[0] / max(1, move[1]), move[2]))
        chosen[name] = option
        room -= cost
