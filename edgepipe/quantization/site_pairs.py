"""Single quantized nodes beside their float32 selves, between what turns floats into codes and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.quantization.cutting import FLOAT, QUANTIZED, real_values, standalone
from edgepipe.quantization.nested import Nested
from edgepipe.quantization.regions import FOLLOWING
from edgepipe.quantization.regions import borders as borders_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np

    from edgepipe.quantization.cutting import Graphs
    from edgepipe.quantization.nested import Value


@dataclass(frozen=True, slots=True)
class Span:
    """One site: its nodes in both models, and the value that comes out of them on floats, and where the quantized one
    makes floats again."""

    site: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    inputs: tuple[Value, ...]
    result: Value
    end: Value


@dataclass(frozen=True, slots=True)
class SitePairs:
    """Graphs to ask the costs of: `<site>/float32` and `<site>/quantized`."""

    spans: dict[str, Span]
    graphs: Graphs


def cut_sites(before: Path, after: Path, sites: Iterable[str], feeds: Mapping[str, np.ndarray]) -> SitePairs:
    """Each quantized site by itself: its float32 node with what follows in one line, against the same on codes between a
    QuantizeLinear and a DequantizeLinear, as far as the rewrite put them there. Sites that both models have, or that no
    sample reaches, are left out."""
    ours, theirs = Nested(before), Nested(after)
    wanted = set(sites)
    spans = [span for index, node in enumerate(ours.nodes) if node.name in wanted and (span := _span(ours, theirs, index))]
    values = {value for span in spans for value in (*span.inputs, span.result) if ours.has(value)}
    arrays = real_values(ours, values, feeds)
    spans = [span for span in spans if all(value in arrays for value in span.inputs)]
    graphs: Graphs = {}
    for span in spans:
        given = {value: arrays[value] for value in span.inputs}
        graphs[f"{span.site}/{FLOAT}"] = standalone(ours, span.before, given, [span.result])
        graphs[f"{span.site}/{QUANTIZED}"] = standalone(theirs, span.after, given, [span.end])
    return SitePairs({span.site: span for span in spans}, graphs)


def _span(ours: Nested, theirs: Nested, index: int) -> Span | None:
    """The float32 side grows by what follows until the quantized side makes codes; that is all that leads from the same
    inputs to the same result."""
    mine, result = [index], ours.outputs[index][0]
    while not (codes := _reading(theirs, result, "QuantizeLinear")) or result not in theirs.producer:
        readers = ours.readers.get(result, [])
        if len(readers) != 1 or result in ours.ends or ours.nodes[readers[0]].op_type not in FOLLOWING:
            break
        if any(one not in ours.constants for one in ours.inputs[readers[0]] if one != result) or ours.scopes[readers[0]] != result[0]:
            break
        mine.append(readers[0])
        result = ours.outputs[readers[0]][0]
    if result not in theirs.producer:
        return None
    inputs = borders_of(ours, mine)[0]
    other = _leading_to(theirs, result, set(inputs))
    end = result
    for quantize in codes:
        for dequantize in _reading(theirs, theirs.outputs[quantize][0], "DequantizeLinear")[:1]:
            other |= {quantize, dequantize}
            end = theirs.outputs[dequantize][0]
    alike = [theirs.nodes[i].op_type for i in sorted(other)] == [ours.nodes[i].op_type for i in sorted(mine)]
    every = dict.fromkeys([*inputs, *borders_of(theirs, other)[0]])
    return None if alike else Span(ours.nodes[index].name, tuple(sorted(mine)), tuple(sorted(other)), tuple(every), result, end)


def _reading(model: Nested, value: Value, operator: str) -> list[int]:
    return [index for index in model.readers.get(value, ()) if model.nodes[index].op_type == operator]


def _leading_to(model: Nested, result: Value, inputs: set[Value]) -> set[int]:
    found: set[int] = set()
    waiting = [result]
    while waiting:
        value = waiting.pop()
        maker = model.producer.get(value)
        if maker is None or maker in found or value in inputs or model.scopes[maker] != result[0]:
            continue
        found.add(maker)
        waiting += model.inputs[maker]
    return found
