"""Layer by layer: which scheme each layer got and why, what that cost in accuracy, and the channels that quantize badly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgepipe.report import svg
from edgepipe.report.numbers import figure, number, with_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

SHOWN_LAYERS, SHOWN_STRIPS = 12, 6
TALL, STRIP = 110, 60  # pixels of the accuracy curve and of a strip of channels
FLOAT32 = "float32"
SOURCES = {
    "measured": "measured on the device, at the model's own shapes",
    "counted": "from the instructions that the device's own kernels execute, counted under emulation",
    "host": "measured on this machine, which stands in for the device",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as the table shows it. `ms`: of each kernel in the table's order, None where it was not timed."""

    node: str
    operator: str
    shape: str
    scheme: str
    size_bytes: int
    kernel: str  # that runs
    ms: tuple[float | None, ...]
    reason: str
    divergence: float | None


@dataclass(frozen=True, slots=True)
class Strip:
    """One activation's channels, and their picture."""

    node: str
    told: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class LayersView:
    source: str
    source_reason: str
    kernels: tuple[str, ...]
    layers: tuple[Layer, ...]  # in the model's order
    costliest: tuple[Layer, ...]  # all of them where they are few
    totals: tuple[tuple[str, int, int], ...]  # scheme, layers, bytes
    put_back: tuple[Mapping[str, Any], ...]
    steps: tuple[Mapping[str, Any], ...]
    curve: Markup | None
    strips: tuple[Strip, ...]
    strips_total: int
    reduced: Mapping[str, str]  # node → why its weights have 7 bits
    left: Mapping[str, str]  # node → why it is float32
    neighbours: tuple[Mapping[str, Any], ...]  # the rows on batch and padding invariance


def layers_view(manifest: Mapping[str, Any], key: str) -> LayersView | None:
    """None where nothing was quantized, or nothing is known of it."""
    tuning = manifest.get("tuning") or {}
    program = manifest.get("program") or {}
    rows = manifest.get("results") or ()
    reduced, left = program.get("reduced_range") or {}, program.get("left_in_float32") or {}
    quantized = any(str(run["name"]).startswith("quantize-") for run in manifest.get("passes") or ())
    neighbours = tuple(row for row in rows if quantized and str(row["metric"]).endswith("invariance") and row.get("value") is not None)
    if not (tuning or reduced or left or neighbours):
        return None
    kernels, layers = layers_of(tuning)
    costliest = sorted(layers, key=lambda layer: -(ms_of(layer, kernels) or 0.0))[:SHOWN_LAYERS] if len(layers) > SHOWN_LAYERS else layers
    steps = tuple(tuning.get("steps") or ())
    limit = next((row.get("budget") for row in rows if row["axis"] == "accuracy" and row.get("budget") is not None), None)
    outliers = sorted((tuning.get("outliers") or {}).items(), key=lambda item: -item[1]["ratio"])
    return LayersView(
        str(tuning.get("costs", "")),
        str(tuning.get("costs_reason", "")),
        kernels,
        tuple(layers),
        tuple(costliest),
        tuple(_totals(layers)),
        tuple(tuning.get("put_back") or ()),
        steps,
        accuracy_curve(steps, limit, f"{key}-curve") if len(steps) > 1 else None,
        tuple(_strips(outliers[:SHOWN_STRIPS], key)),
        len(outliers),
        dict(reduced) if hasattr(reduced, "items") else dict.fromkeys(reduced, ""),
        left,
        neighbours,
    )


def layers_of(tuning: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Layer]]:
    """(kernels that were timed, float32 first; the layers in the model's order)."""
    sites: Sequence[Mapping[str, Any]] = tuning.get("sites") or ()
    timed = dict.fromkeys(kernel for site in sites for kernel in site.get("ms") or ())
    kernels = tuple(sorted(timed, key=lambda kernel: kernel != FLOAT32))
    return kernels, [_layer(site, kernels) for site in sites]


def _layer(site: Mapping[str, Any], kernels: Sequence[str]) -> Layer:
    scheme, times, lost = str(site["scheme"]), site.get("ms") or {}, site.get("divergence") or {}
    kernel = scheme if scheme in kernels else scheme.split(",")[0]  # "int8-static, stored in 4 bits" runs as int8-static
    shape = " × ".join(number(size, 0) for size in site.get("shape") or ())
    ms = tuple(times.get(name) for name in kernels)
    return Layer(
        str(site["node"]),
        str(site["operator"]),
        shape,
        scheme,
        int(site["bytes"]),
        kernel,
        ms,
        str(site.get("reason", "")),
        lost.get(scheme),
    )


def ms_of(layer: Layer, kernels: Sequence[str], kernel: str = "") -> float | None:
    """Of the kernel that runs, or of another one."""
    return dict(zip(kernels, layer.ms, strict=True)).get(kernel or layer.kernel)


