"""Wanda: the lowest |weight| times the norm of the input it reads go, output by output.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.sparsity import lowest

if TYPE_CHECKING:
    from edgepipe.sparsity import Pattern


def wanda(weight: np.ndarray, mean_squares: np.ndarray, pattern: Pattern) -> np.ndarray:
    """`mean_squares`: E[x²] of each input, [in]."""
    return np.where(lowest(np.abs(weight) * np.sqrt(mean_squares), pattern, per_row=True), 0, weight)
