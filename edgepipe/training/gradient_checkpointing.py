"""What a layer computes inside is computed again when gradients are, instead of kept: one more forward run for less memory.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, section 3, by torch.utils.checkpoint.
"""

from __future__ import annotations

from typing import Any

from edgepipe.errors import PassError
from edgepipe.structure import transformer_of


def checkpoint_layers(module: Any) -> None:
    """Raises `PassError` for models that do not know their layers."""
    inner = transformer_of(module)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise PassError(
            "the model does not say which of its layers can be computed again",
            where="recover.gradient_checkpointing",
            fix="leave it out; accumulate saves memory with every model",
        )
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
