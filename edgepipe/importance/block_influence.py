"""Block influence: how far a whole layer turns the hidden states that pass through it.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv 2403.03853, section 3.2:
1 − E[xᵀy / (‖x‖ ‖y‖)] over the layer's inputs x and outputs y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.importance.calibration import calibration_batches, real_rows
from edgepipe.structure import encoder_layers
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def block_influence(module: Any, artifact: Artifact, ctx: Context) -> list[float]:
    """One number a layer, 0 where it changes no direction."""
    import torch

    layers = [each.layer for each in encoder_layers(module)]
    turned, rows = [0.0] * len(layers), 0
    seen: dict[int, tuple[Any, Any]] = {}

    def watch(index: int) -> Any:
        def hook(_: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            seen[index] = (given[0] if given else next(iter(named.values())), output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [layer.register_forward_hook(watch(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        for batch in calibration_batches(artifact, ctx, "block influence"):
            with torch.no_grad():
                called(module, batch.inputs)
            for index, pair in seen.items():
                before, after = (real_rows(value, batch) for value in pair)
                turned[index] += float((1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)).double().sum())
            rows += len(before)
    finally:
        for handle in handles:
            handle.remove()
    return [total / rows for total in turned]
