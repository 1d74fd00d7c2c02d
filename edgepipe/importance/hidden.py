"""Importance of the dimensions of an encoder's hidden states, one set for all layers.

By activations: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679,
section 2.2 (what the layer norms give, over all of them). First-order Taylor: Molchanov et al., arXiv 1906.10771, section
3.1, over all weights along a dimension. By weights: Fang et al., arXiv 2301.12088, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.importance.calibration import calibration_batches, watch_inputs
from edgepipe.importance.taylor import loss_of
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def hidden_importance(method: str, module: Any, axes: Mapping[str, int], artifact: Artifact, ctx: Context) -> np.ndarray:
    """[hidden], by magnitude, activation or taylor. `axes`: parameter → the axis of it that runs along the hidden states."""
    if method == "magnitude":
        scores = _magnitude(module, axes)
    elif method == "activation":
        scores = _activation(module, axes, artifact, ctx)
    else:
        scores = _taylor(module, axes, artifact, ctx)
    found: np.ndarray = scores.numpy()
    return found


def _magnitude(module: Any, axes: Mapping[str, int]) -> Any:
    """The norm of each dimension's share of a weight, relative to the others', over all weights alike."""
    total: Any = 0
    for name, axis in axes.items():
        norms = _others_summed(module.get_parameter(name).detach().double().pow(2), axis).sqrt()
        total = total + norms / norms.mean().clamp(min=1e-12)
    return total


def _activation(module: Any, axes: Mapping[str, int], artifact: Artifact, ctx: Context) -> Any:
    """Mean |norm(x)| of every position, over all layer norms alike."""
    from torch import nn

    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.LayerNorm) and f"{name}.weight" in axes}
    weights = {name: layer.weight.detach() for name, layer in norms.items()}
    sums: dict[str, Any] = {}

    def see(name: str, rows: Any) -> None:
        given = nn.functional.layer_norm(rows, rows.shape[-1:], weights[name], norms[name].bias.detach(), norms[name].eps)
        sums[name] = sums.get(name, 0) + given.abs().double().sum(0)

    watch_inputs(module, norms, artifact, ctx, "activation importance", see)
    return sum(each / each.mean().clamp(min=1e-12) for each in sums.values())


def _taylor(module: Any, axes: Mapping[str, int], artifact: Artifact, ctx: Context) -> Any:
    """|Σ weight · ∂loss/∂weight| of all that a dimension owns, batch by batch."""
    total: Any = 0
    try:
        for batch in calibration_batches(artifact, ctx, "taylor importance"):
            module.zero_grad()
            loss_of(next(iter(called(module, batch.inputs).values())), batch, artifact).backward()
            effect: Any = 0
            for name, axis in axes.items():
                parameter = module.get_parameter(name)
                if parameter.grad is not None:
                    effect = effect + _others_summed((parameter.detach() * parameter.grad).double(), axis)
            total = total + effect.abs()
    finally:
        module.zero_grad()
    return total


def _others_summed(value: Any, axis: int) -> Any:
    """[…] → [width of `axis`]."""
    return value.transpose(0, axis).flatten(1).sum(1) if value.ndim > 1 else value
