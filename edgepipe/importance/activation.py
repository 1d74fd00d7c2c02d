"""Activation-aware importance: how much a head or a neuron writes into the hidden states on calibration data.

Wanda's |W|·‖X‖ (Sun et al., arXiv 2306.11695, section 3) for whole units, as in An et al., "FLAP", arXiv 2312.11983: the
root mean square of W_out[:, unit] · x[unit], relative to the mean of its layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.factorized import weight_of
from edgepipe.importance.calibration import watch_inputs
from edgepipe.importance.magnitude import relative
from edgepipe.structure import encoder_layers

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def importance(module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Per layer {"heads": [heads], "ffn": [width]}."""
    layers = encoder_layers(module)
    written: dict[tuple[int, str], Any] = {}

    def see(key: tuple[int, str], rows: Any) -> None:
        layer = layers[key[0]]
        if key[1] == "ffn":
            energy = rows.pow(2).sum(0) * weight_of(layer.ffn_out).pow(2).sum(0)
        else:
            weight = weight_of(layer.attention_output).unflatten(1, (layer.heads, layer.head_size))
            heads = rows.unflatten(1, (layer.heads, layer.head_size))
            energy = sum_of_squares(heads, weight)
        written[key] = written.get(key, 0) + energy.double()

    watched = {(index, "heads"): layer.attention_output for index, layer in enumerate(layers)}
    watched |= {(index, "ffn"): layer.ffn_out for index, layer in enumerate(layers)}
    watch_inputs(module, watched, artifact, ctx, "activation importance", see)
    return [{part: relative(written[index, part].sqrt()) for part in ("heads", "ffn")} for index in range(len(layers))]


def sum_of_squares(heads: Any, weight: Any) -> Any:
    """Σ ‖weight[:, h] · heads[row, h]‖² over rows, [heads], through each head's second moments: heads [rows, h, d], weight [out, h, d]."""
    import torch

    return (torch.einsum("rhd,rhe->hde", heads, heads) * torch.einsum("ohd,ohe->hde", weight, weight)).sum((1, 2)).clamp(min=0)
