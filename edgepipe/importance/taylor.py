"""First-order Taylor importance of attention heads and feed-forward neurons, from one pass over calibration data.

Heads: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, section 4.1,
equation 2 (|Att·∂L/∂Att|, normalised per layer). Neurons: Molchanov et al., arXiv 1906.10771, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.importance.calibration import calibration_batches
from edgepipe.structure import encoder_layers
from edgepipe.training.batches import IGNORED
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.training.batches import Batch


def importance(module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Per layer {"heads": [heads], "ffn": [width]}: how much the loss would move without each, on calibration data."""
    return [
        {"heads": layer["heads"] / max(float((layer["heads"] ** 2).sum()) ** 0.5, 1e-12), "ffn": layer["ffn"]}
        for layer in loss_changes(module, artifact, ctx)
    ]


def loss_changes(module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """The same before heads are normalised within their layer: heads and neurons in one unit, summed over the data."""
    layers = encoder_layers(module)
    kept: dict[tuple[int, str], Any] = {}
    sums: dict[tuple[int, str], Any] = {}

    def watch(index: int, part: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            inputs[0].retain_grad()
            kept[index, part] = inputs[0]

        return hook

    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.attention_output.register_forward_pre_hook(watch(index, "heads")))
        handles.append(layer.ffn_out.register_forward_pre_hook(watch(index, "ffn")))
    try:
        for batch in calibration_batches(artifact, ctx, "taylor importance"):
            module.zero_grad()
            loss_of(next(iter(called(module, batch.inputs).values())), batch, artifact).backward()
            for place, value in kept.items():
                effect = (value * value.grad).detach()
                if place[1] == "heads":
                    layer = layers[place[0]]
                    effect = effect.unflatten(-1, (layer.heads, layer.head_size)).sum(-1)
                effect = effect.flatten(1, -2).sum(1).abs().sum(0)
                sums[place] = sums.get(place, 0) + effect
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad()
    return [{part: sums[index, part].numpy() for part in ("heads", "ffn")} for index in range(len(layers))]


def loss_of(first: Any, batch: Batch, artifact: Artifact) -> Any:
    """The task's loss where samples are labelled; else how far the model's own outputs would move."""
    import torch

    if not artifact.program.get("labels") or first.ndim not in (2, 3):
        return first.pow(2).sum() / 2
    wanted = first.detach().argmax(-1) if batch.targets is None else batch.targets
    return torch.nn.functional.cross_entropy(first.flatten(0, -2), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
