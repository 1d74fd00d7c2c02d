"""SmoothQuant: what is hard to quantize in an activation moves into the weights that read it.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv 2211.10438,
equation 4: s = max|X|^α / max|W|^(1 − α) for each channel, over all the weights that read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.quantization.scaling import Scaled, Scaling

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

    from edgepipe.quantization.graph import Graph

LIMITS = (1e-4, 1e4)  # of a factor: beyond, float32 products of tiny and huge values lose digits


def smooth(
    graph: Graph, largest: Mapping[str, np.ndarray], *, alpha: float = 0.5, insert: bool = False, nodes: Collection[str] | None = None
) -> list[Scaled]:
    """Divide every activation's channels by their factors, folded into what makes the activation.

    `largest` has |max| of each channel by tensor, [channels]; a tensor it lacks is left. Where the activation is read by
    others too (a residual), or what makes it has no place for a factor, it is left, or gets a Mul with `insert`. `nodes`
    limits it to activations that these sites read. Outputs stay as they are, up to rounding.
    """
    scaling = Scaling(graph)
    changed = []
    for tensor, sites in scaling.activations().items():
        peaks = largest.get(tensor)
        if peaks is None or (nodes is not None and not any(site.node in nodes for site in sites)):
            continue
        factors = smoothing_factors(peaks, scaling.input_peaks(sites), alpha)
        done = move(scaling, tensor, factors, insert=insert)
        if done:
            changed.append(done)
            scaling.commit()
    scaling.finish()
    return changed


def smoothing_factors(largest: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Equation 4, [channels]; 1 where a channel or its weights are all zero."""
    import numpy as np

    usable = (largest > 0) & (weights > 0)
    factors = np.where(usable, largest, 1.0) ** alpha / np.where(usable, weights, 1.0).astype(np.float64) ** (1 - alpha)
    return np.where(usable, np.clip(factors, *LIMITS), 1.0).astype(np.float32)


def move(scaling: Scaling, tensor: str, factors: np.ndarray, *, insert: bool) -> Scaled | None:
    """Divide a tensor's channels and have its readers make up for it; None where that cannot be."""
    import numpy as np

    sites = scaling.activations().get(tensor)
    if sites is None or np.all(factors == 1):
        return None
    fold = scaling.fold_of(tensor, sites)
    read_as: str | None = tensor
    if fold is not None:
        scaling.divide_outputs(fold, factors)
    else:
        read_as = scaling.put_in(tensor, sites, factors) if insert else None
    if read_as is None:
        return None
    scaling.multiply_inputs(sites, factors)
    return Scaled(tensor, read_as, factors, tuple(site.node for site in sites), fold.node if fold else "")
