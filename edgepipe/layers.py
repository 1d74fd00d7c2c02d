"""Whole layers of an encoder: which there are, and which stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.structure import LAYOUTS, encoder_layers, transformer_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_layers(module: Any, kept: Sequence[int]) -> None:
    """Take the other layers out of the model, and say so in its config, so that plain transformers builds what is left."""
    from torch import nn

    layers = [each.layer for each in encoder_layers(module)]
    inner = transformer_of(module)
    base = getattr(inner, inner.base_model_prefix, inner)
    path, _, name = LAYOUTS[inner.config.model_type].layers.rpartition(".")
    setattr(base.get_submodule(path), name, nn.ModuleList([layers[index] for index in kept]))
    for place, index in enumerate(kept):
        for part in layers[index].modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    inner.config.num_hidden_layers = len(kept)


def spread(layers: int, count: int) -> list[int]:
    """`count` of so many layers, evenly from the first to the last: DistilBERT's 0, 2, 4, 7, 9, 11 of twelve."""
    return [int(place * (layers - 1) / max(1, count - 1) + 0.5) for place in range(count)]
