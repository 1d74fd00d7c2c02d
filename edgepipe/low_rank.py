"""W ≈ U·V of rank r, by the singular values of W, or of W times a root of what it reads.

Eckart and Young: the truncated SVD is the nearest matrix of its rank. Activation-aware: Wang et al., "SVD-LLM", arXiv
2403.07378, section 3.2: with S Sᵀ = E[x xᵀ], the truncated SVD of W S, times S⁻¹, moves the layer's outputs least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 1e-6  # of the mean curvature, where calibration data does not reach every direction


@dataclass(frozen=True, slots=True)
class Decomposition:
    """W = outer · inner, [out, k] · [k, in], singular values falling: the first r columns and rows are the best of rank r."""

    outer: Tensor
    inner: Tensor
    values: Tensor  # [k]

    def rank_for(self, energy: float) -> int:
        """The lowest rank that holds this share of the squared singular values."""
        held = self.values.pow(2).cumsum(0)
        return int((held < energy * held[-1]).sum()) + 1

    def error(self, rank: int) -> float:
        """What is lost at that rank, relative: of the weight's own norm, or of the outputs' where data was looked at."""
        squares = self.values.pow(2)
        return float((squares[rank:].sum() / squares.sum().clamp(min=1e-300)).sqrt())


def decompose(weight: Tensor, moments: Tensor | None = None) -> Decomposition:
    """Of a weight [out, in], with the second moments E[x xᵀ] [in, in] of its inputs where these are to count."""
    import torch

    whole = weight.detach().double()
    if moments is None:
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
    else:
        root = _root(moments.double())
        left, values, right = torch.linalg.svd(whole @ root, full_matrices=False)
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    scale = values.sqrt()
    return Decomposition(left * scale, scale[:, None] * right, values)


def decompose_table(table: Tensor, frequency: Tensor | None = None) -> Decomposition:
    """Of an embedding table [rows, width], as outer [width, k] and inner [k, rows]; rows count by how often they are read.

    Through the small side: eigenvectors of TᵀT, [width, width].
    """
    import torch

    whole = table.detach().double()
    weighted = whole if frequency is None else whole * frequency.double()[:, None]
    values, vectors = torch.linalg.eigh(weighted.T @ whole)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    return Decomposition(vectors, (whole @ vectors).T, values.sqrt())


def _root(moments: Tensor) -> Tensor:
    """Lower triangular S with S Sᵀ = the moments, damped where they are singular."""
    import torch

    if not moments.isfinite().all():
        raise DataError("the inputs' second moments hold values that are no numbers", fix="check the calibration samples")
    added = DAMPING * moments.diagonal().mean().clamp(min=1e-30)
    while True:
        root, failed = torch.linalg.cholesky_ex(moments + added * torch.eye(len(moments), dtype=moments.dtype))
        if not failed:
            return root
        added = added * 10
