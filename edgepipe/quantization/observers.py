"""What is kept of a tensor while calibration data streams through a model: statistics of fixed size, however many samples.

One observer answers every question asked later: ranges by any method (`calibrators`), per-channel magnitudes
(SmoothQuant, AWQ, outliers), means (bias correction), second moments XᵀX (GPTQ).

The histogram is signed and its bins are as wide as the smallest power of two with which every value fits. When a value
falls outside, the range doubles and bins are merged pairwise. Widths of powers of two make that exact: the histogram
depends on which values were seen, not on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HALF = 4096  # bins on each side of 0; the side that reaches furthest fills at least half of them, which are TensorRT's 2048
SMALLEST_EXPONENT = -100  # a range under 2^-100 is 0 to every kernel
BINNED_VALUES = 1 << 18  # of one tensor in one sample; more are sampled evenly. Extremes and channels take every value
BLOCK_ROWS = 1024  # rows that are multiplied at once in float32; their products are summed in float64


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked about a tensor beyond its range and histogram."""

    channel_axis: int | None = None  # -1 for what a MatMul takes, 1 for what a convolution takes
    second_moments: bool = False  # XᵀX over the channel axis, 8 k² bytes


class Observer:
    """The statistics of one tensor.

    `count` values were seen in `samples` updates, `nonfinite` of them (in `nonfinite_samples`) infinite or NaN: these enter
    nothing else. `channels` are |max|, Σ|x| and Σx along the channel axis over `rows` positions, float64.
    """

    def __init__(self, name: str, wanted: Wanted | None = None) -> None:
        import numpy as np

        self.name, self.wanted = name, wanted or Wanted()
        self.count = self.samples = self.nonfinite = self.nonfinite_samples = self.rows = 0
        self.low, self.high = math.inf, -math.inf
        self.exponent: int | None = None  # the histogram spans ±2^exponent; None while only zeros were seen
        self.counts: np.ndarray = np.zeros(2 * HALF, np.int64)
        self.zeros = 0  # of those in the histogram: quantization never moves them
        self.channels: np.ndarray | None = None  # [3, channels]
        self._moments: np.ndarray | None = None  # [channels, channels]
        self._pending: list[np.ndarray] = []  # rows not yet in the moments, fewer than BLOCK_ROWS of them
        self.row_spread_sum = self.row_spread_max = 0.0

    def update(self, values: np.ndarray) -> None:
        """Take in one sample's tensor of any shape."""
        import numpy as np

        self.samples += 1
        self.count += values.size
        if values.size == 0:
            return
        values = values.astype(np.float32, copy=False)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(values)
            self.nonfinite += int(values.size - finite.sum())
            self.nonfinite_samples += 1
            if not finite.any():
                return
            low, high = float(values[finite].min()), float(values[finite].max())
            self._bin(values[finite])
            values = np.where(finite, values, np.float32(0))  # channels keep their places
        else:
            self._bin(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.wanted.channel_axis is not None and values.ndim > 0:
            self._take_channels(values, self.wanted.channel_axis)

    def _bin(self, values: np.ndarray) -> None:
        import numpy as np

        magnitude = float(np.abs(values).max())  # of every value, so that the span depends on no choice of them
        flat = evenly(values.reshape(-1))
        if magnitude == 0:
            self.zeros += flat.size
            self.counts[HALF] += flat.size
            return
        self._widen(max(math.frexp(magnitude)[1], SMALLEST_EXPONENT))
        assert self.exponent is not None
        # To whole bins by cutting off the fraction, on either side of 0: merging pairs of bins does the same.
        places = (flat * np.float32(HALF * 2.0**-self.exponent)).astype(np.int32)
        places += HALF - (flat < 0)
        self.counts += np.bincount(places, minlength=2 * HALF)
        self.zeros += int(flat.size - np.count_nonzero(flat))

    def _widen(self, exponent: int) -> None:
        """Have the histogram span at least ±2^exponent."""
        if self.exponent is None:
            self.exponent = exponent  # zeros lie in the bin beside 0 at any width
        while self.exponent < exponent:
            halved = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[HALF // 2 : HALF // 2 + HALF] = halved
            self.exponent += 1

    def _take_channels(self, values: np.ndarray, axis: int) -> None:
        import numpy as np

        if not -values.ndim <= axis < values.ndim:
            self.wanted = Wanted()
            return
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        magnitudes = np.abs(values)
        largest = magnitudes.max(others) if others else magnitudes
        taken = np.stack([largest, magnitudes.sum(others, dtype=np.float64), values.sum(others, dtype=np.float64)])
        rows = values.size // len(largest)
        if self.channels is None:
            self.channels = np.zeros((3, len(largest)))
        if self.channels.shape[1] == len(largest):
            self._add_channels(taken)
            self.rows += rows
        else:  # the axis is no channel axis: its length changes with the sample
            self.wanted, self.channels, self._moments, self._pending, self.rows = Wanted(), None, None, [], 0
            return
        if axis % values.ndim == values.ndim - 1:
            self._take_rows(magnitudes.reshape(rows, -1).max(1))
        if self.wanted.second_moments:
            matrix = np.ascontiguousarray(np.moveaxis(values, axis, -1)).reshape(rows, -1)
            for start in range(0, rows, BLOCK_ROWS):
                block = matrix[start : start + BLOCK_ROWS]
                if sum(map(len, self._pending)) + len(block) > BLOCK_ROWS:
                    self._multiply()
                self._pending.append(block)

    def _multiply(self) -> None:
        import numpy as np

        if self._pending:
            block = np.concatenate(self._pending)
            self._pending = []
            product = block.T @ block
            self._moments = product.astype(np.float64) if self._moments is None else np.add(self._moments, product, out=self._moments)

    @property
    def moments(self) -> np.ndarray | None:
        """XᵀX over the channel axis, [channels, channels] float64, where it was asked for."""
        self._multiply()
        return self._moments

    def _take_rows(self, maxima: np.ndarray) -> None:
        import numpy as np

        largest, median = float(maxima.max()), float(np.median(maxima))
        spread = largest / median if median > largest * 1e-6 else 1.0 if largest == 0 else 1e6
        self.row_spread_sum += spread
        self.row_spread_max = max(self.row_spread_max, spread)

    def _add_channels(self, taken: np.ndarray) -> None:
        import numpy as np

        assert self.channels is not None
        self.channels[0] = np.maximum(self.channels[0], taken[0])
        self.channels[1:] += taken[1:]

    def merge(self, other: Observer) -> None:
        """Take in what another observer saw of the same tensor."""
        if other.exponent is not None:
            self._widen(other.exponent)
        theirs = other
        if self.exponent is not None and (other.exponent is None or other.exponent < self.exponent):
            theirs = Observer(other.name)
            theirs.exponent, theirs.counts = other.exponent, other.counts.copy()
            theirs._widen(self.exponent)
        self.counts += theirs.counts
        for field in ("count", "samples", "nonfinite", "nonfinite_samples", "zeros", "row_spread_sum"):
            setattr(self, field, getattr(self, field) + getattr(other, field))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.row_spread_max = max(self.row_spread_max, other.row_spread_max)
        if other.channels is not None:
            if self.channels is None:
                self.channels = other.channels.copy()
            else:
                self._add_channels(other.channels)
            self.rows += other.rows
        if other.moments is not None:
            self._moments = other.moments.copy() if self.moments is None else self.moments + other.moments

    @property
    def reached(self) -> bool:
        return self.count > 0

    @property
    def edges(self) -> np.ndarray:
        """Of the histogram's bins, [2 · HALF + 1]."""
        import numpy as np

        span = math.ldexp(1.0, SMALLEST_EXPONENT if self.exponent is None else self.exponent)
        return np.linspace(-span, span, 2 * HALF + 1)

    @property
    def channel_max(self) -> np.ndarray | None:
        """|max| of each channel."""
        return None if self.channels is None else self.channels[0]

    @property
    def channel_mean_magnitude(self) -> np.ndarray | None:
        return None if self.channels is None else self.channels[1] / max(1, self.rows)

    @property
    def channel_mean(self) -> np.ndarray | None:
        return None if self.channels is None else self.channels[2] / max(1, self.rows)

    @property
    def hessian(self) -> np.ndarray | None:
        """2 XᵀX / rows: of the squared output error of a layer that takes this tensor."""
        moments = self.moments
        return None if moments is None else moments * (2.0 / max(1, self.rows))

    @property
    def row_spread(self) -> float | None:
        """How far the largest row of a sample reaches beyond the median row, on average: what one scale for all rows costs.

        None where channels were not asked for on the last axis, or no sample came.
        """
        return self.row_spread_sum / self.samples if self.row_spread_max > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The figures without the arrays."""
        return {
            "name": self.name,
            "count": self.count,
            "samples": self.samples,
            "nonfinite": self.nonfinite,
            "nonfinite_samples": self.nonfinite_samples,
            "low": self.low if self.reached else None,
            "high": self.high if self.reached else None,
            "row_spread": self.row_spread,
            "row_spread_max": self.row_spread_max or None,
        }


def evenly(flat: np.ndarray) -> np.ndarray:
    """At most about `BINNED_VALUES` of the values, evenly spaced by a step that no axis of the tensor repeats."""
    step = -(-flat.size // BINNED_VALUES)
    while math.gcd(step, flat.size) > 1:
        step += 1
    return flat[::step]