def _totals(layers: Sequence[Layer]) -> list[tuple[str, int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for layer in layers:
        count, size = found.get(layer.scheme, (0, 0))
        found[layer.scheme] = count + 1, size + layer.size_bytes
    return [(scheme, count, size) for scheme, (count, size) in sorted(found.items(), key=lambda item: -item[1][1])]


def accuracy_curve(steps: Sequence[Mapping[str, Any]], limit: float | None, key: str) -> Markup:
    """Points lost on the dev data, step after step, under the limit's line."""
    drops = [float(step["drop"]) for step in steps]
    high, low = max([*drops, limit or 0.0, 0.0]), min([*drops, 0.0])
    span = (high - low) or 1.0
    top, bottom = 22, 22 + TALL

    def place(index: int) -> tuple[float, float]:
        return 6 + 88 * index / (len(steps) - 1), bottom - TALL * (drops[index] - low) / span

    parts = [svg.segment(0, bottom - TALL * -low / span, 100, bottom - TALL * -low / span, "axis")]
    if limit is not None:
        y = bottom - TALL * (limit - low) / span
        left = abs(drops[0] - limit) > abs(drops[-1] - limit)  # away from the curve
        parts.append(svg.segment(0, y, 100, y, "limit"))
        parts.append(svg.text(0 if left else 100, y - 5, f"limit {number(limit)} points", f"limit-text haloed{'' if left else ' end'}"))
    parts += [svg.segment(*one, *two, "whisker after") for one, two in pairwise(map(place, range(len(steps))))]
    for index, drop in enumerate(drops):
        x, y = place(index)
        near_top = y < top + 14
        parts += [svg.dot(x, y, "after"), svg.text(x, y + 20 if near_top else y - 10, number(drop), "middle haloed")]
        parts.append(svg.text(x, bottom + 22, str(index + 1), "quiet middle"))
    told = "; ".join(f"{index}: {step['what']}, {number(float(step['drop']))} points" for index, step in enumerate(steps, start=1))
    return svg.drawing(bottom + 26, "Points lost on the dev data by step", told, parts, key)


def _strips(outliers: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> list[Strip]:
    values = [value for _, picture in outliers for value in (*picture["curve"], picture["median"]) if value > 0]
    if not values:
        return []
    low, high = min(values), max(values)
    return [_strip(node, picture, low, high, f"{key}-strip{index}") for index, (node, picture) in enumerate(outliers)]


def _strip(node: str, picture: Mapping[str, Any], low: float, high: float, key: str) -> Strip:
    """Channels from the largest |max| to the smallest as bars on a logarithmic axis that all strips share."""
    curve, median = picture["curve"], picture["median"]
    decades = math.log10(high / low) or 1.0

    def tall(value: float) -> float:
        return 3 + (STRIP - 3) * math.log10(max(value, low) / low) / decades

    beyond = min((value for _, value in picture["outliers"]), default=math.inf)
    if picture["outlier_count"] > len(picture["outliers"]):
        beyond = min(beyond, 20 * median)
    width = 100 / len(curve)
    parts = [
        svg.rect(index * width, STRIP - tall(value), width * 0.8, tall(value), "added" if value >= beyond else "before")
        for index, value in enumerate(curve)
        if value > 0
    ]
    parts.append(svg.axis(STRIP))
    tens = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    for ten in tens[:: -(-len(tens) // 3) or 1]:
        y = STRIP - tall(ten)
        parts += [svg.segment(0, y, 100, y, "grid"), svg.text(100, y - 2, f"{ten:g}", "quiet end haloed")]
    if median > 0:
        parts.append(svg.segment(0, STRIP - tall(median), 100, STRIP - tall(median), "median"))
    told = f"the largest of {number(picture['channels'], 0)} channels reaches {number(picture['ratio'], 1)} × the median one"
    named = ", ".join(str(channel) for channel, _ in picture["outliers"][:4])
    count = picture["outlier_count"]
    if count:
        told += f"; {number(count, 0)} beyond 20 ×: {named}{', …' if count > 4 else ''}"
    if picture.get("row_spread"):
        told += f"; the largest row of a sample {number(picture['row_spread'], 1)} × the median row"
    return Strip(node, told, svg.drawing(STRIP + 2, f"Channels of what {node} takes", told, parts, key))


def layer_lines(manifest: Mapping[str, Any], shown: int = 10) -> list[tuple[str, str, str, str, str]]:
    """For a terminal: (node, operator and shape, scheme, float32 ms, ms) of the layers that take longest, the rest summed."""
    kernels, layers = layers_of(manifest.get("tuning") or {})
    ordered = sorted(layers, key=lambda layer: -(ms_of(layer, kernels) or 0.0))
    lines = [
        (layer.node, f"{layer.operator} {layer.shape}", layer.scheme, _ms(ms_of(layer, kernels, FLOAT32)), _ms(ms_of(layer, kernels)))
        for layer in ordered[:shown]
    ]
    if rest := ordered[shown:]:
        before, after = (sum(ms_of(layer, kernels, kernel) or 0.0 for layer in rest) for kernel in (FLOAT32, ""))
        lines.append((f"{len(rest)} more", "", with_unit(sum(layer.size_bytes for layer in rest), "bytes"), _ms(before), _ms(after)))
    return lines


def _ms(value: float | None) -> str:
    return figure(value, "ms")
