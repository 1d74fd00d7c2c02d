"""Predicted latency: each shape with its 90 % interval against its limit, and how it falls with threads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgepipe.report import svg
from edgepipe.report.charts import interval_chart
from edgepipe.report.numbers import conditions_text, figure, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

SIDES = (("before", "baseline"), ("after", "candidate"))
LEVEL = 90
TALL = 136  # pixels of the scaling chart between 0 and the slowest


@dataclass(frozen=True, slots=True)
class Shape:
    """One predicted condition: its chart, and its figures as text for the table."""

    title: str
    chart: Markup
    before: str
    after: str
    faster: str
    row: Mapping[str, Any] | None  # the manifest's, with limit and verdict
    reasons: tuple[str, ...]  # why its interval is wider, where other shapes' are not


@dataclass(frozen=True, slots=True)
class PredictionView:
    shapes: tuple[Shape, ...]
    scaling: Markup | None
    threads: tuple[Mapping[str, float], ...]
    reasons: tuple[str, ...]
    unchecked: tuple[str, ...]


def prediction_view(measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], key: str) -> PredictionView | None:
    """What the page shows of predicted latencies; None where nothing was predicted."""
    entries = measured.get("predicted") or ()
    if not entries:
        return None
    threads = measured.get("scaling") or ()
    shared = tuple(reason for reason in entries[0].get("reasons") or () if all(reason in (one.get("reasons") or ()) for one in entries))
    return PredictionView(
        tuple(_shape(entry, rows, shared, f"{key}-predicted{index}") for index, entry in enumerate(entries)),
        scaling_chart(threads, f"{key}-scaling") if len(threads) > 1 else None,
        tuple(threads),
        shared,
        tuple(dict.fromkeys(name for entry in entries for name in entry.get("unchecked") or ())),
    )


def _shape(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shared: Sequence[str], key: str) -> Shape:
    conditions = {name: entry.get(name) for name in ("batch", "length", "threads")}
    row = next((row for row in rows if row["axis"] == "latency" and row.get("conditions") == conditions), None)
    title = conditions_text(conditions)
    title = title[:1].upper() + title[1:]
    if entry.get("median_length"):
        title += f" (median {entry['median_length']} tokens)"
    limit = row.get("budget") if row else None
    return Shape(
        title,
        interval_chart(
            [(label, entry[side]["ms"], (entry[side]["low"], entry[side]["high"]), label) for label, side in SIDES],
            [] if limit is None else [(limit, f"limit {figure(limit, 'ms')} ms", "limit")],
            f"Predicted latency, {title}",
            key,
            unit="ms",
            level=LEVEL,
        ),
        _spread(entry["baseline"]),
        _spread(entry["candidate"]),
        faster_text(entry["ratio"]),
        row,
        tuple(reason for reason in entry.get("reasons") or () if reason not in shared),
    )


def faster_text(ratio: Mapping[str, float]) -> str:
    """`1.46 × as fast [1.21, 1.75]`, from the candidate's share of the baseline's time."""
    return f"{number(1 / ratio['value'])} × as fast [{number(1 / ratio['high'])}, {number(1 / ratio['low'])}]"


def _spread(side: Mapping[str, float]) -> str:
    return f"{figure(side['ms'], 'ms')} [{figure(side['low'], 'ms')}, {figure(side['high'], 'ms')}]"


def scaling_chart(threads: Sequence[Mapping[str, float]], key: str) -> Markup:
    """Milliseconds before and after over the number of threads, from 0."""
    slowest = max(point[side] for point in threads for _, side in SIDES) or 1.0
    step = 88 / (len(threads) - 1)
    bottom = 26 + TALL

    def place(index: int, side: str) -> tuple[float, float]:
        return 6 + step * index, bottom - TALL * threads[index][side] / slowest

    parts = [svg.axis(bottom)]
    for (kind, side), (_, other) in zip(SIDES, SIDES[::-1], strict=True):
        points = [place(index, side) for index in range(len(threads))]
        parts += [svg.segment(*one, *two, f"whisker {kind}") for one, two in pairwise(points)]
        for (x, y), point in zip(points, threads, strict=True):
            upper = point[side] > point[other] or (kind == "before" and point[side] == point[other])
            parts += [svg.dot(x, y, kind), svg.text(x, y - 10 if upper else y + 20, figure(point[side], "ms"), "middle haloed")]
    for index, point in enumerate(threads):
        x, _ = place(index, "baseline")
        parts += [svg.line(x, bottom, bottom + 4, "axis"), svg.text(x, bottom + 17, number(point["threads"], 0), "quiet middle")]
    told = "; ".join(
        f"{number(point['threads'], 0)}: {figure(point['baseline'], 'ms')} to {figure(point['candidate'], 'ms')} ms" for point in threads
    )
    return svg.drawing(bottom + 22, "Predicted milliseconds before and after by threads", told, parts, key)
