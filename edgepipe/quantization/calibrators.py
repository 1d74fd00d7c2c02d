"""From what an observer saw of a tensor to the range that its quantized values span.

- `min-max`: everything that was seen.
- `percentile`: all but the outermost values (Wu et al., arXiv 2004.09602, section 5.1).
- `entropy`: the range whose quantized histogram tells least from the real one by Kullback-Leibler divergence (Migacz,
  "8-bit Inference with TensorRT", GTC 2017). ONNX Runtime's own search sums bins one by one in Python (seconds a tensor
  at this many bins), cuts the spread counts down to integers, and leaves the last bins empty where widths do not divide.
- `mse`: the range with the least squared error: rounding a value costs step²/12, cutting one off its distance squared
  (Banner et al., arXiv 1810.05723, section 3), zeros nothing.

Every range holds 0, as ONNX's zero points require.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from edgepipe.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.quantization.observers import Observer

Method = Literal["min-max", "percentile", "entropy", "mse"]
METHODS: tuple[str, ...] = get_args(Method)
SMALLEST = 1e-30  # a narrower range has scales whose inverse is no float32
CANDIDATES = 128  # ends that are tried on each side


def activation_range(
    observer: Observer,
    method: str = "min-max",
    *,
    percentile: float = 99.9,
    bits: int = 8,
    symmetric: bool = False,
    node: str = "",
) -> tuple[float, float]:
    """(low, high) with low ≤ 0 ≤ high and low < high.

    `symmetric`: the scheme will put the zero point in the middle, so that a step is max(−low, high) / (2^(bits − 1) − 1).
    Raises `DataError` naming tensor, node and samples where it holds infinite or NaN values, or where no sample reached it.
    """
    where = f'tensor "{observer.name}"' + (f' at node "{node}"' if node else "")
    if method not in METHODS:
        raise UsageError(f'unknown calibration method "{method}"', where="calibration", fix=nearest(method, METHODS))
    if not 0 < percentile <= 100:
        raise UsageError(f"a percentile of {percentile:g}", where="calibration", fix="give one above 0 and up to 100, such as 99.9")
    if not observer.reached:
        raise DataError(
            "no calibration sample reaches it",
            where=where,
            fix="give samples that take this branch of the model, or exclude the node",
        )
    if observer.nonfinite:
        raise DataError(
            f"{observer.nonfinite} activations are infinite or NaN, in {observer.nonfinite_samples} of {observer.samples} calibration samples",
            where=where,
            fix="look at those samples and at the model's outputs for them, or exclude the node",
        )
    least, most = min(observer.low, 0.0), max(observer.high, 0.0)
    if most - least < SMALLEST:  # nothing but zeros: any range gives them back exactly
        return least, max(most, 1.0)
    if method == "percentile":
        low, high = _percentile(observer, percentile)
    elif method == "entropy":
        low, high = _entropy(observer, bits)
    elif method == "mse":
        low, high = _mse(observer, bits, symmetric)
    else:
        low, high = least, most
    low, high = min(max(low, least), 0.0), max(min(high, most), 0.0)
    return (low, high) if high - low >= SMALLEST else (least, most)


def _percentile(observer: Observer, percentile: float) -> tuple[float, float]:
    """Cuts half of what is left over at either end; within a bin, values are taken to lie evenly."""
    import numpy as np

    reached = np.concatenate([[0], np.cumsum(observer.counts)])
    share = (1 - percentile / 100) / 2
    filled = np.flatnonzero(observer.counts)
    first, last = filled[0], filled[-1] + 1  # outside them the sum stands still, and would give the wrong end of an empty bin
    sums, edges = reached[first : last + 1], observer.edges[first : last + 1]
    low, high = np.interp([share * reached[-1], (1 - share) * reached[-1]], sums, edges)
    return float(low), float(high)


def _entropy(observer: Observer, bits: int) -> tuple[float, float]:
    """Tries ranges that reach equally far on both sides, each cut to what was seen."""
    import numpy as np

    counts, edges = observer.counts, observer.edges
    half, levels = len(counts) // 2, 2**bits
    filled = np.flatnonzero(counts)
    first, last = int(min(filled[0], half)), int(max(filled[-1] + 1, half))  # bins that hold anything, and 0
    reach = max(half - first, last - half)
    sums = np.concatenate([[0], np.cumsum(counts)])
    best = (math.inf, first, last)
    for cut in sorted({round(i * reach / CANDIDATES) for i in range(1, CANDIDATES + 1)}, reverse=True):
        start, end = max(half - cut, first), min(half + cut, last)
        if end - start < levels and best[0] < math.inf:
            break  # fewer bins than levels: every range would look perfect
        divergence = _divergence(counts[start:end], int(sums[start]), int(sums[-1] - sums[end]), levels)
        if divergence < best[0]:
            best = (divergence, start, end)
    return float(edges[best[1]]), float(edges[best[2]])


def _divergence(counts: np.ndarray, below: int, above: int, levels: int) -> float:
    """KL(P ‖ Q): P are the counts with what is cut off put in the end bins, Q what `levels` equal steps keep of them."""
    import numpy as np

    p = counts.astype(np.float64)
    level = np.arange(len(counts)) * levels // len(counts)
    total = np.bincount(level, weights=p, minlength=levels)
    p[0] += below
    p[-1] += above
    filled = p > 0
    shared = np.bincount(level, weights=filled, minlength=levels)
    q = np.where(filled, (total / np.maximum(shared, 1))[level], 0.0)
    if q.sum() == 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    q = np.maximum(q, 1e-10)  # a bin that only cut-off values fill has no count in Q
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


def _mse(observer: Observer, bits: int, symmetric: bool) -> tuple[float, float]:
    import numpy as np

    edges = observer.edges
    centres = np.clip((edges[:-1] + edges[1:]) / 2, observer.low, observer.high)
    counts = observer.counts.astype(np.float64)
    counts[len(counts) // 2] -= observer.zeros
    lows = np.arange(CANDIDATES + 1) / CANDIDATES * min(observer.low, 0.0)
    highs = np.arange(CANDIDATES + 1) / CANDIDATES * max(observer.high, 0.0)
    lost_low, lost_high = _cut(-centres[::-1], counts[::-1], -lows), _cut(centres, counts, highs)
    if symmetric:
        steps = np.maximum(highs[None, :], -lows[:, None]) / (2 ** (bits - 1) - 1)
    else:
        steps = (highs[None, :] - lows[:, None]) / (2**bits - 1)
    errors = lost_low[:, None] + lost_high[None, :] + counts.sum() * steps**2 / 12
    errors[0, 0] = np.inf  # no range at all
    i, j = np.unravel_index(int(errors.argmin()), errors.shape)
    return float(lows[i]), float(highs[j])


def _cut(centres: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Σ (x − end)² over what lies beyond each end."""
    import numpy as np

    def beyond(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])

    place = np.searchsorted(centres, ends, side="right")
    n, first, second = (beyond(counts * centres**power)[place] for power in (0, 1, 2))
    lost: np.ndarray = np.maximum(second - 2 * ends * first + ends**2 * n, 0.0)
    return lost
