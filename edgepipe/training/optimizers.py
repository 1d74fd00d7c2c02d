"""AdamW, and AdamW that keeps its two moving averages in 8 bits.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101. Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", arXiv 2110.02861, by bitsandbytes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Parameter


def make_optimizer(name: str, parameters: Sequence[Parameter], learning_rate: float, weight_decay: float) -> Any:
    """Raises `PassError` where the library that one needs is not there."""
    import torch

    if name == "adamw":
        return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise PassError(
            "bitsandbytes is not installed, which keeps an optimiser's states in 8 bits",
            where="recover.optimizer",
            fix="pip install 'edgepipe[optimizers]', or take optimizer = \"adamw\"",
        ) from None
    return AdamW8bit(parameters, learning_rate, weight_decay=weight_decay)
