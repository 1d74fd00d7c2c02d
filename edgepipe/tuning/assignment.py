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


@dataclass(frozen=True, slots=True)
class Option:
    """One scheme for one layer: milliseconds on the target, bytes in the file, and what it alone moves the outputs by
    (1 − cosine on calibration data)."""

    scheme: str
    ms: float
    bytes: int
    loss: float = 0.0


def fastest(options: Sequence[Option]) -> Option:
    """Of one layer: the first (float32) unless another is faster by more than timing is uncertain by."""
    best = min(options, key=lambda option: option.ms)
    if best.ms > options[0].ms * (1 - TIE):
        return options[0]
    near = [option for option in options if option.ms <= best.ms * (1 + TIE)]
    return min(near, key=lambda option: (option.loss, -option.bytes))


def assign(layers: Mapping[str, Sequence[Option]], max_bytes: float, fixed: Mapping[str, str] | None = None) -> dict[str, Option]:
    """An option for each layer. Where no choice is small enough, the smallest. `fixed` layers keep the scheme they have."""
    fixed = fixed or {}
    chosen = {
        name: next((option for option in options if option.scheme == fixed.get(name)), None) or fastest(options)
        for name, options in layers.items()
    }
    total_ms = sum(options[0].ms for options in layers.values()) or 1.0
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
    while True:
        moves = [
            (chosen[name].loss - option.loss, option.bytes - chosen[name].bytes, name, option)
            for name, options in layers.items()
            if name not in fixed
            for option in options
            if option.loss < chosen[name].loss
            and option.ms <= chosen[name].ms * (1 + TIE)
            and 0 <= option.bytes - chosen[name].bytes <= room
        ]
        if not moves:
            return chosen
        _, cost, name, option = max(moves, key=lambda move: (move[0] / max(1, move[1]), move[2]))
        chosen[name] = option
        room -= cost
