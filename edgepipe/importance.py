"""First-order Taylor importance of attention heads and feed-forward neurons, from one pass over calibration data.

Heads: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, section 4.1,
equation 2 (|Att·∂L/∂Att|, normalised per layer). Neurons: Molchanov et al., arXiv 1906.10771, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.tasks.classification import label_name

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

BATCH = 16


def taylor_importance(module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Per layer {"heads": [heads], "ffn": [width]}: how much the loss would move without each, on calibration data."""
    import torch

    from edgepipe.structure import encoder_layers

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
    samples = ctx.data("calibration")
    samples = sorted(samples, key=lambda sample: len(str(sample)))  # like lengths together: less padding
    try:
        for start in range(0, len(samples), BATCH):
            ctx.progress("measuring importance", start, len(samples))
            batch = samples[start : start + BATCH]
            feeds = {name: torch.from_numpy(value) for name, value in ctx.feeds(artifact, batch).items()}
            module.zero_grad()
            _loss(module(**feeds), batch, artifact).backward()
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
    result = []
    for index in range(len(layers)):
        heads = sums[index, "heads"]
        result.append({"heads": (heads / heads.norm().clamp(min=1e-12)).numpy(), "ffn": sums[index, "ffn"].numpy()})
    return result


def _loss(output: Any, batch: list[Any], artifact: Artifact) -> Any:
    """The task's loss where samples are labelled; else how far the model's own outputs would move."""
    import torch

    first = output[0] if not isinstance(output, dict) else next(iter(output.values()))
    labels = artifact.program.get("labels")
    if labels and first.ndim == 2:
        if all("label" in sample for sample in batch):
            wanted = torch.tensor([labels.index(label_name(sample["label"], labels)) for sample in batch])
        else:
            wanted = first.detach().argmax(-1)
        return torch.nn.functional.cross_entropy(first, wanted, reduction="sum")
    if labels and first.ndim == 3:  # tags: against the model's own, so that pieces and padding need no rule
        return torch.nn.functional.cross_entropy(first.flatten(0, 1), first.detach().argmax(-1).flatten(), reduction="sum")
    return first.pow(2).sum() / 2


def choose_kept(scores: list[np.ndarray], ratio: float, *, per_layer: bool, multiple_of: int = 1) -> list[list[int]]:
    """Which units of each layer stay when `ratio` of all are cut, least important first.

    Every layer keeps at least `multiple_of` units, and counts land on multiples of it.
    """
    import numpy as np

    if per_layer:
        counts = [len(s) - round(ratio * len(s)) for s in scores]
    else:
        owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
        everything = np.concatenate(scores)
        # By rank, not by a threshold: many units tie where they never fire, and a threshold would cut them all.
        cut = np.argsort(everything, kind="stable")[: round(ratio * len(everything))]
        lost = np.bincount(owner[cut], minlength=len(scores))
        counts = [len(s) - int(n) for s, n in zip(scores, lost, strict=True)]
    kept = []
    for layer, count in zip(scores, counts, strict=True):
        width = min(len(layer), max(multiple_of, round(count / multiple_of) * multiple_of))
        best = np.argsort(-layer, kind="stable")[:width]
        kept.append(sorted(int(i) for i in best))
    return kept
