"""The smallest weights of a layer go. Han et al., arXiv 1506.02626, section 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.sparsity import lowest

if TYPE_CHECKING:
    from edgepipe.sparsity import Pattern


def magnitude(weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    return np.where(lowest(np.abs(weight), pattern), 0, weight)
