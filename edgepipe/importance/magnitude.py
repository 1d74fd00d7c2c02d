"""Importance by weights alone: the norm of all that a head or a neuron owns. It needs no data.

Group norms: Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12088, section 3.3. Relative to the mean
of its layer, so that layers of larger weights do not win over others by that alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.factorized import weight_of
from edgepipe.structure import encoder_layers

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def importance(module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Per layer {"heads": [heads], "ffn": [width]}."""
    result = []
    for layer in encoder_layers(module):
        readers = [layer.attention.get_submodule(name) for name in (layer.layout.query, layer.layout.key, layer.layout.value)]
        units = sum(_rows(linear) for linear in readers) + _columns(layer.attention_output)
        heads, ffn = units.unflatten(0, (layer.heads, layer.head_size)).sum(-1), _rows(layer.ffn_in) + _columns(layer.ffn_out)
        result.append({"heads": relative(heads.sqrt()), "ffn": relative(ffn.sqrt())})
    return result


def relative(scores: Any) -> np.ndarray:
    """Scores of one layer over their mean."""
    found: np.ndarray = (scores / scores.mean().clamp(min=1e-12)).numpy()
    return found


def _rows(linear: Any) -> Any:
    return weight_of(linear).pow(2).sum(1)


def _columns(linear: Any) -> Any:
    return weight_of(linear).pow(2).sum(0)
