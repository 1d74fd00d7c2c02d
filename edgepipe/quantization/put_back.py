"""What to take back of a quantization that does not pay: regions that lost, and within a region the nodes that do.

Which nodes to run on codes and which on floats, with a price for every value that must change from one to the other,
is the assignment of a program's modules to two processors: a minimum cut (Stone, IEEE Transactions on Software
Engineering 1977), so the best choice is found, not searched for.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edgepipe.quantization.regions import Region

MARGIN = 0.03  # what timing is uncertain by: a region must win by more, or it is put back


@dataclass(frozen=True, slots=True)
class Choice:
    """Milliseconds of one node on floats, and on codes where it reads and gives codes; infinite where it cannot."""

    float_ms: float
    int8_ms: float


@dataclass(frozen=True, slots=True)
class Border:
    """A value between nodes: who makes and who reads it, None for what stays on floats. Quantizing it once serves all
    readers on codes, dequantizing it once all readers on floats."""

    producer: str | None
    readers: tuple[str | None, ...]
    quantize_ms: float
    dequantize_ms: float


def losing(regions: Mapping[str, Region], costs: Mapping[str, float], margin: float = MARGIN) -> list[str]:
    """Names of the float32 model's nodes whose regions do not win by `margin`, given `<region>/float32` and
    `<region>/quantized` in milliseconds. Regions without costs are left as they are."""
    found: list[str] = []
    for name, region in regions.items():
        before, after = costs.get(f"{name}/float32"), costs.get(f"{name}/quantized")
        if before is not None and after is not None and after > before * (1 - margin):
            found += region.sites
    return found


def total_ms(quantized: Collection[str], choices: Mapping[str, Choice], borders: Sequence[Border]) -> float:
    """What a choice of quantized nodes costs, borders with it."""
    total = sum(choice.int8_ms if name in quantized else choice.float_ms for name, choice in choices.items())
    for border in borders:
        made = border.producer in quantized
        if not made and any(reader in quantized for reader in border.readers):
            total += border.quantize_ms
        if made and any(reader not in quantized for reader in border.readers):
            total += border.dequantize_ms
    return total


def best_subset(choices: Mapping[str, Choice], borders: Sequence[Border]) -> frozenset[str]:
    """The nodes to quantize for the least total; as few as possible where several totals are least."""
    flow = _Flow()
    source, sink = flow.node(), flow.node()  # a node of the model is on the sink's side where it is quantized
    places = {name: flow.node() for name in choices}
    for name, choice in choices.items():
        flow.edge(source, places[name], choice.int8_ms)
        flow.edge(places[name], sink, choice.float_ms)
    for border in borders:
        made = source if border.producer is None else places[border.producer]
        reading = [source if reader is None else places[reader] for reader in border.readers]
        some_int8, some_float = flow.node(), flow.node()
        flow.edge(made, some_int8, border.quantize_ms)
        flow.edge(some_float, made, border.dequantize_ms)
        for reader in reading:
            flow.edge(some_int8, reader, math.inf)
            flow.edge(reader, some_float, math.inf)
    reached = flow.float_side(source, sink)
    return frozenset(name for name, place in places.items() if place not in reached)


class _Flow:
    """A network whose minimum cut is found by shortest augmenting paths in layers (Dinic 1970)."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = []  # of each node, numbers of edges
        self._to: list[int] = []
        self._left: list[float] = []  # an edge's capacity; edge n ^ 1 is its reverse

    def node(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, start: int, end: int, capacity: float) -> None:
        for origin, target, room in ((start, end, capacity), (end, start, 0.0)):
            self._edges[origin].append(len(self._to))
            self._to.append(target)
            self._left.append(room)

    def float_side(self, source: int, sink: int) -> set[int]:
        """Nodes that the sink cannot be reached from, once the flow is greatest: the largest source side of a minimum cut."""
        while sink in (levels := self._levels(source)):
            tried = [0] * len(self._edges)
            while self._push(source, sink, levels, tried):
                pass
        backwards, waiting = {sink}, deque([sink])
        while waiting:
            place = waiting.popleft()
            for number in self._edges[place]:
                origin = self._to[number]
                if self._room(number ^ 1) and origin not in backwards:
                    backwards.add(origin)
                    waiting.append(origin)
        return set(range(len(self._edges))) - backwards

    def _room(self, number: int) -> bool:
        return self._left[number] > 1e-12

    def _levels(self, source: int) -> dict[int, int]:
        levels, waiting = {source: 0}, deque([source])
        while waiting:
            place = waiting.popleft()
            for number in self._edges[place]:
                if self._room(number) and self._to[number] not in levels:
                    levels[self._to[number]] = levels[place] + 1
                    waiting.append(self._to[number])
        return levels

    def _push(self, source: int, sink: int, levels: Mapping[int, int], tried: list[int]) -> bool:
        """Send what one path in the layers can take; no recursion, a chain may be thousands of nodes long."""
        path: list[int] = []
        place = source
        while place != sink:
            while tried[place] < len(self._edges[place]):
                number = self._edges[place][tried[place]]
                if self._room(number) and levels.get(self._to[number]) == levels[place] + 1:
                    break
                tried[place] += 1
            if tried[place] < len(self._edges[place]):
                path.append(number)
                place = self._to[number]
            elif not path:
                return False
            else:
                place = self._to[path.pop() ^ 1]
                tried[place] += 1
        amount = min(self._left[number] for number in path)
        for number in path:
            self._left[number] -= amount
            self._left[number ^ 1] += amount
        return True
