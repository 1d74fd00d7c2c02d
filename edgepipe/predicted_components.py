"""Latency of a program of several components, or with state, on an ARM board that is not here: every component's instructions,
as often as the sample runs it, added up.

The sample is the one of median work among some of the test data. Of a component that runs on many sizes the smallest and the
largest are counted; the others lie between the two.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from edgepipe.components import inputs_of, view
from edgepipe.cost.counting import Counts, NodeCounts
from edgepipe.predicted import KINDS, between, counted, counted_together, predicted_at_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.emulation import Emulated
    from edgepipe.predicted import Predicted
    from edgepipe.probes import Feeds
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.readers import Sample
    from edgepipe.store import Store

LOOKED_AT = 15  # samples, of which the median one is counted

Shape = tuple[tuple[str, tuple[int, ...]], ...]  # of every input, by name


def predict_components(
    candidate: Artifact,
    baseline: Artifact,
    profile: Profile,
    emulation: Emulated,
    samples: Sequence[Sample],
    store: Store,
    progress: Progress,
) -> Predicted:
    """Both programs on the sample of median work, with what the baseline gives its components. Raises `DeviceError` without
    a C compiler."""
    calls = _median([inputs_of(baseline, samples[index]) for index in range(0, len(samples), max(1, len(samples) // LOOKED_AT))])
    artifacts = dict(zip(KINDS, (baseline, candidate), strict=True))
    jobs = [(kind, role, feeds) for kind in KINDS for role, found in calls.items() for feeds in _ends(found)]

    def one(kind: str, role: str, feeds: Feeds) -> Counts:
        alone = view(artifacts[kind], role)
        taken = {entry["name"]: feeds[entry["name"]] for entry in alone.model.signature["inputs"]}  # not what became a constant
        told_by = {"shape": [[name, list(dims)] for name, dims in _shape(taken)]}
        return counted(alone, taken, told_by, profile, emulation, store)

    counts = counted_together(
        {(kind, role, _shape(feeds)): partial(one, kind, role, feeds) for kind, role, feeds in jobs}, profile, progress
    )
    return predicted_at_task({kind: _whole(calls, {key[1:]: c for key, c in counts.items() if key[0] == kind}) for kind in KINDS}, profile)


def _shape(feeds: Feeds) -> Shape:
    return tuple((name, tuple(value.shape)) for name, value in feeds.items())


def _elements(shape: Shape) -> int:
    return sum(math.prod(dims) for _, dims in shape)


def _median(runs: Sequence[Mapping[str, list[Feeds]]]) -> Mapping[str, list[Feeds]]:
    """The run of median work, by the elements that go into its components."""
    return sorted(runs, key=lambda calls: sum(_elements(_shape(feeds)) for found in calls.values() for feeds in found))[len(runs) // 2]


def _ends(calls: Sequence[Feeds]) -> list[Feeds]:
    """The calls of the smallest and the largest inputs: one where all are the same."""
    by_shape = {_shape(feeds): feeds for feeds in reversed(calls)}
    ordered = sorted(by_shape, key=_elements)
    return [by_shape[shape] for shape in dict.fromkeys(ordered[:1] + ordered[-1:])]


def _whole(calls: Mapping[str, list[Feeds]], counts: Mapping[tuple[str, Shape], Counts]) -> Counts:
    """Every component's counts times its runs, as one inference."""
    nodes: dict[tuple[str, str], NodeCounts] = {}
    rest: dict[str, int] = {}
    for role, found in calls.items():
        ends = [_shape(feeds) for feeds in _ends(found)]
        for shape, times in Counter(_shape(feeds) for feeds in found).items():
            low, high = _elements(ends[0]), _elements(ends[-1])
            share = (_elements(shape) - low) / (high - low) if high > low else 1.0
            one = between(counts[role, ends[0]], counts[role, ends[-1]], share)
            _add(rest, one.rest, times)
            for index, node in enumerate(one.nodes):
                key = (role, f"{index} {node.name}")
                kept = nodes.setdefault(key, NodeCounts(f"{role}: {node.name}", node.op_type, node.inputs, node.outputs, {}))
                _add(kept.amounts, node.amounts, times)
    return Counts(tuple(nodes.values()), rest, next(iter(counts.values())).caches)


def _add(total: dict[str, int], amounts: Mapping[str, Any], times: int) -> None:
    for quantity, amount in amounts.items():
        total[quantity] = total.get(quantity, 0) + times * amount
