"""AWQ-style scaling: weights that meet large activations are made larger before they are rounded, so that they lose less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978, section 3.2:
s = mean|X|^a for each channel, a in [0, 1) from a grid of 20 by the error of the layer's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.quantization.rounding import quantize
from edgepipe.quantization.rounding.objective import column_errors
from edgepipe.quantization.scaling import Scaled, Scaling
from edgepipe.quantization.sites import matrix_of
from edgepipe.quantization.smooth import LIMITS, move

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.rounding import Grid
    from edgepipe.quantization.sites import Site

EXPONENTS = 20
WORTH = 0.99  # of the error without: less is not worth a change


def scale_by_activations(
    graph: Graph,
    magnitudes: Mapping[str, np.ndarray],
    grid: Grid,
    hessians: Mapping[str, np.ndarray] | None = None,
    *,
    method: str = "nearest",
    insert: bool = False,
    nodes: Collection[str] | None = None,
) -> list[Scaled]:
    """Scale the activations whose readers' weights then lose less on `grid`, folded as `smooth` does.

    `magnitudes` has mean |x| of each channel by tensor, `hessians` 2 XᵀX / samples where known: then it is these that the
    error is measured with. Convolutions are left. Outputs stay as they are, up to rounding.
    """
    scaling = Scaling(graph)
    changed = []
    for tensor, sites in scaling.activations().items():
        mean = magnitudes.get(tensor)
        if (
            mean is None
            or any(site.kind == "convolution" for site in sites)
            or (nodes is not None and not any(s.node in nodes for s in sites))
        ):
            continue
        if not insert and scaling.fold_of(tensor, sites) is None:
            continue
        factors = best_factors(scaling, sites, mean, grid, (hessians or {}).get(tensor), method)
        done = None if factors is None else move(scaling, tensor, factors, insert=insert)
        if done:
            changed.append(done)
            scaling.commit()
    scaling.finish()
    return changed


def best_factors(
    scaling: Scaling, sites: Sequence[Site], mean: np.ndarray, grid: Grid, hessian: np.ndarray | None, method: str
) -> np.ndarray | None:
    """Factors [channels] with which all these sites together have the least output error; None where none are worth it."""
    import numpy as np

    if not (mean > 0).any():
        return None
    curvature = None if hessian is None else hessian.astype(np.float32)
    importance = np.ones_like(mean) if hessian is not None else np.asarray(mean)
    weights = [matrix_of(scaling.graph, scaling.node(site), site) for site in {site.weight: site for site in sites}.values()]
    base = np.where(mean > 0, mean, mean[mean > 0].min()).astype(np.float64)
    best, least = None, 0.0
    for step in range(EXPONENTS):
        factors = base ** (step / EXPONENTS)
        factors = np.clip(factors / np.sqrt(factors.max() * factors.min()), *LIMITS).astype(np.float32)
        error = 0.0
        for weight in weights:
            rounded = quantize(method, weight * factors[:, None], grid).dequantized() / factors[:, None]
            delta = (rounded - weight) * importance[:, None]
            error += float(column_errors(delta.astype(np.float32), curvature).sum())
        if step == 0:
            least = error * WORTH
        elif error < least:
            best, least = factors, error
    return best
