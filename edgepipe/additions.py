"""What training adds to every layer of an encoder and nothing can merge into it: adapters and prefixes, by their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.factorized import parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ADDITIONS = ("adapter", "prefix")  # neurons of each bottleneck, keys and values in front of each layer's own


def adapted(layer: Any) -> tuple[Any, Any]:
    """The linear layers of an encoder's layer that have adapters behind them, as Houlsby et al. place them: what attention gives
    and what the feed-forward part gives."""
    return parts(layer.attention_output)[-1], parts(layer.ffn_out)[-1]


def prefixed(layer: Any) -> tuple[Any, Any]:
    """The projections to keys and to values."""
    key, value = (layer.attention.get_submodule(name) for name in (layer.layout.key, layer.layout.value))
    return parts(key)[-1], parts(value)[-1]


def additions_of(layers: Sequence[Any]) -> dict[str, int]:
    """Which additions the layers of an encoder have, and of what size. All have the same."""
    found: dict[str, int] = {}
    if hasattr(linear := adapted(layers[0])[0], "adapter"):
        found["adapter"] = int(linear.adapter.down.out_features)
    if hasattr(layers[0].attention, "prefix_length"):
        found["prefix"] = int(layers[0].attention.prefix_length)
    return found


def apply_additions(layers: Sequence[Any], sizes: Mapping[str, int]) -> None:
    """Add to every layer what is to be filled."""
    import torch

    for layer in layers:
        if size := sizes.get("adapter"):
            from edgepipe.bottleneck import add_adapter, empty_bottleneck

            for linear in adapted(layer):
                add_adapter(linear, empty_bottleneck(linear.out_features, size, linear.weight))
        if size := sizes.get("prefix"):
            from edgepipe.prefix import add_prefix

            key, value = prefixed(layer)
            empty = [torch.zeros(size, each.out_features, device=each.weight.device, dtype=each.weight.dtype) for each in (key, value)]
            add_prefix(layer.attention, key, value, (empty[0], empty[1]))
