"""Cross-layer equalization: neighbouring layers share their ranges, channel by channel, so that one scale fits a whole weight.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1 and
equation 11: s = √(r₁ / r₂) for each channel between two layers with nothing but a ReLU between them; depthwise chains
settle by repeating it over the pairs. Batch normalization is to be folded into its convolution before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.quantization.scaling import Scaled, Scaling
from edgepipe.quantization.smooth import LIMITS

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.scaling import Fold
    from edgepipe.quantization.sites import Site

ROUNDS = 20
SETTLED = 0.01  # the largest change of a factor's logarithm in the last round


def equalize(graph: Graph) -> list[Scaled]:
    """Scale the channels between convolutions (and between products) that only ReLUs, leaky ReLUs and pooling part, and give
    the factors of each activation. Outputs stay as they are, up to rounding; data is not needed."""
    import numpy as np

    scaling = Scaling(graph)
    pairs: dict[str, tuple[Fold, list[Site], np.ndarray]] = {}
    for tensor, sites in scaling.activations().items():
        fold = scaling.fold_of(tensor, sites)
        # Only a layer's own weights have a range to share: a normalization's vectors, or a Mul's, are no layer.
        if fold is not None and fold.parts[0][0].op_type in ("Conv", "MatMul", "Gemm"):
            pairs[tensor] = fold, sites, np.ones(len(scaling.output_peaks(fold)), np.float64)
    for _ in range(ROUNDS):
        largest = 0.0
        for tensor, (fold, sites, total) in pairs.items():
            factors = equalizing_factors(scaling.output_peaks(fold), scaling.input_peaks(sites))
            factors = (np.clip(total * factors, *LIMITS) / total).astype(np.float32)
            largest = max(largest, float(np.abs(np.log(factors)).max(initial=0.0)))
            scaling.divide_outputs(fold, factors)
            scaling.multiply_inputs(sites, factors)
            pairs[tensor] = fold, sites, total * factors
        if largest < SETTLED:
            break
    scaling.finish()
    return [
        Scaled(tensor, tensor, total.astype(np.float32), tuple(site.node for site in sites), fold.node)
        for tensor, (fold, sites, total) in pairs.items()
    ]


def equalizing_factors(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Equation 11, [channels]; 1 where either layer's weights of a channel are all zero."""
    import numpy as np

    usable = (before > 0) & (after > 0)
    ratio = np.where(usable, before, 1.0).astype(np.float64) / np.where(usable, after, 1.0)
    return np.asarray(np.sqrt(ratio))
