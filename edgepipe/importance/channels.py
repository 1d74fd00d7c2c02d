"""What each channel of a convolutional network matters, by its weights, by what is read of it, or by how the loss would move.

Magnitude: the norm of all weights that go with a channel (Fang et al., "DepGraph", arXiv 2301.12088, section 3.3). Activation:
Wanda's |W|·‖X‖ (Sun et al., arXiv 2306.11695, section 3) of all that its readers read of it. Both relative to the mean of their
layer. Taylor: |x·∂L/∂x|, summed over a channel's positions and readers before its size is taken (Molchanov et al., "Importance
Estimation for Neural Network Pruning", arXiv 1906.10771, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.channels import by_input, by_output
from edgepipe.importance.calibration import calibration_batches
from edgepipe.importance.magnitude import relative
from edgepipe.importance.taylor import loss_of
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.channels import Channels, Part, Traced
    from edgepipe.context import Context
    from edgepipe.training.batches import Batch


def channel_importance(method: str, traced: Traced, artifact: Artifact, ctx: Context) -> list[np.ndarray]:
    """For each of the traced sets [units]. Raises `DataError` where the method needs calibration data and there is none."""
    found = {"magnitude": _magnitude, "activation": _activation, "taylor": _taylor}[method](traced, artifact, ctx)
    return [scores.reshape(each.rows, each.units).sum(0) for each, scores in zip(traced.channels, found, strict=True)]


def _magnitude(traced: Traced, artifact: Artifact, ctx: Context) -> list[np.ndarray]:
    import torch

    found = []
    for each in traced.channels:
        squares = torch.zeros(each.width, dtype=torch.float64)
        for part in each.writers:
            squares += _by_channel(_squares(by_output(traced.module.get_submodule(part.layer)), 1), part, each.width)
        for part in each.readers:
            squares += _by_channel(_squares(by_input(traced.module.get_submodule(part.layer)), 2), part, each.width)
        found.append(relative(squares.sqrt()))
    return found


def _activation(traced: Traced, artifact: Artifact, ctx: Context) -> list[np.ndarray]:
    import torch

    energy = [torch.zeros(each.width, dtype=torch.float64) for each in traced.channels]
    weights = {name: _squares(by_input(traced.module.get_submodule(name)), 2) for name in _readers(traced)}
    for batch in calibration_batches(artifact, ctx, "activation importance"):
        with torch.no_grad():
            read = _inputs_read(traced, batch)[0]
        for total, each in zip(energy, traced.channels, strict=True):
            for part in each.readers:
                if part.layer in read:
                    seen = read[part.layer].double().square().flatten(0, -2).sum(0)
                    total += _by_channel(seen * weights[part.layer], part, each.width)
    return [relative(total.sqrt()) for total in energy]


def _taylor(traced: Traced, artifact: Artifact, ctx: Context) -> list[np.ndarray]:
    import torch

    totals = [torch.zeros(each.width, dtype=torch.float64) for each in traced.channels]
    for batch in calibration_batches(artifact, ctx, "taylor importance"):
        traced.module.zero_grad()
        read, outputs = _inputs_read(traced, batch)
        for value in read.values():
            value.retain_grad()
        loss_of(next(iter(outputs.values())), batch, artifact).backward()
        effects = {name: _of_samples(value * value.grad) for name, value in read.items() if value.grad is not None}
        for total, each in zip(totals, traced.channels, strict=True):
            moved = torch.zeros(batch.rows, each.width, dtype=torch.float64)
            for part in each.readers:
                if part.layer in effects:
                    moved.index_add_(1, torch.tensor(part.channels), effects[part.layer][:, part.places])
            total += moved.abs().sum(0)
    traced.module.zero_grad()
    return [total.numpy() for total in totals]


def _readers(traced: Traced) -> Iterator[str]:
    yield from dict.fromkeys(part.layer for each in traced.channels for part in each.readers)


def _inputs_read(traced: Traced, batch: Batch) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(what each reader reads [batch, …, inputs], the model's outputs)."""
    from torch import nn

    read: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if isinstance(layer, nn.Linear):
                read[name] = inputs[0]
                return inputs
            read[name] = inputs[0].movedim(1, -1)  # a view: what is read of it is what the layer reads
            return (read[name].movedim(-1, 1), *inputs[1:])

        return hook

    handles = [traced.module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in _readers(traced)]
    try:
        return read, called(traced.module, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()


def _squares(weights: Any, kept: int) -> Any:
    """Squared norms over all dimensions but the first `kept`, flat."""
    return weights.detach().double().square().flatten(kept).sum(-1).flatten()


def _of_samples(effect: Any) -> Any:
    """[batch, …, inputs] → [batch, inputs]."""
    effect = effect.detach().double()
    return effect if effect.ndim == 2 else effect.flatten(1, -2).sum(1)


def _by_channel(values: Any, part: Part, width: int) -> Any:
    """What the places of a part have, added up by channel: several where a feature map is flattened."""
    import torch

    return torch.zeros(width, dtype=torch.float64).index_add_(0, torch.tensor(part.channels), values[list(part.places)])


def kept_channels(each: Channels, scores: np.ndarray, units: int) -> list[int]:
    """The channels that stay when the `units` most important ones do."""
    from edgepipe.importance import most_important

    return [row * each.units + unit for row in range(each.rows) for unit in most_important(scores, units)]
