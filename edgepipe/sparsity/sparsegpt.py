"""SparseGPT: input by input, weights go that cost least, and those not yet looked at move to make up for them.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774,
section 3 and algorithm 1: the mask is chosen for blocks of inputs, by w² / [H⁻¹]², over all outputs together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.gptq import inverse_factor
from edgepipe.sparsity import lowest

if TYPE_CHECKING:
    from edgepipe.sparsity import Pattern

BLOCK = 128


def sparsegpt(weight: np.ndarray, moments: np.ndarray, pattern: Pattern, *, damping: float = 0.01) -> np.ndarray:
    """`moments`: E[x xᵀ] of the inputs, [in, in]; `damping` is added to its diagonal, in its mean."""
    factor = inverse_factor(moments, damping)
    width = weight.shape[1]
    block = BLOCK // pattern.group * pattern.group if 0 < pattern.group <= BLOCK else pattern.group or BLOCK
    moved = weight.T.astype(np.float32)  # rows are inputs
    for start in range(0, width, block):
        rows, here = moved[start : start + block], factor[start : start + block, start : start + block]
        gone = None if pattern.group else _costing_least(rows, here, pattern)
        errors = np.empty_like(rows)
        for i in range(len(rows)):
            if pattern.group and i % pattern.group == 0:  # chosen from weights as the moves so far have left them
                group = slice(i, i + pattern.group)
                chosen = _costing_least(rows[group], here[group, group], pattern)
            mask = chosen[i % pattern.group] if gone is None else gone[i]
            errors[i] = np.where(mask, rows[i] / here[i, i], 0)
            rows[i + 1 :] -= here[i, i + 1 :, None] * errors[i]
            rows[i][mask] = 0
        moved[start + block :] -= factor[start : start + block, start + block :].T @ errors
    return np.ascontiguousarray(moved.T)


def _costing_least(rows: np.ndarray, factor: np.ndarray, pattern: Pattern) -> np.ndarray:
    """[inputs, out], True where a weight goes."""
    return lowest((rows / np.diagonal(factor)[:, None]).T ** 2, pattern).T
