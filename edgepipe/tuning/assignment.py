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
STORED_LOSS = 1e-3  # 1 − cosine: what a layer may lose for being stored small where that gains no time
SAVES = 0.1  # of a layer's bytes: what a smaller storage saves at least; kernels differ by less, which does not make one a smaller one
OVERHEAD = 1000  # bytes that the nodes which expand a weight take
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
    faster = [option for option in options if option.ms < options[0].ms * (1 - TIE)]
    if not faster:  # the same kernel on fewer bytes costs nothing
        alike = [
            option
            for option in options
            if option.ms <= options[0].ms and option.loss <= STORED_LOSS and option.bytes < options[0].bytes - OVERHEAD
        ]
        return min(alike, key=lambda option: option.bytes, default=options[0])
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
        moves = [move for move in moves if move[1] > SAVES * chosen[move[2]].bytes] or moves
        if not moves:
            break
        _, saved, name, option = min(moves, key=lambda move: (move[0] / move[1], -move[1], move[2]))
        chosen[name] = option
        size -= saved
    return _with_room(layers, chosen, max_bytes - size, fixed)


def assign_shared(
    layers: Mapping[str, Sequence[Option]], weights: Mapping[str, str], max_bytes: float, fixed: Mapping[str, str] | None = None
) -> dict[str, Option]:
    """`assign` with one scheme for all layers that have the same of `weights`, which the file holds once for each scheme.
    Of several that are fixed for one weight, the scheme that loses least holds."""
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(weights[name], []).append(name)
    joint = {name: _joined([layers[other] for other in groups[weights[name]]]) for name in layers if groups[weights[name]][0] == name}
    held: dict[str, str] = {}
    for first, options in joint.items():
        wanted = {(fixed or {}).get(name) for name in groups[weights[first]]}
        found = [option for option in options if option.scheme in wanted]
        if found:
            held[first] = min(found, key=lambda option: (option.loss, option.ms)).scheme
    chosen = assign(joint, max_bytes, held)
    schemes = {weights[first]: option.scheme for first, option in chosen.items()}
    return {name: next(o for o in options if o.scheme == schemes[weights[name]]) for name, options in layers.items()}


def _joined(members: Sequence[Sequence[Option]]) -> list[Option]:
    """Options that all have, as one layer's."""
    by_scheme = [{option.scheme: option for option in options} for options in members]
    return [
        Option(scheme, sum(one[scheme].ms for one in by_scheme), sum(one[scheme].bytes for one in by_scheme), sum(one[scheme].loss for one in by_scheme))
        for scheme in by_scheme[0]
        if all(scheme in one for one in by_scheme)
    ]  # fmt: skip


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
            if option.loss < chosen[name].loss and option.ms <= slowest[name] and 0 <= option.bytes - chosen[name].bytes <= room
        ]
        if not moves:
            return chosen
        _, cost, name, option = max(moves, key=lambda move: (move[0] / max(1, move[1]), move[2]))
        chosen[name] = option
        room -= cost
