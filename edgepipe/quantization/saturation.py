"""Which int8 products lose sums on x86 without VNNI: found from the weights and from real activations.

`vpmaddubsw`, the one instruction such CPUs have for u8 × s8, adds two neighbouring products in 16 bits and saturates (Intel
64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW). 255 · 127 twice is 64,770, and 32,767 comes out.

ONNX Runtime packs a weight [k, n] in groups of four rows, so that the neighbours are rows 2p and 2p + 1 of one column. In
QLinearConv channels lie innermost: neighbours are two channels at one place of the kernel, or the next place where a group
has an odd number of them. ConvInteger, depthwise QLinearConv, MatMulNBits, and products with uint8 weights add in 32 bits.
All of that was seen under emulation of a Haswell with ONNX Runtime 1.32; `tests/quantization/test_saturation.py` looks again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.calibration import stream
from edgepipe.quantization.rounding import NEEDS_HESSIAN, quantize
from edgepipe.quantization.sites import attribute, matrix_of
from edgepipe.quantization.static import scale_of
from edgepipe.quantization.weights8 import progressive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.static import Scale
    from edgepipe.quantization.weights8 import Rounding

    Feeds = Mapping[str, np.ndarray]

LIMIT = 32767
NEAR = 0.8  # of the limit: over 1,000 inputs sums reached up to 1.21 × what they did over 64 others (26 layers of MiniLM)
LARGEST_CODE = 255
WATCHED_PAIRS = 16_000_000  # 10 bytes each; a model with more that could saturate gets 7 bits in the rest of its nodes
CHUNK_SUMS = 2_000_000


@dataclass(frozen=True, slots=True)
class Saturation:
    """What the sums of two products came to in one node, over all samples."""

    share: float  # of all sums those beyond 16 bits
    largest: int  # |sum| of the pairs that could saturate; 0 where none of them was seen
    unseen: str = ""  # why nothing was seen of a node that could saturate

    @property
    def near(self) -> bool:
        """Whether the node saturates, or comes so near that another input might."""
        return bool(self.unseen) or self.largest > NEAR * LIMIT

    @property
    def reason(self) -> str:
        """For a person, of one that is `near`."""
        if self.unseen:
            return self.unseen
        if self.share == 0:
            return f"sums of two products reach {self.largest:,}, near the 16-bit limit of {LIMIT:,}"
        return f"{100 * self.share:.2g} % of the sums of two products leave 16 bits, the largest {self.largest:,}"


def saturations(
    graph: Graph,
    path: Path,
    sites: Mapping[str, Site],
    rounding: Rounding,
    feeds: Iterable[Feeds],
    *,
    scales: Mapping[str, Scale] | None = None,
    disabled_optimizers: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Saturation]:
    """Every site that could saturate with full-range weights, with what the samples made of it.

    `path`: the float32 model that `graph` is a view of; `scales`: those that activations will have, where they are fixed;
    without, the range of each run. Memory is that of the watched pairs and of one sample.
    """
    nodes = {node.name: node for node in graph.nodes}
    found: dict[str, Saturation] = {}
    watches: dict[str, list[_Watch]] = {}
    left = WATCHED_PAIRS
    for name, site in sites.items():
        if not in_16_bits(site, nodes[name], rounding, static=scales is not None):
            continue
        watch = _Watch.of(graph, nodes[name], site, rounding, left)
        if isinstance(watch, str):
            found[name] = Saturation(0.0, 0, watch)
        elif watch is not None:
            left -= len(watch.pairs)
            watches.setdefault(site.data, []).append(watch)
    if watches:
        for value, array in stream(path, list(watches), feeds, disabled_optimizers=disabled_optimizers, progress=progress):
            codes, zero = _codes(array, None if scales is None else scales[value])
            for watch in watches[value]:
                watch.see(codes, zero)
    seen = {watch.site.node: watch.result() for group in watches.values() for watch in group}
    return {name: (found | seen)[name] for name in sites if name in found or name in seen}


def in_16_bits(site: Site, node: Any, rounding: Rounding, *, static: bool) -> bool:
    """Whether the kernel that the site gets adds two products in 16 bits."""
    if site.kind == "convolution":  # in 8 bits from one to the next, which has fixed scales and symmetric weights
        group = attribute(node, "group", 1)
        return static and site.operator == "Conv" and not (group == site.n and site.shape[1] == 1)
    return site.kind in ("product", "attention", "recurrent") and rounding.symmetric


def full_range_codes(weight: np.ndarray, rounding: Rounding, site: Site) -> np.ndarray:
    """The codes int8 [k, n] that kernels will see of a weight. Methods that need second moments move a code by a step or
    a few from the nearest, which the margin covers."""
    from dataclasses import replace

    plain = replace(rounding, reduced=frozenset(), method="nearest" if rounding.method in NEEDS_HESSIAN else rounding.method)
    if plain.stored_bits == 4:
        found, factors = progressive(weight, plain, site)
        return np.asarray(found.codes * np.repeat(factors, found.group_size, axis=0)[: len(weight)])
    codes: np.ndarray = quantize(plain.method, weight, plain.grid(site), name=site.weight).codes
    return codes


def _codes(values: np.ndarray, scale: Scale | None) -> tuple[np.ndarray, int]:
    """A float32 activation as uint8, by a fixed scale or by its own range as DynamicQuantizeLinear does, and its zero point."""
    if values.size == 0:
        return values.astype(np.uint8), 0
    finite = np.nan_to_num(values.astype(np.float32, copy=False))
    scale = scale or scale_of(float(finite.min()), float(finite.max()))
    codes = np.rint(finite / np.float32(scale.scale)) + np.float32(scale.zero_point)
    return np.clip(codes, 0, LARGEST_CODE).astype(np.uint8), scale.zero_point


@dataclass(slots=True)
class _Watch:
    """The pairs of one site that could saturate: (row 2p, column, both weights), and what came of them."""

    site: Site
    node: Any
    pairs: np.ndarray  # [watched] p, int32
    groups: np.ndarray  # [watched] of a convolution's channels
    weights: np.ndarray  # [2, watched] int8
    sums: int = 0
    saturated: int = 0
    largest: int = 0
    rows_seen: int = field(default=0)

    @staticmethod
    def of(graph: Graph, node: Any, site: Site, rounding: Rounding, most: int) -> _Watch | str | None:
        """None where no activation could make the site saturate; in words why it cannot be watched although one could."""
        if site.kind == "recurrent":
            weights = [each.T for name in node.input[1:3] for each in graph.array(name)]
            risky = any(_risky(full_range_codes(each, rounding, site)).any() for each in weights)
            return "its sums could leave 16 bits, and its inner state is not seen" if risky else None
        codes = full_range_codes(matrix_of(graph, node, site), rounding, site)
        if site.kind == "convolution":
            codes = channels_innermost(codes, site)
        columns = max(1, CHUNK_SUMS // max(1, len(codes)))
        pairs, outputs, weights = [], [], []
        count = 0
        for start in range(0, site.n, columns):
            part = _even(codes[:, start : start + columns])
            pair, column = np.nonzero(_risky(part))
            count += len(pair)
            if count > most:
                return "too many of its weights could saturate to be watched"
            pairs.append(pair.astype(np.int32))
            outputs.append((column + start).astype(np.int32))
            weights.append(np.stack([part[2 * pair, column], part[2 * pair + 1, column]]))
        if count == 0:
            return None
        per_group = site.n // attribute(node, "group", 1) if site.kind == "convolution" else site.n
        return _Watch(site, node, np.concatenate(pairs), np.concatenate(outputs) // per_group, np.concatenate(weights, axis=1))

    def see(self, codes: np.ndarray, zero: int) -> None:
        """Take in one run's activation."""
        if self.site.kind != "convolution":
            self._multiply(_even(codes.reshape(-1, self.site.k).T).T, np.arange(len(self.pairs)), self.site.n)
            return
        for group, rows in patches(codes, zero, self.node, self.site):
            groups = attribute(self.node, "group", 1)
            self._multiply(_even(rows.T).T, np.flatnonzero(self.groups == group), self.site.n // groups)

    def _multiply(self, rows: np.ndarray, watched: np.ndarray, columns: int) -> None:
        """Rows [m, k] of codes with the watched pairs; those that no row could bring beyond what is known are left out."""
        if len(rows) == 0:
            return
        self.rows_seen += len(rows)
        self.sums += len(rows) * (rows.shape[1] // 2) * columns
        pairs, (first, second) = self.pairs[watched], self.weights[:, watched].astype(np.int32)
        top = rows.max(axis=0).astype(np.int32)
        reach = np.abs(first) * top[2 * pairs] + np.abs(second) * top[2 * pairs + 1]  # both weights have one sign
        far = reach > min(self.largest, LIMIT)
        pairs, first, second = pairs[far], first[far], second[far]
        step = max(1, CHUNK_SUMS // len(rows))
        for start in range(0, len(pairs), step):
            part = slice(start, start + step)
            sums = rows[:, 2 * pairs[part]].astype(np.int32) * first[part] + rows[:, 2 * pairs[part] + 1].astype(np.int32) * second[part]
            self.largest = max(self.largest, int(np.abs(sums).max()))
            self.saturated += int(((sums > LIMIT) | (sums < -LIMIT - 1)).sum())

    def result(self) -> Saturation:
        if self.rows_seen == 0:
            return Saturation(0.0, 0, "its sums could leave 16 bits, and no sample reaches it")
        return Saturation(self.saturated / max(1, self.sums), self.largest)


def _even(codes: np.ndarray) -> np.ndarray:
    """With a row of zeros behind an odd number of them, as kernels fill up."""
    return np.concatenate([codes, np.zeros((1, codes.shape[1]), codes.dtype)]) if len(codes) % 2 else codes


def _risky(codes: np.ndarray) -> np.ndarray:
    """[k / 2, n]: whether two products of a pair of rows leave 16 bits with the largest codes; with unlike signs they never do."""
    even = _even(codes).astype(np.int16)
    above, below = even.clip(min=0), even.clip(max=0)
    highest = (above[0::2] + above[1::2]).astype(np.int32) * LARGEST_CODE
    lowest = (below[0::2] + below[1::2]).astype(np.int32) * LARGEST_CODE
    risky: np.ndarray = (highest > LIMIT) | (lowest < -LIMIT - 1)
    return risky


def channels_innermost(codes: np.ndarray, site: Site) -> np.ndarray:
    """A convolution's codes [channels · places, n] as [places · channels, n]."""
    channels = site.shape[1]
    return codes.reshape(channels, -1, site.n).swapaxes(0, 1).reshape(site.k, site.n)


def patches(codes: np.ndarray, zero: int, node: Any, site: Site) -> Iterator[tuple[int, np.ndarray]]:
    """(group, [outputs, places · channels]) of a convolution's input [batch, channels, …], some output rows at a time."""
    kernel = site.shape[2:]
    rank = len(kernel)
    strides, dilations = (attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(node, codes.shape[2:], spans, strides)
    padded = np.pad(codes, [(0, 0), (0, 0), *pads], constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    every = tuple(slice(None, None, stride) for stride in strides)
    windows = windows[(slice(None), slice(None), *every, *(slice(None, None, dilation) for dilation in dilations))]
    channels = site.shape[1]
    for group in range(attribute(node, "group", 1)):
        picked = windows[:, group * channels : (group + 1) * channels]
        last = np.moveaxis(picked, 1, -1)  # [batch, outputs…, places…, channels]
        step = max(1, CHUNK_SUMS // max(1, site.k * int(np.prod(last.shape[2 : 1 + rank], dtype=np.int64))))
        for image in last:
            for start in range(0, len(image), step):
                yield group, image[start : start + step].reshape(-1, site.k)


def _pads(node: Any, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    rank, automatic = len(spans), attribute(node, "auto_pad", b"NOTSET")
    if automatic in (b"NOTSET", b""):
        pads = attribute(node, "pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if automatic == b"VALID":
        return [(0, 0)] * rank
    totals = [max(0, (-(-size // stride) - 1) * stride + span - size) for size, span, stride in zip(sizes, spans, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if automatic == b"SAME_UPPER" else [(most, least) for least, most in halves]
