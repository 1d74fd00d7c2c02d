"""How many heads and feed-forward neurons each layer keeps: the least importance lost for the time that is to be saved.

A knapsack over importance per saved microsecond. Within a layer the least important unit goes first, so what a unit costs rises
with every one that goes, and taking the cheapest everywhere (Dantzig's greedy rule) is at most one unit away from the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class LayerUnits:
    """What can go from one layer: first-order importance of each unit, and the time that one of them takes on the target."""

    heads: np.ndarray  # [heads]
    neurons: np.ndarray  # [width]
    head_us: float
    neuron_us: float

    @property
    def us(self) -> float:
        return len(self.heads) * self.head_us + len(self.neurons) * self.neuron_us


@dataclass(frozen=True, slots=True)
class Kept:
    heads: int
    neurons: int


def kept_widths(layers: Sequence[LayerUnits], share: float, multiple_of: int) -> list[Kept]:
    """Heads and neurons that each layer keeps when `share` of the layers' time may stay. Neurons go in blocks of `multiple_of`,
    which kernels like; every layer keeps a head and a block."""
    moves = []  # (importance per µs, layer, part, µs): in the order they go within their layer
    for index, layer in enumerate(layers):
        heads = np.sort(layer.heads)[: len(layer.heads) - 1]
        moves += [(float(value) / layer.head_us, index, "heads", layer.head_us) for value in heads]
        blocks = _blocks(np.sort(layer.neurons), multiple_of)
        moves += [(float(block.sum()) / (len(block) * layer.neuron_us), index, "neurons", len(block)) for block in blocks]
    left = sum(layer.us for layer in layers)
    wanted = share * left
    counts = [[len(layer.heads), len(layer.neurons)] for layer in layers]
    for _, index, part, amount in sorted(moves, key=lambda move: (move[0], move[1], move[2])):
        if left <= wanted:
            break
        if part == "heads":
            counts[index][0] -= 1
            left -= layers[index].head_us
        else:
            counts[index][1] -= int(amount)
            left -= amount * layers[index].neuron_us
    return [Kept(*count) for count in counts]


def _blocks(ordered: np.ndarray, size: int) -> list[np.ndarray]:
    """The neurons that can go, least important first, in blocks: the first one takes the width to a multiple of `size`."""
    width = len(ordered)
    first = width % size or size
    edges = [0, *range(first, width - size + 1, size)] if width > size else [0]
    return [ordered[start:end] for start, end in pairwise(edges)]
