"""How figures look: numbers with their units as a person reads them, and charts as inline SVG.

Horizontal places are per cent of the chart's width and vertical ones pixels, so a chart fits a phone and a desk while
its text keeps its size. Colours are CSS classes of the page, so that light and dark both work.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MINUS, NONE = "\u2212", "–"
DECIMALS = {"points": 2, "ms": 2, "samples/s": 1, "operator types": 0}
BINS = 60
DRAWN = 0.995  # share of the times inside a histogram's axis; the slower ones are counted in words
LABELS = 18.0  # width of the row labels of a dot-and-whisker chart, per cent


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """`1,234.50` with a true minus sign and no negative zero; `–` for None."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def short(value: float | None) -> str:
    """Three significant digits, for tolerances: `9.54e-07`, `0.1`."""
    return NONE if value is None else f"{value:.3g}".replace("-", MINUS)


def figure(value: float | None, unit: str) -> str:
    """A result's number in its unit's usual digits, without the unit. Bytes as MB (10^6), shares as per cent."""
    if value is None:
        return NONE
    if unit == "bytes":
        return number(value / 1e6)
    if unit == "share":
        return number(100 * value)
    if unit == "":
        return number(value, 5) if abs(value) >= 1e-3 else short(value)
    return number(value, DECIMALS[unit]) if unit in DECIMALS else short(value)


def unit_name(unit: str) -> str:
    return {"bytes": "MB", "share": "%"}.get(unit, unit)


def with_unit(value: float | None, unit: str) -> str:
    return f"{figure(value, unit)} {unit_name(unit)}".strip()


def limit_text(row: Mapping[str, Any], *, unit: bool = True) -> str:
    """`≤ 4.32 ms`, or `≥ 99.00 %` for a figure of which more is better."""
    if row.get("budget") is None:
        return NONE
    sign = "≥" if row.get("better") == "higher" else "≤"
    named = unit and row["axis"] != "operators"
    return f"{sign} {(with_unit if named else figure)(row['budget'], row['unit'])}"


def interval_text(row: Mapping[str, Any]) -> str:
    interval = row.get("interval")
    return f"{figure(interval[0], row['unit'])} to {figure(interval[1], row['unit'])}" if interval else NONE


def change_text(row: Mapping[str, Any]) -> str:
    """`4.32 → 2.27 ms`, or the value alone where there is no baseline; operators as `0 of 16 operator types`."""
    if row["axis"] == "operators" and row.get("n") and row.get("value") is not None:
        return f"{figure(row['value'], row['unit'])} of {with_unit(row['n'], row['unit'])}"
    before = "" if row.get("baseline") is None else f"{figure(row['baseline'], row['unit'])} → "
    return before + with_unit(row.get("value"), row["unit"])


def conditions_text(conditions: Mapping[str, Any]) -> str:
    """`1 × 128, 2 threads`; `task lengths, batch 1, 2 threads`."""
    rest = dict(conditions)
    batch, length, threads = rest.pop("batch", None), str(rest.pop("length", "") or ""), rest.pop("threads", None)
    parts = []
    if length.isdigit() and batch is not None:
        parts.append(f"{batch} × {length}")
    else:
        if length:
            parts.append({"task": "task lengths", "longest": "longest input"}.get(length, f"length {length}"))
        if batch is not None:
            parts.append(f"batch {batch}")
    if threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join([*parts, *(f"{key} {value}" for key, value in rest.items())])


def size_chart(passes: Sequence[Mapping[str, Any]], limit_bytes: float | None, key: str) -> Markup:
    """A bar a pass: what stays (full) and what the pass took (pale) or added (another colour), with the size limit marked."""
    largest = max(max(run["size_bytes_before"], run["size_bytes_after"]) for run in passes) or 1
    parts = []
    for index, run in enumerate(passes):
        top, before, after = index * 46, run["size_bytes_before"], run["size_bytes_after"]
        kept, wide = 100 * min(before, after) / largest, 100 * max(before, after) / largest
        parts += [
            _text(0, top + 14, run["name"], "strong"),
            Markup('<text x="100%" y="{}" class="end"><tspan class="quiet">{} →</tspan> {}</text>').format(
                top + 14, number(before / 1e6), with_unit(after, "bytes")
            ),
            _rect(0, top + 22, 100, 12, "track"),
            _rect(kept, top + 22, wide - kept, 12, "taken" if after < before else "added"),
            _rect(0, top + 22, kept, 12, "after"),
        ]
        if limit_bytes is not None and limit_bytes <= largest:
            parts += [_line(100 * limit_bytes / largest, top + 18, top + 38, kind) for kind in ("halo", "limit solid")]
    height = 46 * len(passes)
    if limit_bytes is not None and limit_bytes <= largest:
        parts.append(_text(100 * limit_bytes / largest, height + 8, f"limit {with_unit(limit_bytes, 'bytes')}", "limit-text"))
        height += 14
    told = "; ".join(
        f"{run['name']}: {with_unit(run['size_bytes_before'], 'bytes')} to {with_unit(run['size_bytes_after'], 'bytes')}" for run in passes
    )
    return _svg(height, "Size after each pass", told, parts, key)


