"""Where a model stands under its device's roofs (Williams, Waterman, Patterson, "Roofline", CACM 2009)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.report import svg
from edgepipe.report.numbers import number, with_unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from markupsafe import Markup

LEFT, TOP, TALL = 9.0, 14, 236  # per cent; pixels
NEAR = 0.6  # of a roof: what it takes to be bound by it
CAUSES = {"compute": "arithmetic", "issue": "the instructions around the arithmetic", "memory": "memory and caches"}


@dataclass(frozen=True, slots=True)
class Point:
    """One model: operations a byte from main memory (infinite where nothing comes from there), and what it reaches."""

    name: str  # before | after
    kind: str  # float32 | int8: which roof is over it
    intensity: float
    gop_s: float
    roof_gop_s: float
    by_memory: bool  # the slope is its roof, not the flat part


@dataclass(frozen=True, slots=True)
class RooflineView:
    chart: Markup
    points: tuple[Point, ...]
    sentences: tuple[str, ...]
    roofs: Mapping[str, float]
    bandwidth_gb_s: float | None


def roofline_view(measured: Mapping[str, Any], passes: Iterable[Mapping[str, Any]], key: str) -> RooflineView | None:
    """None where the device was not predicted, or did no arithmetic that a roof is over."""
    data = measured.get("roofline") or {}
    roofs = {kind: float(peak) for kind, peak in (data.get("peaks_gop_s") or {}).items() if peak}
    bandwidth = data.get("bandwidth_gb_s")
    int8 = any(run["name"] in ("quantize-dynamic", "quantize-static") for run in passes)
    points = []
    for name, side, kind in (("before", "baseline", "float32"), ("after", "candidate", "int8" if int8 else "float32")):
        found = (data.get("points") or {}).get(side) or {}
        if found.get("operations") and found.get("gop_s") and kind in roofs:
            points.append(_point(name, kind, found, roofs[kind], bandwidth))
    if not points:
        return None
    costliest = measured.get("costliest") or {}
    nodes = {"before": costliest.get("baseline") or (), "after": costliest.get("candidate") or ()}
    sentences = tuple(_sentence(point, nodes[point.name]) for point in points)
    return RooflineView(_chart(points, roofs, bandwidth, key), tuple(points), sentences, roofs, bandwidth)


def _point(name: str, kind: str, found: Mapping[str, float], peak: float, bandwidth: float | None) -> Point:
    intensity = found["operations"] / found["dram_bytes"] if found.get("dram_bytes") else math.inf
    slope = intensity * bandwidth if bandwidth else math.inf
    return Point(name, kind, intensity, found["gop_s"], min(peak, slope), slope < peak)


def _sentence(point: Point, nodes: Sequence[Mapping[str, Any]]) -> str:
    far = math.isinf(point.intensity)
    reads = "reads nothing from main memory" if far else f"does {number(point.intensity, 1)} operations for each byte from main memory"
    roof = (
        f"main memory lets it do {number(point.roof_gop_s, 1)}"
        if point.by_memory
        else f"{point.kind} arithmetic can do {number(point.roof_gop_s, 1)}"
    )
    share = point.gop_s / point.roof_gop_s
    text = (
        f"{point.name.capitalize()}, it {reads}; there {roof} GOP/s, and it reaches {number(point.gop_s, 1)} ({number(100 * share, 0)} %): "
    )
    if share >= NEAR:
        return text + f"bound by {'main memory' if point.by_memory else 'arithmetic'}."
    total = sum(node["ms"] for node in nodes)
    if not total:
        return text + "far from its roofs, so bound by what is neither arithmetic nor main memory."
    times = {cause: sum(node["ms"] for node in nodes if node["bound"] == cause) / total for cause in CAUSES}
    told = [f"{CAUSES[cause]} {number(100 * part, 0)} %" for cause, part in sorted(times.items(), key=lambda one: -one[1]) if part >= 0.005]
    return text + f"not bound by that roof alone; what bounds its costliest nodes, by time: {', '.join(told)}."


def _chart(points: Sequence[Point], roofs: Mapping[str, float], bandwidth: float | None, key: str) -> Markup:
    finite = [point.intensity for point in points if math.isfinite(point.intensity)]
    ridges = [peak / bandwidth for peak in roofs.values()] if bandwidth else []
    xs = _Scale([*finite, *ridges] or [1.0], LEFT, 100.0)
    reached = [point.gop_s for point in points]
    ys = _Scale([*reached, *roofs.values(), *([xs.low * bandwidth] if bandwidth else [])], TOP + TALL, TOP, spread=1.6)
    bottom = TOP + TALL
    parts: list[Markup] = []
    for tick in ys.ticks():
        parts += [svg.segment(LEFT, ys(tick), 100, ys(tick), "grid"), svg.text(LEFT, ys(tick) + 4, f"{tick:g}", "quiet end", shift=-6)]
    for tick in xs.ticks():
        parts += [svg.line(xs(tick), TOP, bottom, "grid"), svg.text(xs(tick), bottom + 16, f"{tick:g}", "quiet middle")]
    parts.append(svg.axis(bottom, LEFT))
    highest = max(roofs.values())
    for kind, peak in roofs.items():
        start = max(xs.low, peak / bandwidth) if bandwidth else xs.low
        parts.append(svg.segment(xs(start), ys(peak), 100, ys(peak), "roof"))
        parts.append(svg.text(100, ys(peak) - 6, f"{kind} {number(peak, 1)} GOP/s", "end quiet"))
    if bandwidth:
        end = highest / bandwidth
        parts.append(svg.segment(LEFT, ys(xs.low * bandwidth), xs(end), ys(highest), "roof"))
        middle = xs.low * (end / xs.low) ** 0.3
        parts.append(svg.text(xs(middle), ys(middle * bandwidth) + 14, f"memory {number(bandwidth, 1)} GB/s", "quiet haloed", shift=6))
    for index, point in enumerate(points):
        x, y = xs(min(point.intensity, xs.high)), ys(point.gop_s)
        close = len(points) == 2 and abs(xs(min(points[0].intensity, xs.high)) - xs(min(points[1].intensity, xs.high))) < 25
        lower = (close and point.gop_s < max(reached)) or (close and index == 0 and len(set(reached)) == 1)
        edge = x > 75
        parts.append(svg.dot(x, y, point.name))
        words = f"{point.name} {number(point.gop_s, 1)}"
        parts.append(svg.text(x, y + (20 if lower else -10), words, f"strong haloed {'end' if edge else 'middle'}", shift=6 if edge else 0))
    told = [f"{kind} roof {number(peak, 1)} GOP/s" for kind, peak in roofs.items()]
    told += [f"memory {number(bandwidth, 1)} GB/s"] if bandwidth else []
    told += [f"{point.name}: {number(point.intensity, 1)} operations a byte, {with_unit(point.gop_s, 'GOP/s')}" for point in points]
    parts.append(svg.text((LEFT + 100) / 2, bottom + 34, "operations a byte from main memory", "quiet middle"))
    parts.append(svg.text(0, 4, "GOP/s", "quiet"))
    return svg.drawing(bottom + 40, "Roofline of the device with the model before and after", "; ".join(told), parts, key)


class _Scale:
    """A logarithmic axis around the values, from place `start` to place `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float, spread: float = 4.0) -> None:
        self.low, self.high = min(values) / spread, max(values) * spread
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Powers of ten inside, or 1, 2, 5 of them where fewer than three are."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1,), (1, 2, 5)):
            found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
            inside = [tick for tick in found if self.low * 1.02 < tick < self.high / 1.02]
            if len(inside) >= 3:
                break
        return inside
