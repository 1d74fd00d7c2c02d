"""Where a quantized model differs from its float32 model: regions of nodes that belong together, with the values at
their borders, which both models have.

Fusions reach past what a rewrite changed (a bias, an activation after a product), so what follows in one line belongs
to a region too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edgepipe.quantization.nested import Nested, Value

# What runtimes fuse into the product or convolution before it.
FOLLOWING = frozenset(
    {"Add", "BatchNormalization", "Clip", "Gelu", "HardSigmoid", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes of both models, by number, that do the same; what they read and what others read of them."""

    before: tuple[int, ...]  # of the float32 model
    after: tuple[int, ...]  # of the quantized one
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    sites: tuple[str, ...]  # names of the float32 model's nodes in `before`
    trouble: str = ""  # why it cannot be cut out; empty where it can


def find_regions(before: Nested, after: Nested) -> list[Region]:
    """Maximal connected regions of nodes that only one of the models has, in the float32 model's order. None crosses
    the border of an If's, Loop's or Scan's body."""
    inside = _shape_of_bodies(before) == _shape_of_bodies(after)
    changed = _changed(before, after, inside), _changed(after, before, inside)
    groups = _connected(before, after, *changed)
    same = _same(before, after, changed)
    taken = {index for group in groups for index in group[0]}
    found = []
    for ours, theirs in groups:
        for index, twin in _followers(before, after, ours, same, taken):
            ours.add(index)
            theirs.add(twin)
            taken.add(index)
        if ours and theirs:
            found.append(_region(before, after, sorted(ours), sorted(theirs)))
    return sorted(found, key=lambda region: region.before)


def _shape_of_bodies(model: Nested) -> list[tuple[int, str]]:
    holders = {body: model.nodes[index].op_type for index, bodies in model.bodies.items() for body in bodies}
    return [(parent, holders.get(scope, "")) for scope, parent in enumerate(model.parents)]


def _signature(model: Nested, index: int, inside: bool) -> tuple[Any, ...]:
    """What makes a node the same in both models: all but the values of constants. With `inside` its bodies are looked at
    for themselves."""
    node, scope = model.nodes[index], model.scopes[index]
    read = [(scope, name) if not name else model.resolve(scope, name) for name in node.input]
    constants = [(c.data_type, tuple(c.dims)) if (c := model.constants.get(value)) else () for value in read]
    attributes = sorted(
        a.SerializeToString(deterministic=True) for a in node.attribute if not (inside and (a.HasField("g") or a.graphs))
    )  # fmt: skip
    return scope, node.domain, node.op_type, tuple(read), tuple(constants), tuple(node.output), tuple(attributes)


def _looked_at(model: Nested, inside: bool) -> Iterator[int]:
    return (i for i, node in enumerate(model.nodes) if node.op_type != "Constant" and (inside or model.scopes[i] == 0))


def _changed(model: Nested, other: Nested, inside: bool) -> set[int]:
    known = Counter(_signature(other, index, inside) for index in _looked_at(other, inside))
    return {index for index in _looked_at(model, inside) if not known[_signature(model, index, inside)]}


def _same(before: Nested, after: Nested, changed: tuple[set[int], set[int]]) -> dict[int, int]:
    """For nodes that both models have: the number in the quantized one."""
    return {
        index: twin
        for value, index in before.producer.items()
        if index not in changed[0] and (twin := after.producer.get(value)) is not None and twin not in changed[1]
    }


def _connected(before: Nested, after: Nested, ours: set[int], theirs: set[int]) -> list[tuple[set[int], set[int]]]:
    roots: dict[tuple[int, int], tuple[int, int]] = {}

    def root(item: tuple[int, int]) -> tuple[int, int]:
        while roots.setdefault(item, item) != item:
            item = roots[item]
        return item

    for side, (model, changed) in enumerate(((before, ours), (after, theirs))):
        for index in changed:
            for value in model.inputs[index]:
                maker = model.producer.get(value)
                if maker in changed and model.scopes[maker] == model.scopes[index]:
                    roots[root((side, index))] = root((side, maker))
            root((side, index))
    for index in ours:
        for value in before.outputs[index]:
            twin = after.producer.get(value)
            if twin in theirs:
                roots[root((0, index))] = root((1, twin))
    groups: dict[tuple[int, int], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    for side, index in list(roots):
        groups[root((side, index))][side].add(index)
    return list(groups.values())


def _followers(
    before: Nested, after: Nested, ours: Iterable[int], same: dict[int, int], taken: set[int]
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Nodes that stand in one line behind a region's."""
    edge = [value for index in ours for value in before.outputs[index]]
    while edge:
        value = edge.pop()
        readers = before.readers.get(value, [])
        if len(readers) != 1 or value in before.ends or readers[0] in taken or readers[0] not in same:
            continue
        (reader,) = readers
        others = [one for one in before.inputs[reader] if one != value]
        alone = before.scopes[reader] == value[0] and all(one in before.constants for one in others)
        if alone and before.nodes[reader].op_type in FOLLOWING and after.readers.get(value) == [same[reader]]:
            yield reader, same[reader]
            edge += before.outputs[reader]


def _region(before: Nested, after: Nested, ours: Sequence[int], theirs: Sequence[int]) -> Region:
    inputs = list(dict.fromkeys([*borders(before, ours)[0], *borders(after, theirs)[0]]))
    outputs = borders(before, ours)[1]
    missing = [value[1] for value in inputs if not before.has(value)]
    lost = [value[1] for value in outputs if after.producer.get(value) not in theirs]
    trouble = (
        f"the float32 model has no value {missing[0]}" if missing else f"the quantized model makes {lost[0]} elsewhere" if lost else ""
    )
    names = tuple(before.nodes[index].name for index in ours)
    return Region(tuple(ours), tuple(theirs), tuple(inputs), tuple(outputs), names, trouble)


def borders(model: Nested, nodes: Iterable[int]) -> tuple[list[Value], list[Value]]:
    """(what the nodes read of others, constants left out; what others read of them, and a graph's outputs)."""
    inside = set(nodes)
    made = {value: None for index in inside for value in model.outputs[index]}
    read = dict.fromkeys(value for index in sorted(inside) for value in model.inputs[index] if value not in model.constants)
    inputs = [value for value in read if value not in made and not _constant(model, value)]
    used = [value for value in made if value in model.ends or any(reader not in inside for reader in model.readers.get(value, ()))]
    return inputs, used


def _constant(model: Nested, value: Value) -> bool:
    maker = model.producer.get(value)
    return maker is not None and model.nodes[maker].op_type == "Constant"