def latency_chart(
    before_ms: Sequence[float], after_ms: Sequence[float], marks: Mapping[str, Mapping[str, float | None]], title: str, key: str
) -> Markup:
    """Two histograms over one axis from 0 ms, before above after. `marks`: {"before" | "after": {"median": ms, …}}."""
    ordered = sorted([*before_ms, *after_ms])
    last = ordered[min(len(ordered) - 1, math.ceil(DRAWN * len(ordered)))] or 1.0
    ticks = _ticks(0.0, last)
    bins = {"before": _bins(before_ms, last), "after": _bins(after_ms, last)}
    tallest = max(max(share) for share in bins.values()) or 1.0
    parts, told, top = [], [], 0
    for name, shares in bins.items():
        words = ", ".join(f"{mark} {number(ms)} ms" for mark, ms in marks[name].items() if ms is not None)
        told.append(f"{name}: {words or 'no summary'}")
        parts += [_text(0, top + 14, name, "strong"), _text(100, top + 14, words, "end")]
        for index, share in enumerate(shares):
            if share:
                tall = max(1.0, 56 * share / tallest)
                parts.append(_rect(100 * index / BINS, top + 80 - tall, 100 / BINS, tall, name))
        if (median := marks[name].get("median")) is not None and median <= last:
            parts.append(_line(100 * median / last, top + 20, top + 80, "median"))
        parts.append(_axis(top + 80))
        top += 92
    parts += [
        part
        for tick in ticks
        for part in _tick(100 * tick / last, top - 12, number(tick, _tick_decimals(ticks)) + (" ms" if tick == ticks[-1] else ""))
    ]
    slower = [sum(ms > last for ms in times) for times in (before_ms, after_ms)]
    if any(slower):
        parts.append(_text(0, top + 26, f"slower than {number(last)} ms, not drawn: {slower[0]} before, {slower[1]} after", "quiet"))
        top += 18
    return _svg(top + 14, title, "; ".join(told), parts, key)


def interval_chart(
    rows: Sequence[tuple[str, float, Sequence[float] | None, str]], lines: Sequence[tuple[float, str, str]], title: str, key: str
) -> Markup:
    """Dots with whiskers, a row each (label, value, interval, class), over vertical lines (value, text, class)."""
    inside = [bound for _, value, interval, _ in rows for bound in (value, *(interval or ()))] + [value for value, _, _ in lines]
    low, high = min(inside), max(inside)
    pad = 0.12 * (high - low) or 1.0
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return LABELS + (100 - LABELS) * (value - low) / (high - low)

    head = 18 if any(words for _, words, _ in lines) else 0
    height = head + 6 + 28 * len(rows)
    parts: list[Markup] = []
    for value, words, kind in lines:
        parts.append(_line(place(value), head, height, kind))
        if words:
            parts.append(_text(place(value), 12, words, f"{kind}-text {'end' if place(value) > 60 else 'middle'}"))
    for index, (label, value, interval, kind) in enumerate(rows):
        y = head + 16 + 28 * index
        parts.append(_text(0, y + 4, label, "strong"))
        if interval:
            left, right = place(interval[0]), place(interval[1])
            parts.append(Markup('<line x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}" class="whisker {}"/>').format(left, right, y, y, kind))
            parts += [_line(end, y - 6, y + 6, f"whisker {kind}") for end in (left, right)]
        parts.append(Markup('<circle cx="{:.2f}%" cy="{}" r="5" class="dot {}"/>').format(place(value), y, kind))
    parts.append(Markup('<line x1="{}%" x2="100%" y1="{}" y2="{}" class="axis"/>').format(LABELS, height, height))
    ticks = [tick for tick in _ticks(low, high) if tick >= low]
    parts += [part for tick in ticks for part in _tick(place(tick), height, number(tick, _tick_decimals(ticks)))]
    told = [
        f"{label} {number(value)}" + (f", 95 % interval {number(interval[0])} to {number(interval[1])}" if interval else "")
        for label, value, interval, _ in rows
    ]
    return _svg(height + 22, title, "; ".join([*told, *(words for _, words, _ in lines if words)]), parts, key)


def _bins(times: Sequence[float], last: float) -> list[float]:
    """Share of the times in each of `BINS` equal steps from 0 to `last`; slower ones fall out."""
    counts = [0] * BINS
    for ms in times:
        if ms <= last:
            counts[min(BINS - 1, int(BINS * ms / last))] += 1
    return [count / len(times) for count in counts] if times else [0.0] * BINS


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from the first inside [low, high]."""
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_decimals(ticks: Sequence[float]) -> int:
    return next((digits for digits in range(6) if all(abs(round(tick, digits) - tick) < 1e-9 for tick in ticks)), 6)


def _tick(x: float, y: float, text: str) -> list[Markup]:
    edge = "" if x < 3 else "end" if x > 96 else "middle"
    return [_line(x, y, y + 4, "axis"), _text(x, y + 17, text, f"quiet {edge}")]


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text x="{:.2f}%" y="{}" class="{}">{}</text>').format(x, y, kind, text)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return Markup('<rect x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}" class="{}"/>').format(x, y, width, height, kind)


def _line(x: float, top: float, bottom: float, kind: str) -> Markup:
    return Markup('<line x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}" class="{}"/>').format(x, x, top, bottom, kind)


def _axis(y: float) -> Markup:
    return Markup('<line x1="0" x2="100%" y1="{}" y2="{}" class="axis"/>').format(y, y)


def _svg(height: float, title: str, told: str, parts: Sequence[Markup], key: str) -> Markup:
    return Markup(
        '<svg class="chart" role="img" width="100%" height="{height}" aria-labelledby="{key}-title {key}-desc">'
        '<title id="{key}-title">{title}</title><desc id="{key}-desc">{told}</desc>{body}</svg>'
    ).format(height=height, key=key, title=title, told=told, body=Markup("").join(parts))
