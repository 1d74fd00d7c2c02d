"""Charts as inline SVG of what every build has: sizes by pass, times as histograms, figures with their intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from edgepipe.report import svg
from edgepipe.report.numbers import figure, number, with_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BINS = 60
DRAWN = 0.995  # share of the times inside a histogram's axis; the slower ones are counted in words
LABELS = 18.0  # width of the row labels of a dot-and-whisker chart, per cent


def size_chart(passes: Sequence[Mapping[str, Any]], limit_bytes: float | None, key: str) -> Markup:
    """A bar a pass: what stays (full) and what the pass took (pale) or added (another colour), with the size limit marked."""
    largest = max(max(run["size_bytes_before"], run["size_bytes_after"]) for run in passes) or 1
    parts = []
    for index, run in enumerate(passes):
        top, before, after = index * 46, run["size_bytes_before"], run["size_bytes_after"]
        kept, wide = 100 * min(before, after) / largest, 100 * max(before, after) / largest
        parts += [
            svg.text(0, top + 14, run["name"], "strong"),
            Markup('<text x="100%" y="{}" class="end"><tspan class="quiet">{} →</tspan> {}</text>').format(
                top + 14, number(before / 1e6), with_unit(after, "bytes")
            ),
            svg.rect(0, top + 22, 100, 12, "track"),
            svg.rect(kept, top + 22, wide - kept, 12, "taken" if after < before else "added"),
            svg.rect(0, top + 22, kept, 12, "after"),
        ]
        if limit_bytes is not None and limit_bytes <= largest:
            parts += [svg.line(100 * limit_bytes / largest, top + 18, top + 38, kind) for kind in ("halo", "limit solid")]
    height = 46 * len(passes)
    if limit_bytes is not None and limit_bytes <= largest:
        parts.append(svg.text(100 * limit_bytes / largest, height + 8, f"limit {with_unit(limit_bytes, 'bytes')}", "limit-text"))
        height += 14
    told = "; ".join(
        f"{run['name']}: {with_unit(run['size_bytes_before'], 'bytes')} to {with_unit(run['size_bytes_after'], 'bytes')}" for run in passes
    )
    return svg.drawing(height, "Size after each pass", told, parts, key)


def latency_chart(
    before_ms: Sequence[float], after_ms: Sequence[float], marks: Mapping[str, Mapping[str, float | None]], title: str, key: str
) -> Markup:
    """Two histograms over one axis from 0 ms, before above after. `marks`: {"before" | "after": {"median": ms, …}}."""
    ordered = sorted([*before_ms, *after_ms])
    last = ordered[min(len(ordered) - 1, math.ceil(DRAWN * len(ordered)))] or 1.0
    ticks = svg.ticks(0.0, last)
    bins = {"before": _bins(before_ms, last), "after": _bins(after_ms, last)}
    tallest = max(max(share) for share in bins.values()) or 1.0
    parts, told, top = [], [], 0
    for name, shares in bins.items():
        words = ", ".join(f"{mark} {number(ms)} ms" for mark, ms in marks[name].items() if ms is not None)
        told.append(f"{name}: {words or 'no summary'}")
        parts += [svg.text(0, top + 14, name, "strong"), svg.text(100, top + 14, words, "end")]
        for index, share in enumerate(shares):
            if share:
                tall = max(1.0, 56 * share / tallest)
                parts.append(svg.rect(100 * index / BINS, top + 80 - tall, 100 / BINS, tall, name))
        if (median := marks[name].get("median")) is not None and median <= last:
            parts.append(svg.line(100 * median / last, top + 20, top + 80, "median"))
        parts.append(svg.axis(top + 80))
        top += 92
    parts += [
        part
        for tick in ticks
        for part in svg.tick(100 * tick / last, top - 12, number(tick, svg.tick_decimals(ticks)) + (" ms" if tick == ticks[-1] else ""))
    ]
    slower = [sum(ms > last for ms in times) for times in (before_ms, after_ms)]
    if any(slower):
        parts.append(svg.text(0, top + 26, f"slower than {number(last)} ms, not drawn: {slower[0]} before, {slower[1]} after", "quiet"))
        top += 18
    return svg.drawing(top + 14, title, "; ".join(told), parts, key)


def interval_chart(
    rows: Sequence[tuple[str, float, Sequence[float] | None, str]],
    lines: Sequence[tuple[float, str, str]],
    title: str,
    key: str,
    *,
    unit: str = "points",
    level: int = 95,
) -> Markup:
    """Dots with whiskers, a row each (label, value, interval of `level` per cent, class), over vertical lines (value, text,
    class). Times stand on an axis from 0, points on one around them."""
    inside = [bound for _, value, interval, _ in rows for bound in (value, *(interval or ()))] + [value for value, _, _ in lines]
    low, high = 0.0 if unit == "ms" else min(inside), max(inside)
    pad = 0.12 * (high - low) or 1.0
    low, high = low - (0 if unit == "ms" else pad), high + pad

    def place(value: float) -> float:
        return LABELS + (100 - LABELS) * (value - low) / (high - low)

    head = 18 if any(words for _, words, _ in lines) else 0
    height = head + 6 + 28 * len(rows)
    parts: list[Markup] = []
    for value, words, kind in lines:
        parts.append(svg.line(place(value), head, height, kind))
        if words:
            parts.append(svg.text(place(value), 12, words, f"{kind}-text {'end' if place(value) > 60 else 'middle'}"))
    for index, (label, value, interval, kind) in enumerate(rows):
        y = head + 16 + 28 * index
        parts.append(svg.text(0, y + 4, label, "strong"))
        if interval:
            left, right = place(interval[0]), place(interval[1])
            parts.append(svg.segment(left, y, right, y, f"whisker {kind}"))
            parts += [svg.line(end, y - 6, y + 6, f"whisker {kind}") for end in (left, right)]
        parts.append(svg.dot(place(value), y, kind))
    parts.append(svg.axis(height, LABELS))
    ticks = [tick for tick in svg.ticks(low, high) if tick >= low]
    named = " ms" if unit == "ms" else ""
    parts += [
        part
        for tick in ticks
        for part in svg.tick(place(tick), height, number(tick, svg.tick_decimals(ticks)) + (named if tick == ticks[-1] else ""))
    ]
    told = [
        f"{label} {figure(value, unit)}{named}"
        + (f", {level} % interval {figure(interval[0], unit)} to {figure(interval[1], unit)}" if interval else "")
        for label, value, interval, _ in rows
    ]
    return svg.drawing(height + 22, title, "; ".join([*told, *(words for _, words, _ in lines if words)]), parts, key)


def _bins(times: Sequence[float], last: float) -> list[float]:
    """Share of the times in each of `BINS` equal steps from 0 to `last`; slower ones fall out."""
    counts = [0] * BINS
    for ms in times:
        if ms <= last:
            counts[min(BINS - 1, int(BINS * ms / last))] += 1
    return [count / len(times) for count in counts] if times else [0.0] * BINS
