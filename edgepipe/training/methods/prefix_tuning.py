"""prefix: keys and values in front of every layer's own, and the head.

Li and Liang, arXiv 2101.00190, section 4; they start as the keys and values of real words (section 7.4), and are trained as they
are, without a network that makes them (Liu et al., "P-Tuning v2", arXiv 2110.07602, section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.additions import prefixed
from edgepipe.training.methods import Method, head_of, only
from edgepipe.training.methods.layers import layers_for
from edgepipe.training.outputs import called
from edgepipe.training.pieces import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from edgepipe.training.methods import Setup


def make(setup: Setup) -> Method:
    from edgepipe.prefix import add_prefix

    module, head = setup.module, head_of(setup.module)
    layers = layers_for("prefix", module)
    pairs = [prefixed(layer) for layer in layers]
    start = _given([linear for pair in pairs for linear in pair], module, setup)
    for number, (layer, (key, value)) in enumerate(zip(layers, pairs, strict=True)):
        add_prefix(layer.attention, key, value, (start[2 * number], start[2 * number + 1]))
    added = {name: parameter for name, parameter in module.named_parameters() if name.endswith(".prefix")}
    return Method(module, lambda _: only(module, {**added, **head}), lambda: module)


def _given(linears: Sequence[Any], module: Any, setup: Setup) -> list[Tensor]:
    """What these layers give at as many positions of training samples as a prefix has, each [length, width]."""
    import torch

    found: list[list[Tensor]] = [[] for _ in linears]
    length, seen = setup.options.prefix_length, 0
    handles = [
        linear.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        for linear, kept in zip(linears, found, strict=True)
    ]
    try:
        with torch.no_grad():
            for batch in setup.train.epoch(0):
                inputs = on_device(batch, setup.options.device).unmixed
                called(module.eval(), inputs)
                mask = inputs.get("attention_mask")
                for kept in found:
                    kept[-1] = kept[-1].flatten(0, 1) if mask is None else kept[-1][mask.bool()]
                seen += len(found[0][-1])
                if seen >= length:
                    break
    finally:
        for handle in handles:
            handle.remove()
    rows = torch.arange(length) % seen  # a few short samples may have fewer positions
    return [torch.cat(kept)[rows] for kept in found]
